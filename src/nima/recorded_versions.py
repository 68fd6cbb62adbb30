"""With what a recorded training ran, against what there is now: packages, processor, settings.

The train stage leaves a record of each run in .nima/records (`nima.run_record`), so does the one in a clean
clone. Records are told apart by the SHA-256 of the model that came out.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nima.clean_clone import Clone, Stage

RECORDS = Path(".nima/records")
MODEL = "models/model"
WEIGHTS = "model.safetensors"
# Packages whose version may change a result; the record has all.
TELLING = (
    "python",
    "torch",
    "numpy",
    "tokenizers",
    "tiktoken",
    "pyarrow",
    "safetensors",
    "transformers",
    "accelerate",
)


@dataclass(frozen=True)
class VersionChange:
    name: str
    recorded: Any
    now: Any

    @property
    def text(self) -> str:
        return f"{self.name}: {said(self.recorded)} recorded, {said(self.now)} now"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def said(value: Any) -> str:
    return "none" if value is None else str(value)


def version_changes(
    root: Path, clone: Clone, lock: dict[str, Stage]
) -> tuple[list[VersionChange], list[str]]:
    """Changes between the run's record in the workspace and the new one; and why there are none to tell."""
    now = newest(clone.project / RECORDS)
    md5 = next((stage.outs[MODEL] for stage in lock.values() if MODEL in stage.outs), None)
    if now is None or md5 is None:
        return [], []  # nothing was trained
    weights = (clone.members(md5) or {}).get(WEIGHTS) if not clone.lacks(md5) else None
    path = clone.object(weights) if weights else None
    recorded = None
    if path is not None:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        recorded = newest(root / RECORDS, sha256)
    if recorded is None:
        return [], [
            "versions: this machine has no record of the run (.nima/records), so they can't be compared"
        ]
    return changes(facts(recorded), facts(now)), []


def newest(folder: Path, sha256: str = "") -> dict[str, Any] | None:
    """The last record of a run, if given one that made these weights."""
    for path in sorted(folder.glob("*.json"), reverse=True):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            made = [text for name, text in (record.get("outputs") or {}).items() if name.endswith(WEIGHTS)]
        except (OSError, ValueError, AttributeError):
            continue
        if not sha256 or any(text.endswith(sha256) for text in made):
            return dict(record)
    return None


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What of a record may explain another result."""
    versions, hardware = record.get("versions") or {}, record.get("hardware") or {}
    gpus = ", ".join(str(gpu.get("name")) for gpu in hardware.get("gpus") or []) or None
    found = {name: versions.get(name) for name in TELLING} | {"cpu": hardware.get("cpu"), "gpu": gpus}
    settings = record.get("environment") or {}
    return found | {name: value for name, value in settings.items() if name != "NIMA_CACHE"}


def changes(recorded: dict[str, Any], now: dict[str, Any]) -> list[VersionChange]:
    names = [name for name in recorded | now if recorded.get(name) != now.get(name)]
    return [VersionChange(name, recorded.get(name), now.get(name)) for name in names]
