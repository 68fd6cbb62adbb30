"""Second copies of checkpoints: made beside the training, never in its way, and enough for a new machine."""

import os
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from s3_server import S3Server, s3_server

from nima.checkpoint import mirror, names
from nima.checkpoint.mirror import Mirror
from nima.checkpoint.run_folder import RunFolder, open_run
from nima.checkpoint.state import Checkpoint
from nima.corpus.stores import failures
from nima.workspace.errors import UserError

BUCKET = "s3://runs/of/one"
SECOND_BUCKET = "s3://runs/of/another"


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(mirror, "WAITS_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(failures, "TIMEOUT_SECONDS", 5)
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("AWS_")]:
        monkeypatch.delenv(name)


def checkpoint(step: int, num_values: int = 6, best: dict[str, Any] | None = None) -> Checkpoint:
    weight = torch.randn(num_values, generator=torch.Generator().manual_seed(step))
    return Checkpoint(step, {"a": weight}, {"momentum/a": 2 * weight}, {"step": step, "best": best})


class Machine:
    """A place where a run is trained; what was said there."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url, self.said = path / "0123abcd", url, list[str]()

    @contextmanager
    def run(self, **how: Any) -> Iterator[RunFolder]:
        copies = Mirror(self.url, self.path, self.said.append)
        with open_run(self.path, {"lr": 1}, keep=2, mirror=copies, **how) as folder:
            yield folder

    def train(self, *steps: int, num_values: int = 6) -> None:
        with self.run() as folder:
            for step in steps:
                best = folder.save_best(step, {"a": torch.full((3,), float(step))})
                folder.save(checkpoint(step, num_values, best))

    def newest(self) -> int | None:
        with self.run() as folder:
            found = folder.load_newest(self.said.append)
            if found is None:
                return None
            assert torch.equal(found.model["a"], checkpoint(found.step).model["a"])
            assert torch.equal(
                folder.load_best(found.state["best"])["a"], torch.full((3,), float(found.step))
            )
            return found.step


@pytest.fixture(params=["folder", "url of a folder"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    place = tmp_path / "mirror"
    return str(place) if request.param == "folder" else place.as_uri()


def test_a_new_machine_continues_a_run(tmp_path: Path, url: str) -> None:
    first, second = Machine(tmp_path / "first", url), Machine(tmp_path / "second", url)
    first.train(1, 2, 3)
    shutil.rmtree(first.path)
    assert second.newest() == 3
    assert sorted(path.name for path in second.path.glob("step-*")) == ["step-00000003"]
    assert (first.said, second.said) == ([], [])


def test_the_mirror_holds_what_the_folder_holds(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", str(tmp_path / "mirror"))
    machine.train(1)
    names.give_name(machine.path, "mine", "step-00000001")
    machine.train(2, 3, 4)

    def files(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*.*")
            if path.is_file() and path.name not in ("lock", "names.json") and "names" not in path.parts
        }

    assert files(tmp_path / "mirror/0123abcd") == files(machine.path)
    other = Machine(tmp_path / "other", machine.url)
    assert other.newest() == 4
    assert names.names_in(other.path) == {"mine": "step-00000001"}


def test_a_machine_that_is_behind_catches_up_and_one_that_is_ahead_stays(tmp_path: Path) -> None:
    url = str(tmp_path / "mirror")
    first, second = Machine(tmp_path / "first", url), Machine(tmp_path / "second", url)
    first.train(1)
    assert second.newest() == 1
    second.train(2)
    assert first.newest() == 2
    shutil.rmtree(tmp_path / "mirror")
    assert first.newest() == 2


def test_damage_on_the_mirror_is_passed_over(tmp_path: Path) -> None:
    first = Machine(tmp_path / "first", str(tmp_path / "mirror"))
    first.train(1, 2)
    file = tmp_path / "mirror/0123abcd/step-00000002/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    second = Machine(tmp_path / "second", first.url)
    with second.run() as folder:
        assert getattr(folder.load_newest(second.said.append), "step", None) == 1
    assert "model.safetensors: damaged" in second.said[0]
    assert "trying an older one" in second.said[0]


def test_a_run_whose_own_checkpoints_all_broke_takes_the_mirrors(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "here", str(tmp_path / "mirror"))
    machine.train(1, 2)
    for folder in machine.path.glob("step-*"):
        (folder / "model.safetensors").write_bytes(b"")
    assert machine.newest() == 2


def test_a_mirror_that_cannot_be_opened_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"^NIMA_MIRROR: 'sss://x/y' can't be opened: [^\n]+ expected a folder"
    ):
        Mirror("sss://x/y", tmp_path, pytest.fail)


def test_a_slow_mirror_does_not_hold_up_saving_and_the_end_waits_only_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_upload = threading.Event()
    monkeypatch.setattr(mirror.Mirror, "upload", lambda self: may_upload.wait(20))
    monkeypatch.setattr(mirror, "LAST_TRY_SECONDS", 0.1)
    machine = Machine(tmp_path / "here", str(tmp_path / "mirror"))
    started = time.perf_counter()
    machine.train(1, 2, 3)
    assert time.perf_counter() - started < 10
    assert [path.name for path in sorted(machine.path.glob("step-*"))] == ["step-00000002", "step-00000003"]
    assert machine.said == [
        f"mirror file://{tmp_path}/mirror: not up to date after 0.1 seconds more; going on"
    ]
    may_upload.set()


# ------------------------------------------------------------------------------------------- a real S3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("weed")) as server:
        server.filesystem().mkdir("runs")
        yield server


@pytest.fixture
def bucket(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    s3fs.S3FileSystem.clear_instance_cache()


class Line:
    """Passes bytes on to a server, until so many have gone there; then it is cut."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.server, self.left, self.passing = (host, int(port)), 1e12, set[socket.socket]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.left <= 0:
                client.close()
                continue
            server = socket.create_connection(self.server)
            self.passing |= {client, server}
            for source, target, counts in ((client, server, True), (server, client, False)):
                threading.Thread(target=self.copy, args=(source, target, counts), daemon=True).start()

    def copy(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        try:
            while self.left > 0 and (part := source.recv(65536)):
                target.sendall(part)
                self.left -= len(part) if counts else 0
        except OSError:
            pass
        for end in (source, target):
            end.close()


def test_a_server_that_dies_in_the_middle_of_an_upload_costs_only_the_copy(
    tmp_path: Path, bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line(bucket.endpoint)
    monkeypatch.setenv("AWS_ENDPOINT_URL", line.endpoint)
    first = Machine(tmp_path / "first", BUCKET)
    first.train(1)
    line.left = 1_000_000  # of the 4 million bytes that follow
    first.train(2, num_values=500_000)
    assert len(first.said) >= 1
    assert first.said[-1].startswith(f"mirror {BUCKET}: ")
    assert first.said[-1].endswith("; the training goes on, the next save tries again")
    assert "\n" not in first.said[-1]
    line.left = 1e12
    second = Machine(tmp_path / "second", BUCKET)
    assert second.newest() == 1  # the half one does not count
    first.said.clear()
    first.train(3)
    assert first.said == []
    assert Machine(tmp_path / "third", BUCKET).newest() == 3
    line.listener.close()


def test_without_credentials_a_run_that_is_here_goes_on_and_none_begins_beside_the_mirrors(
    tmp_path: Path, bucket: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Machine(tmp_path / "here", SECOND_BUCKET)
    here.train(1)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    here.train(2, 3)
    assert "no credentials; set AWS_ACCESS_KEY_ID" in here.said[0]
    assert here.said[0].endswith("; continuing from what is here")
    assert here.said[1].endswith("; the training goes on, the next save tries again")
    assert len(here.said) == 2  # told once
    with (
        pytest.raises(UserError, match=r"^mirror s3:.*: no credentials[^\n]+unset NIMA_MIRROR"),
        Machine(tmp_path / "new", SECOND_BUCKET).run(),
    ):
        pass
