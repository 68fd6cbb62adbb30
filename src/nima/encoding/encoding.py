"""Documents to tokens, stretch by stretch, by as many workers as there are."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nima.corpus.document import Stretch, documents_in, stretches
from nima.dataset.tokens import token_type
from nima.encoding.conversation import Dropped
from nima.encoding.conversation.documents import tokenized
from nima.encoding.conversation.pieces import Layout
from nima.encoding.conversation.templates import ChatTemplate
from nima.encoding.token_writer import TokenWriter, lists, tokenized_schema, tokenized_table
from nima.tokenizer import Tokenizer
from nima.workers.parallel import Workers
from nima.workspace.columns import numbers
from nima.workspace.errors import UserError
from nima.workspace.outputs import writing_to
from nima.workspace.params import TokenizeParams

STRETCH_BYTES = 4_000_000


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
        partial_path, parts = path.with_suffix(".partial"), loaded(tokenizer, rules)
        schema = tokenized_schema(token_type(parts[0].vocab_size))
        with pa.OSFile(str(partial_path), "wb") as sink, pa.ipc.new_file(sink, schema) as file:
            for table in tables(stretch, parts, settings, dropped):
                file.write_table(table)
        partial_path.replace(path)
        partial_path.write_text(json.dumps([asdict(document) for document in dropped]), "utf-8")
        partial_path.replace(path.with_suffix(".json"))
    return path


def tables(
    stretch: Stretch, parts: tuple[Tokenizer, ChatTemplate], settings: TokenizeParams, dropped: list[Dropped]
) -> Iterator[pa.Table]:
    for batch in stretch.batches():
        if settings.max_total_tokens is None and batch["messages"].null_count == len(batch):
            yield plain_table(batch, *parts)
            continue
        found = list(tokenized(documents_in([batch]), *parts, settings))
        dropped += [document for document in found if isinstance(document, Dropped)]
        kept = [document for document in found if not isinstance(document, Dropped)]
        yield tokenized_table(kept, token_type(parts[0].vocab_size))


def plain_table(batch: pa.RecordBatch, tokenizer: Tokenizer, template: ChatTemplate) -> pa.Table:
    """Documents without conversations and budgets, column by column: each whole, and all of it trained."""
    ids, lengths = tokenizer.encode_ended(batch["text"].to_pylist(), template.eos_token)
    dtype, nothing = token_type(tokenizer.vocab_size), np.zeros(len(batch), np.int64)
    columns = {name: batch[name] for name in ("id", "source", "group", "split", "weight")}
    columns["num_bytes"] = pc.binary_length(batch["text"]).cast(pa.int64())
    columns["cut_tokens"] = numbers(nothing)
    columns["tokens"] = lists(ids.astype(dtype), lengths)
    columns["spans"] = lists(np.stack([nothing, lengths], axis=1).reshape(-1), nothing + 2)
    schema = tokenized_schema(dtype)
    return pa.Table.from_arrays([columns[name] for name in schema.names], schema=schema)


@lru_cache(maxsize=1)
def loaded(tokenizer: Path, rules: str) -> tuple[Tokenizer, ChatTemplate]:  # noqa: ARG001 - part of the cache's key
    """What a worker needs for all its stretches."""
    found = Tokenizer.load(tokenizer)
    template = ChatTemplate.of(found)
    Layout(template, found.special_ids, "all")  # says what the template lacks, also where no text needs it
    return found, template
