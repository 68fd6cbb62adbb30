"""What a revision holds - params, metrics, curves, samples - read without touching the workspace.

A revision is a commit, branch, tag or experiment, or `workspace`: the files as they lie. Files that Git
tracks and files that DVC caches are read in the same way; what neither holds is listed as absent.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nima.repository import git
from nima.workspace.errors import UserError
from nima.workspace.params import nearest

WORKSPACE = "workspace"
SHORT = 7
STAGES = ("prepare", "tokenize", "split", "train", "evaluate", "generate_samples")
CURVES = "plots/train/metrics"
SAMPLES = "data/samples/samples.jsonl"
Points = list[tuple[float, float]]
"""(step, value)"""


def project_root(start: Path | None = None) -> Path:
    """The folder with dvc.yaml and params.yaml at or above `start`. Raises `UserError` if there is none."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents):
        if (folder / "dvc.yaml").is_file() and (folder / "params.yaml").is_file():
            return folder
    raise UserError(f"{start}: no project here or above it; go to a folder with dvc.yaml and params.yaml")


# ------------------------------------------------------------------------------------------------ names


def commit_of(root: Path, name: str) -> str:
    """The commit that `name` means to Git, or the experiment of this name. Raises `UserError` if neither."""
    if name == WORKSPACE:
        return WORKSPACE
    git.output(root, "rev-parse", "--git-dir")
    if not name.startswith("-"):
        try:
            return git.output(root, "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}").strip()
        except UserError:
            pass
    found = [(ref, commit) for ref, commit in experiment_refs(root).items() if ref.endswith(f"/{name}")]
    if len(found) == 1:
        return found[0][1]
    if found:
        commits = ", ".join(commit[:SHORT] for _, commit in found)
        raise UserError(f"{name}: several experiments have this name; give the commit instead: {commits}")
    shallow = git.output(root, "rev-parse", "--is-shallow-repository").strip() == "true"
    way_out = "; this clone is shallow: git fetch --unshallow" if shallow else nearest(name, names(root))
    raise UserError(f"{name}: no commit, branch, tag or experiment has this name{way_out}")


def experiment_refs(root: Path) -> dict[str, str]:
    """Commits by ref, refs/exps/BASELINE/NAME, of all experiments."""
    lines = git.output(root, "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    refs = dict(line.split(" ") for line in lines)
    return {ref: commit for ref, commit in refs.items() if len(ref.split("/")) == 5 and is_baseline(ref)}


def is_baseline(ref: str) -> bool:
    """DVC's own marks (refs/exps/exec, refs/exps/celery) are no experiments."""
    first, second = ref.split("/")[2:4]
    return len(first) == 2 and len(second) == 38


def names(root: Path) -> list[str]:
    heads = git.output(root, "for-each-ref", "--format=%(refname:short)", "refs/heads", "refs/tags").split()
    return [*heads, *(ref.rsplit("/", 1)[1] for ref in experiment_refs(root)), "HEAD", WORKSPACE]


# --------------------------------------------------------------------------------------------- contents


@dataclass(frozen=True)
class Revision:
    """One state of the project. Reading is lazy; `absent` fills with what could not be read."""

    root: Path
    name: str
    commit: str
    absent: list[str] = field(default_factory=list)

    @classmethod
    def find(cls, root: Path, name: str) -> "Revision":
        return cls(root, name, commit_of(root, name))

    @property
    def is_workspace(self) -> bool:
        return self.commit == WORKSPACE

    @property
    def label(self) -> str:
        """The name, with the commit where the name is not itself the commit's beginning."""
        if self.is_workspace or self.commit.startswith(self.name):
            return self.name[: SHORT + 5]
        return f"{self.name} ({self.commit[:SHORT]})"

    @cached_property
    def files(self) -> Any:
        from dvc.api import DVCFileSystem
        from dvc.exceptions import DvcException

        try:
            return DVCFileSystem(url=str(self.root), rev=None if self.is_workspace else self.commit)
        except DvcException as error:
            raise UserError(f"{self.name}: {' '.join(str(error).split())}") from None

    def text(self, path: str) -> str | None:
        """A file's text; None, and a mark in `absent`, if it is neither there nor in DVC's cache."""
        from dvc.exceptions import DvcException
        from dvc_data.index import DataIndexDirError

        try:
            content: bytes = self.files.read_bytes(path)
        except (OSError, DvcException, DataIndexDirError):
            if path not in self.absent:
                self.absent.append(path)
            return None
        return content.decode("utf-8", errors="replace")

    def content(self, path: str) -> dict[str, Any]:
        """A JSON object; empty if there is none."""
        text = self.text(path)
        return self.parsed(path, text) if text is not None else {}

    def parsed(self, path: str, text: str) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise UserError(f"{self.name}: {path}: not a JSON object; run the stage that writes it again")
        return found

    @cached_property
    def param_tree(self) -> dict[str, Any]:
        """params.yaml as it was, unchecked: an older one may fit another schema."""
        from dvc.utils.serialize import ParseError, parse_yaml

        text = self.text("params.yaml")
        if text is None:
            raise UserError(f"{self.name}: no params.yaml there; name a revision of this project")
        try:
            return dict(parse_yaml(text, "params.yaml") or {})
        except (ParseError, ValueError, TypeError):
            raise UserError(f"{self.name}: params.yaml there is not valid YAML") from None

    @cached_property
    def params(self) -> dict[str, Any]:
        """Values by dotted key."""
        return dict(flat(self.param_tree))

    @cached_property
    def metric_tree(self) -> dict[str, dict[str, Any]]:
        """The content of metrics/STAGE.json by stage, of stages that have one."""
        found = {stage: self.content(f"metrics/{stage}.json") for stage in STAGES}
        return {stage: content for stage, content in found.items() if content}

    @cached_property
    def timing(self) -> dict[str, Any]:
        """metrics/timing.json: clock figures by stage."""
        return self.content("metrics/timing.json")

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Finite numbers by stage and dotted key, such as evaluate.test.bits_per_byte; clock figures too."""
        values = [*flat(self.metric_tree), *flat(self.timing, "timing.")]
        return {name: float(value) for name, value in values if is_number(value)}

    def curve(self, name: str) -> Points:
        """One of DVCLive's curves, such as validation/loss; empty if there is none."""
        path, column = f"{CURVES}/{name}.tsv", name.rsplit("/", 1)[-1]
        rows = csv.DictReader(io.StringIO(self.text(path) or ""), delimiter="\t")
        try:
            points = [(float(row["step"]), float(row[column])) for row in rows]
        except (KeyError, TypeError, ValueError):
            expected = f"columns step and {column} with numbers"
            raise UserError(f"{self.name}: {path}: expected {expected}; run the stage train again") from None
        return [point for point in points if all(map(math.isfinite, point))]

    @cached_property
    def samples(self) -> list[dict[str, Any]]:
        """Records of data/samples/samples.jsonl."""
        lines = (self.text(SAMPLES) or "").split("\n")
        return [self.parsed(SAMPLES, line) for line in lines if line.strip()]


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; members of a list by their `name`, else by position."""
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from flat(value, f"{prefix}{key}.")
    elif isinstance(tree, list) and any(isinstance(value, dict) for value in tree):
        for position, value in enumerate(tree):
            key = value.get("name", position) if isinstance(value, dict) else position
            yield from flat(value, f"{prefix.removesuffix('.')}[{key}].")
    else:
        yield prefix.removesuffix("."), tree
