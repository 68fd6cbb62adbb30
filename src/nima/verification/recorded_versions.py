"""With what a recorded run ran, against what there is now: packages, processor, settings."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from nima.repository import git
from nima.repository.clean_clone import Clone
from nima.workspace.surroundings import ENVIRONMENT


@dataclass(frozen=True)
class VersionChange:
    name: str
    recorded: Any
    now: Any
    stages: list[str]

    @property
    def text(self) -> str:
        stages = ", ".join(self.stages)
        return f"{self.name}: {said(self.recorded)} recorded, {said(self.now)} now ({stages})"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def said(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "none" if value is None or not text else text


def version_changes(clone: Clone, commit: str, stages: list[str]) -> tuple[list[VersionChange], list[str]]:
    """What the commit and the run in the clone say differently; and which stages can't be compared."""
    recorded = environments(git.text_at(clone.project, commit, ENVIRONMENT.as_posix()))
    place = clone.project / ENVIRONMENT
    now = environments(place.read_text(encoding="utf-8") if place.is_file() else None)
    found: dict[tuple[str, str, str], VersionChange] = {}
    for stage in [stage for stage in stages if stage in recorded and stage in now]:
        before, after = recorded[stage], now[stage]
        for name in [name for name in before | after if before.get(name) != after.get(name)]:
            change = VersionChange(name, before.get(name), after.get(name), [])
            key = (name, said(change.recorded), said(change.now))
            found.setdefault(key, change).stages.append(stage)
    silent = [stage for stage in stages if stage in now and stage not in recorded]
    note = f"{ENVIRONMENT}: the commit has nothing on {', '.join(silent)}, so versions can't be compared"
    return list(found.values()), [note] if silent else []


def environments(text: str | None) -> dict[str, dict[str, Any]]:
    """By stage, of those that can be read."""
    try:
        content = json.loads(text or "{}")
    except ValueError:
        content = {}
    stages = content if isinstance(content, dict) else {}
    return {stage: facts for stage, facts in stages.items() if isinstance(facts, dict)}
