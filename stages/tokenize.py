"""Learn a tokenizer from the training part, prove it on held-out text, and write everything as tokens."""

from functools import partial
from pathlib import Path

from nima.conversation import tokenized
from nima.corpus.document import read_documents
from nima.metrics import write_metrics
from nima.params import Params
from nima.runtime import Runtime
from nima.splits import TrainingTexts, texts_in
from nima.stage import run_stage
from nima.tokenizer import Tokenizer, gate
from nima.tokens import Tokens, TokenWriter

TOKENS = Path("data/tokens")


def main(params: Params, runtime: Runtime) -> None:
    settings, seed = params.tokenize, params.split.seed
    ratios = (params.split.train, params.split.validation, params.split.test)
    read = partial(read_documents, Path("data/documents"))
    learnt = TrainingTexts(read, seed, ratios, settings.train_max_bytes)
    tokenizer = Tokenizer.train(learnt, settings.vocab_size or 0)
    gated = gate(tokenizer, texts_in(read(), "validation", seed, ratios), settings.min_vocab_size)
    tokenizer.save(Path("models/tokenizer"))
    with TokenWriter(TOKENS, tokenizer.vocab_size, settings.max_shard_tokens) as writer:
        for document in tokenized(read(), tokenizer, settings.loss_on, runtime.threads):
            writer.write(document)
    figures = {"vocab_size": tokenizer.vocab_size, "learnt_from": learnt.counts(), "gate": gated}
    write_metrics("tokenize", figures | Tokens.open(TOKENS).totals())


if __name__ == "__main__":
    run_stage("tokenize", main)
