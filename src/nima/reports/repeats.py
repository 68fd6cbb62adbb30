"""The same revision again with other seeds, each a real `dvc exp run` in a clone that shares DVC's cache.

An experiment COMMIT-seed-N on top of the commit it repeats holds the result, so that it is found again, is
shown by `dvc exp list -A` and can be pushed. The clone is in .nima/repeats; an interrupted one is continued.
"""

import shutil
from collections.abc import Callable

from nima.repository.revisions import SHORT, Revision, experiment_refs
from nima.repository.shared_clone import reason_of, shared_clone
from nima.workspace import runtime
from nima.workspace.errors import UserError
from nima.workspace.signals import StopRequest

SEED = "training.seed"


def known_repeats(revision: Revision) -> dict[int, Revision]:
    """Repeats that exist, by seed."""
    if revision.is_workspace:
        return {}
    start = f"{baseline(revision)}/{repeat_name(revision, '')}"
    refs = {ref: commit for ref, commit in experiment_refs(revision.root).items() if ref.startswith(start)}
    found = {}
    for ref, commit in refs.items():
        if (seed := ref.removeprefix(start)).isdecimal():
            found[int(seed)] = Revision(revision.root, ref.rsplit("/", 1)[1], commit)
    return dict(sorted(found.items()))


def baseline(revision: Revision) -> str:
    return f"refs/exps/{revision.commit[:2]}/{revision.commit[2:]}"


def repeat_name(revision: Revision, seed: int | str) -> str:
    return f"{revision.commit[:SHORT]}-seed-{seed}"


def missing_seeds(revision: Revision, num_seeds: int) -> list[int]:
    """Seeds after the revision's own that are yet to run. Raises `UserError` if it can't be repeated."""
    if revision.is_workspace:
        raise UserError("--seeds: the workspace is no commit; commit it, or name an experiment or HEAD")
    own = revision.params.get(SEED)
    if not isinstance(own, int):
        raise UserError(f"{revision.name}: params.yaml there has no number {SEED}, so no seed can be changed")
    known = known_repeats(revision)
    return [seed for seed in range(own + 1, own + num_seeds) if seed not in known]


def repeat(revision: Revision, num_seeds: int, tell: Callable[[str], None]) -> None:
    """Run what is missing so that the revision has runs with `num_seeds` seeds, its own one included."""
    if not (seeds := missing_seeds(revision, num_seeds)):
        return
    folder = runtime.load(revision.root).scratch / "repeats" / revision.commit[:12]
    with shared_clone(revision.root, revision.commit, folder) as clone, StopRequest() as stop:
        for number, seed in enumerate(seeds, start=1):
            log = folder / f"seed-{seed}.log"
            tell(f"{revision.label}: run {number} of {len(seeds)}, {SEED} {seed} (log: {log})")
            if not clone.run(repeat_name(revision, seed), [f"{SEED}={seed}"], log, stop):
                what = f"{revision.name} with {SEED} {seed}"
                raise UserError(f"{what}: dvc exp run failed: {reason_of(log)}; all of it: {log}")
        shutil.rmtree(folder)
