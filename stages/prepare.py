"""Any source, any format: clean documents, and every rejected record with its reason."""

import json
from pathlib import Path

from nima.corpus.collection import Collection
from nima.corpus.document import Document, document_writer, rejection_writer, writing_to
from nima.errors import UserError
from nima.params import Params
from nima.runtime import Runtime
from nima.stage import run_stage

DOCUMENTS = Path("data/documents")
REJECTED = Path("data/rejected")
METRICS = Path("metrics/prepare.json")


def main(params: Params, runtime: Runtime) -> None:
    shard_bytes = params.prepare.max_shard_bytes
    collection = Collection(params.prepare, runtime.packages)
    with rejection_writer(REJECTED, shard_bytes) as rejected, document_writer(DOCUMENTS, shard_bytes) as kept:
        for outcome in collection:
            if isinstance(outcome, Document):
                kept.write(outcome)
            else:
                rejected.write(outcome)
    figures = collection.figures()
    with writing_to(METRICS):
        METRICS.parent.mkdir(parents=True, exist_ok=True)
        METRICS.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if figures["num_documents"] == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in figures["rejected"].items())
        raise UserError(
            f"no document is left of {figures['num_records']} records ({reasons or 'none was read'}); see "
            f"{REJECTED}, and change prepare.min_chars, prepare.max_chars or prepare.sources"
        )


if __name__ == "__main__":
    run_stage("prepare", main)
