"""A folder of files on a server, or on any file system that fsspec knows."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nima.checkpoint.state import MANIFEST
from nima.corpus.stores.buckets import STORES, store
from nima.corpus.stores.failures import Failure, client_errors, failure_of, said, without_secrets
from nima.workspace.errors import CheckpointError, UserError


class Store:
    """One folder on a server or a file system. Everything raises `Failure`, with a reason in one line."""

    def __init__(self, url: str, run: str) -> None:
        if "://" not in url:
            url = Path(url).expanduser().resolve().as_uri()
        self.scheme, _, path = url.partition("://")
        self.root = f"{path.rstrip('/')}/{run}" if run else path.rstrip("/")
        self.place = f"mirror {without_secrets(url)}"
        self.files = file_system(self.scheme, url)

    def names(self) -> set[str]:
        """Of the files and folders in it."""
        with self.failures():
            try:
                return {
                    str(path).rstrip("/").rpartition("/")[2]
                    for path in self.files.ls(self.root, detail=False)
                }
            except FileNotFoundError:
                return set()

    def steps(self) -> set[str]:
        return {name for name in self.names() if name.startswith("step-")}

    def has(self, name: str, num_bytes: int) -> bool:
        with self.failures():
            try:
                return self.files.info(f"{self.root}/{name}")["size"] == num_bytes
            except FileNotFoundError:
                return False

    def content(self, name: str) -> bytes:
        """Nothing if it is not there."""
        with self.failures():
            try:
                return self.files.cat_file(f"{self.root}/{name}")
            except FileNotFoundError:
                return b""

    def manifest_text(self, step: str) -> bytes:
        return self.content(f"{step}/{MANIFEST}")

    def mapping(self, name: str) -> dict[str, str]:
        """What a JSON file maps to what; what is no such file maps nothing."""
        try:
            found = json.loads(self.content(name) or b"{}")
        except (ValueError, RecursionError):
            return {}
        return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}

    def put(self, file: Path, name: str) -> None:
        target = f"{self.root}/{name}"
        with self.failures():
            if self.is_local:
                self.files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self.files.put_file(str(file), target)

    def write(self, name: str, content: bytes) -> None:
        with self.failures():
            self.files.pipe_file(f"{self.root}/{name}", content)

    def get(self, name: str, file: Path) -> None:
        with self.failures():
            try:
                self.files.get_file(f"{self.root}/{name}", str(file))
            except FileNotFoundError:
                raise CheckpointError(f"{name}: not on the mirror") from None

    def remove(self, name: str) -> None:
        with self.failures(), contextlib.suppress(FileNotFoundError):
            self.files.rm(f"{self.root}/{name}", recursive=True)

    @property
    def is_local(self) -> bool:
        """Object stores have no folders that must be made first."""
        return self.scheme not in STORES

    @contextlib.contextmanager
    def failures(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError:
            raise
        except client_errors(self.scheme) as error:
            if self.scheme in STORES:
                raise failure_of(error, self.scheme) from None
            raise Failure(said(error) or type(error).__name__, may_pass=True) from None


def file_system(scheme: str, url: str) -> Any:
    """Raises `UserError` for what no package here can open."""
    if scheme in STORES:
        return store(scheme)
    import fsspec

    try:
        return fsspec.filesystem(scheme)
    except (ValueError, ImportError) as error:
        raise UserError(
            f"NIMA_MIRROR: {without_secrets(url)!a} can't be opened: {said(error)}; expected a folder, "
            f"or a URL such as s3://BUCKET/FOLDER ({', '.join(STORES)}, or another that fsspec knows)"
        ) from None
