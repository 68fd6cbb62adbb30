"""Documents to tokens, stretch by stretch, by as many workers as there are."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa

from nima.conversation import Dropped
from nima.conversation.documents import tokenized
from nima.conversation.templates import ChatTemplate
from nima.corpus.document import Stretch, stretches
from nima.errors import UserError
from nima.outputs import writing_to
from nima.parallel import Workers
from nima.params import TokenizeParams
from nima.token_writer import TOKENIZED_SCHEMA, TokenWriter, tokenized_table
from nima.tokenizer import Tokenizer

STRETCH_BYTES = 4_000_000
BATCH_DOCUMENTS = 1024


def write_tokens(
    documents: Path,
    tokenizer: Path,
    settings: TokenizeParams,
    folder: Path,
    workers: Workers,
    writer: TokenWriter,
) -> None:
    """Tokenize the documents of a folder into `writer`, with the tokenizer saved at `tokenizer`.

    What is tokenized waits in `folder`, from where an interrupted run takes it up again. Raises `UserError`.
    """
    files = sorted(path for path in tokenizer.iterdir() if path.is_file())
    contents = b"".join(path.read_bytes() for path in files)
    rules = hashlib.sha256(contents).hexdigest() + settings.model_dump_json()
    encode = partial(encoded, tokenizer=tokenizer, settings=settings, rules=rules, folder=folder)
    for path in workers.map(encode, stretches(documents, STRETCH_BYTES)):
        with pa.memory_map(str(path)) as source:
            writer.append(pa.ipc.open_file(source).read_all())
        writer.drop([Dropped(**row) for row in json.loads(path.with_suffix(".json").read_text("utf-8"))])
    if writer.shard is None and writer.dropped:
        first = writer.dropped[0]
        raise UserError(
            f"tokenize.max_total_tokens and chat_template: no document is left of {len(writer.dropped)}; "
            f"the first was {first.source}: {first.key}: {first.reason}: {first.detail}"
        )


def encoded(stretch: Stretch, tokenizer: Path, settings: TokenizeParams, rules: str, folder: Path) -> Path:
    """The Arrow file below `folder` with the stretch's documents as tokens; done work is not repeated.

    The documents that were dropped stand in a JSON file beside it, written last.
    """
    status = stretch.shard.stat()
    decides = f"{rules} {stretch} {status.st_size} {status.st_mtime_ns}"
    path = folder / f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.arrow"
    if path.with_suffix(".json").is_file():
        return path
    dropped: list[Dropped] = []
    with writing_to(folder):
        partial_path = path.with_suffix(".partial")
        with pa.OSFile(str(partial_path), "wb") as sink, pa.ipc.new_file(sink, TOKENIZED_SCHEMA) as file:
            for table in tables(stretch, loaded(tokenizer, rules), settings, dropped):
                file.write_table(table)
        partial_path.replace(path)
        partial_path.write_text(json.dumps([asdict(document) for document in dropped]), "utf-8")
        partial_path.replace(path.with_suffix(".json"))
    return path


def tables(
    stretch: Stretch, parts: tuple[Tokenizer, ChatTemplate], settings: TokenizeParams, dropped: list[Dropped]
) -> Iterator[pa.Table]:
    waiting = []
    for document in tokenized(stretch.documents(), *parts, settings):
        if isinstance(document, Dropped):
            dropped.append(document)
        else:
            waiting.append(document)
        if len(waiting) == BATCH_DOCUMENTS:
            yield tokenized_table(waiting)
            waiting = []
    yield tokenized_table(waiting)


@lru_cache(maxsize=1)
def loaded(tokenizer: Path, rules: str) -> tuple[Tokenizer, ChatTemplate]:  # noqa: ARG001 - part of the cache's key
    """What a worker needs for all its stretches."""
    found = Tokenizer.load(tokenizer)
    return found, ChatTemplate.of(found)
