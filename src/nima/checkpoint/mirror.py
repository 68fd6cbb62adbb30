"""A second copy of a run's checkpoints on any file system that fsspec knows; made beside the training.

Below the mirror's URL lies a folder for each run with the very files of the run's folder. A checkpoint's
manifest is uploaded last, so that one without is not whole; what is downloaded is verified. Nothing that
happens to the mirror stops or slows the training: it is told once, and tried again with the next save.
"""

import contextlib
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nima.checkpoint.background import lower_priority
from nima.checkpoint.names import NAME, give_name
from nima.checkpoint.state import MANIFEST, Manifest, read_manifest, verify, verify_file
from nima.checkpoint.store import Store
from nima.corpus.stores.failures import Failure
from nima.workspace.errors import CheckpointError, UserError
from nima.workspace.outputs import remove

WAITS_SECONDS = (1.0, 5.0)
"""Before the second and the third try of an upload."""
LAST_TRY_SECONDS = 60.0
"""How long the end of a training waits for the mirror."""


class Mirror:
    """The copies of the run in `path`, below `url`. `say` hears what a person should know."""

    def __init__(self, url: str, path: Path, say: Callable[[str], None]) -> None:
        self.store = Store(url, path.name)
        self.path, self.say = path, say
        self.changed = threading.Condition()
        self.is_dirty = self.is_ended = False
        self.thread: threading.Thread | None = None
        self.told = ""

    # ----------------------------------------------------------------------------------------- uploads

    def wake(self) -> None:
        """There is something new to copy. Returns at once."""
        with self.changed:
            self.is_dirty = True
            self.changed.notify()
        if self.thread is None:
            self.thread = threading.Thread(target=self.copy_changes, name="mirror", daemon=True)
            self.thread.start()

    def close(self) -> None:
        """Wait for the last copy, but not forever. Says what is missing then."""
        if self.thread is None:
            return
        with self.changed:
            self.is_ended = True
            self.changed.notify()
        self.thread.join(LAST_TRY_SECONDS)
        if self.thread.is_alive():
            self.say(f"{self.store.place}: not up to date after {LAST_TRY_SECONDS:g} seconds more; going on")

    def copy_changes(self) -> None:
        lower_priority()
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.is_dirty or self.is_ended)
                if not self.is_dirty:
                    return
                self.is_dirty = False
            self.copy()

    def copy(self) -> None:
        """Make the mirror equal to the folder, in up to three tries."""
        for seconds in (*WAITS_SECONDS, None):
            try:
                self.upload()
            except Failure as failure:
                if failure.may_pass and seconds is not None:
                    with self.changed:  # a newer checkpoint, or the end, shortens the wait
                        self.changed.wait_for(lambda: self.is_dirty or self.is_ended, seconds)
                    continue
                self.tell(f"{failure}; the training goes on, the next save tries again")
            else:
                self.told = ""
            return

    def tell(self, warning: str) -> None:
        """Say it, unless it is what was said last."""
        if warning != self.told:
            self.say(f"{self.store.place}: {warning}")
        self.told = warning

    def upload(self) -> None:
        """Raises `Failure`."""
        present = self.store.steps()
        with self.links() as steps:
            for step in sorted(steps, reverse=True):  # what a new machine would continue from comes first
                local = read_manifest(steps[step])
                if self.store.manifest_text(step) != (steps[step] / MANIFEST).read_bytes():
                    self.upload_step(step, steps[step], local)
        with contextlib.suppress(FileNotFoundError):
            self.store.put(self.path / "run.json", "run.json")
        self.upload_names()
        # A broken or foreign newer one may be all that another machine has: it stays.
        newest = max(steps, default="")
        for step in present - steps.keys():
            if step < newest:
                self.store.remove(step)
        self.remove_unnamed_best(steps)

    def upload_step(self, step: str, folder: Path, manifest: Manifest) -> None:
        best = manifest.best and folder.parent / manifest.best["file"]
        if best and best.exists() and not self.store.has(best.name, best.stat().st_size):
            self.store.put(best, best.name)
        for name in manifest.files:
            self.store.put(folder / name, f"{step}/{name}")
        self.store.put(folder / MANIFEST, f"{step}/{MANIFEST}")

    @contextlib.contextmanager
    def links(self) -> Iterator[dict[str, Path]]:
        """Hard links to the files of all checkpoints: pruning may go on while they are uploaded."""
        aside = self.path / "partial-mirror"
        remove(aside)
        aside.mkdir()
        try:
            for best in self.path.glob("best-*"):
                link(best, aside / best.name)
            yield {
                folder.name: aside / folder.name
                for folder in sorted(self.path.glob("step-*"))
                if link_folder(folder, aside / folder.name)
            }
        finally:
            remove(aside)

    def upload_names(self) -> None:
        named = {file.name: file.resolve().name for file in self.path.glob("names/*") if file.exists()}
        text = json.dumps(named, sort_keys=True).encode()
        if self.store.content("names.json") != text and (named or self.store.content("names.json")):
            self.store.write("names.json", text)

    def remove_unnamed_best(self, steps: dict[str, Path]) -> None:
        there = {name for name in self.store.names() if name.startswith("best-")}
        for name in there - {best.name for best in self.path.glob("best-*")} if steps else ():
            self.store.remove(name)

    # --------------------------------------------------------------------------------------- downloads

    def restore(self) -> list[str]:
        """Download what the folder lacks: the newest whole checkpoint, if it is newer, and the named ones.

        Returns what was restored. Raises `UserError` when the mirror can't be asked and nothing is here, so
        that nobody trains from zero what is there already.
        """
        here = {folder.name for folder in self.path.glob("step-*")}
        try:
            return self.download(here)
        except Failure as failure:
            if here:
                self.say(f"{self.store.place}: {failure}; continuing from what is here")
                return []
            raise UserError(
                f"{self.store.place}: {failure}; nothing is here to continue from: mend it, or unset "
                "NIMA_MIRROR to train without it"
            ) from None

    def download(self, here: set[str]) -> list[str]:
        restored: list[str] = []
        named = self.store.mapping("names.json")
        is_newest_found = False
        for step in sorted(self.store.steps() - here, reverse=True):
            is_newer = not is_newest_found and step > max(here, default="")
            if not is_newer and step not in named.values():
                continue
            try:
                self.download_step(step)
                restored.append(step)
                is_newest_found = is_newest_found or is_newer
            except CheckpointError as error:
                self.say(f"{self.store.place}: {error}; trying an older one")
        for name, step in named.items():
            if step in restored and NAME.fullmatch(name):
                give_name(self.path, name, step)
        return restored

    def download_step(self, step: str) -> None:
        """Raises `CheckpointError` if it is not whole over there, `Failure` if it can't be had."""
        partial = self.path / f"partial-{step}"
        remove(partial)
        partial.mkdir(parents=True)
        try:
            self.store.get(f"{step}/{MANIFEST}", partial / MANIFEST)
            manifest = read_manifest(partial)
            if manifest.run != self.path.name:
                raise CheckpointError(f"{step}: belongs to another run, {manifest.run}")
            for name in manifest.files:
                self.store.get(f"{step}/{name}", partial / name)
            verify(partial)
            if manifest.best is not None:
                self.download_best(manifest.best)
            partial.rename(self.path / step)
        finally:
            remove(partial)

    def download_best(self, best: dict[str, Any]) -> None:
        final = self.path / best["file"]
        if final.exists():
            return
        partial = final.with_name(f"partial-{final.name}")
        try:
            self.store.get(best["file"], partial)
            verify_file(partial, best)
            partial.rename(final)
        finally:
            remove(partial)


def link(file: Path, to: Path) -> None:
    """A hard link, or a copy where the file system has none. A file that is gone is no matter."""
    with contextlib.suppress(FileNotFoundError):
        try:
            to.hardlink_to(file)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copy2(file, to)


def link_folder(folder: Path, to: Path) -> bool:
    """Whether all of a checkpoint was there to be linked."""
    to.mkdir()
    with contextlib.suppress(OSError):
        for file in folder.iterdir():
            link(file, to / file.name)
    try:
        manifest = read_manifest(to)
    except CheckpointError:
        return False
    return all((to / name).exists() for name in manifest.files)
