"""Learn a tokenizer from the training part, prove it on held-out text, and write everything as tokens."""

from functools import partial
from pathlib import Path

from nima.corpus.document import read_documents
from nima.dataset.splits import TrainingTexts, ratios_of
from nima.dataset.tokens import Tokens
from nima.encoding.conversation.templates import ChatTemplate
from nima.encoding.encoding import write_tokens
from nima.encoding.token_writer import TokenWriter
from nima.tokenizer import gate, tokenizer_of
from nima.workers.parallel import get_ready, working
from nima.workspace.metrics import write_metrics
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime
from nima.workspace.stage import code_of, run_stage

DOCUMENTS, TOKENIZER, TOKENS = Path("data/documents"), Path("models/tokenizer"), Path("data/tokens")


def main(params: Params, runtime: Runtime) -> None:
    settings, shares = params.tokenize, {name: ratios_of(own) for name, own in params.split.sources.items()}
    template = ChatTemplate.load(settings.chat_template).text if settings.chat_template else None
    read = partial(read_documents, DOCUMENTS)
    learnt = TrainingTexts(read, params.split.seed, ratios_of(params.split), settings.train_max_bytes, shares)
    tokenizer = tokenizer_of(settings, learnt, downloads=runtime.downloads, chat_template=template)
    gated = gate(tokenizer, learnt.split.texts("validation"), settings.min_vocab_size, settings.kind)
    tokenizer.save(TOKENIZER)
    with (
        working(runtime, "tokenize", settings.model_dump_json() + code_of("tokenize")) as (hands, folder),
        TokenWriter(TOKENS, tokenizer.vocab_size, settings.max_shard_tokens) as writer,
    ):
        write_tokens(DOCUMENTS, TOKENIZER, settings, folder, hands, writer)
    figures = tokenizer.report() | {"learnt_from": learnt.counts(), "gate": gated}
    write_metrics("tokenize", figures | writer.losses() | Tokens.open(TOKENS).totals())


if __name__ == "__main__":
    run_stage("tokenize", main, first=get_ready)
