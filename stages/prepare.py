"""Any source, any format: clean documents, and every rejected record with its reason."""

from pathlib import Path

from nima.corpus.collection import Collection
from nima.corpus.document import document_writer, rejection_writer
from nima.workers.parallel import get_ready, working
from nima.workspace.errors import UserError
from nima.workspace.metrics import write_metrics
from nima.workspace.params import Params
from nima.workspace.runtime import Runtime
from nima.workspace.stage import code_of, run_stage

DOCUMENTS = Path("data/documents")
REJECTED = Path("data/rejected")


def main(params: Params, runtime: Runtime) -> None:
    settings, code = params.prepare, code_of("prepare")
    with working(runtime, "prepare", settings.model_dump_json() + code) as (hands, folder):
        places = {"folder": folder, "packages": runtime.packages, "downloads": runtime.downloads}
        collection = Collection(settings, code=code, **places)
        with (
            rejection_writer(REJECTED, settings.max_shard_bytes) as rejected,
            document_writer(DOCUMENTS, settings.max_shard_bytes) as kept,
        ):
            collection.write(hands, kept, rejected)
    figures = collection.figures()
    write_metrics("prepare", figures)
    if figures["num_documents"] == 0:
        reasons = ", ".join(f"{count} {reason}" for reason, count in figures["rejected"].items())
        raise UserError(
            f"no document is left of {figures['num_records']} records ({reasons or 'none was read'}); see "
            f"{REJECTED}, and change prepare.quality or prepare.sources"
        )


if __name__ == "__main__":
    run_stage("prepare", main, first=get_ready)
