"""Data goes to an S3-compatible server and comes back, and what is wrong there is said in one line."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import Project
from guides import blocks, follow
from http_server import QuietServer
from object_stores import AzureAnswers, GoogleAnswers, object_store
from s3_server import S3Server, free_ports, s3_server
from team import Team, toy_project

from nima import remotes
from nima.workspace.errors import UserError

pytest_plugins = ("team_fixtures",)
AZURE_ACCOUNT = "DefaultEndpointsProtocol=http;AccountName=tester;AccountKey=a2V5;BlobEndpoint={}/tester"


# ------------------------------------------------------------------------------------ there and back


def test_a_fresh_clone_pulls_what_was_pushed_and_has_nothing_to_run(
    finished_project: Project, server: S3Server, tmp_path: Path
) -> None:
    founder = finished_project.copy_to(tmp_path / "founder" / "project")
    team = Team(tmp_path, server, "whole-pipeline")
    team.share(founder.path)
    clone = team.clone("clone")
    assert not (clone.path / "models/model").exists()
    clone.dvc("fetch", "-q")
    assert not (clone.path / "models/model").exists(), "fetch fills the cache alone"
    clone.dvc("pull", "-q")
    assert "Running" not in clone.dvc("repro").stdout
    assert clone.run("git", "status", "--porcelain").stdout == ""
    assert clone.outputs() == founder.outputs()
    done = clone.run("python", "-m", "nima.cli", "remote", "check", "--write")
    assert done.stdout == f"storage (s3://whole-pipeline/dvc at {server.endpoint}): answers\n"


def test_a_server_killed_in_the_middle_of_a_push_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "s3"
    with s3_server(folder) as server:
        team = Team(tmp_path, server, "bucket")
        project = empty_project(team, tmp_path / "a")
        (project.path / "blobs").mkdir()
        for number in range(60):
            (project.path / "blobs" / f"{number}.bin").write_bytes(os.urandom(100_000))
        project.dvc("add", "-q", "blobs")
        server.filesystem().mkdir("bucket")
        project.dvc("remote", "add", "-q", "-d", "storage", "s3://bucket/dvc")
        project.env["AWS_MAX_ATTEMPTS"] = "1"
        push = project.start("dvc", "push", "-j", "1")
        while len(team.objects()) < 5:
            assert push.poll() is None, push.stdout and push.stdout.read()
    assert push.stdout is not None
    told = push.stdout.read()
    assert push.wait() != 0
    assert "failed to push" in told or "Could not connect" in told

    with s3_server(folder) as again:
        team = Team(tmp_path, again, "bucket")
        assert 5 <= len(team.objects()) < 61
        project.env["AWS_ENDPOINT_URL"] = again.endpoint
        project.dvc("push", "-q")
        assert len(team.objects()) == 61
        other = team.project(tmp_path / "b")
        project.copy_to(other.path)
        for place in (other.path / ".dvc/cache", other.path / "blobs"):
            subprocess.run(["rm", "-rf", str(place)], check=True)
        other.dvc("pull", "-q")
    assert other.files("blobs") == project.files("blobs")


def test_the_guides_commands_set_up_a_remote_that_others_can_use(server: S3Server, tmp_path: Path) -> None:
    team = Team(tmp_path, server, "of-the-guide")
    server.filesystem().mkdir(team.bucket)
    toy_project(tmp_path / "founder" / "project")
    founder = team.project(tmp_path / "founder" / "project")
    founder.run("git", "clone", "-q", "--bare", ".", str(team.origin))
    founder.run("git", "remote", "add", "origin", team.url)
    founder.run("git", "config", "push.autoSetupRemote", "true")
    keys = {name: founder.env.pop(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    del founder.env["AWS_ENDPOINT_URL"]
    names = {
        "https://s3.example.com": server.endpoint,
        "https://git.example.com/acme/nima.git": f"{team.url} .",
        "$ nima ": f"$ {sys.executable} -m nima.cli ",
        "acme-models": team.bucket,
        "id KEY": f"id {server.access_key}",
        "key SECRET": f"key {server.secret_key}",
    }
    address, secrets, daily, elsewhere = blocks("remotes.md", "console")
    for block in (address, secrets, daily):
        follow(founder, block, names)
    tracked = founder.run("git", "grep", "-F", server.secret_key, "HEAD", "--", ".dvc", check=False)
    assert tracked.returncode == 1, "credentials stay out of Git"

    (tmp_path / "other").mkdir()
    other = team.project(tmp_path / "other")
    other.env |= keys
    assert "up to date" in follow(other, elsewhere, names)
    assert other.read("models/model/weights") == founder.read("models/model/weights")


# ------------------------------------------------------------------------------ what can be wrong


def empty_project(team: Team, path: Path) -> Project:
    path.mkdir()
    project = team.project(path)
    project.run("git", "init", "-q", "-b", "main")
    project.dvc("init", "-q")
    project.dvc("config", "core.analytics", "false")
    return project


@pytest.fixture(scope="module")
def place(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty project, whose .dvc/config each test writes anew."""
    folder = tmp_path_factory.mktemp("remotes")
    server.filesystem().mkdir("checked")
    return empty_project(Team(folder, server, "checked"), folder / "project").path


Settings = Callable[..., None]


@pytest.fixture
def remote(place: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Sets the remote's URL and options; the server and the key are right until a test says otherwise."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    files = {"AWS_CONFIG_FILE": str(place / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(place / "none")}
    for name, value in (server.environment | files | {"AWS_MAX_ATTEMPTS": "1", "HOME": str(place)}).items():
        monkeypatch.setenv(name, value)
    forget_clients()

    def write(url: str = "s3://checked/dvc", **options: str) -> None:
        lines = ["[core]", "remote = storage", '[remote "storage"]', f"url = {url}"]
        lines += [f"{key} = {value}" for key, value in options.items()]
        (place / ".dvc/config").write_text("\n".join(lines) + "\n", encoding="utf-8")

    write()
    return write


def forget_clients() -> None:
    """fsspec keeps clients by their options, and does not see that the environment changed."""
    import adlfs
    import gcsfs
    import s3fs

    for kind in (s3fs.S3FileSystem, gcsfs.GCSFileSystem, adlfs.AzureBlobFileSystem):
        kind.clear_instance_cache()


def problem(place: Path, *, writing: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        remotes.check(place, writing=writing)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("remote")
def test_a_good_remote_answers_and_keeps_nothing_of_the_check(place: Path, server: S3Server) -> None:
    found = remotes.check(place, writing=True)
    assert (found.name, found.url, found.endpoint) == ("storage", "s3://checked/dvc", server.endpoint)
    assert server.filesystem().find("checked") == []


@pytest.mark.usefixtures("remote")
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "the server does not know this access key; check AWS_ACCESS_KEY_ID"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "the secret key is not that of the access key; check AWS_SECRET"),
        ("AWS_PROFILE", "absent", "~/.aws/config has no such profile; check AWS_PROFILE"),
    ],
)
def test_wrong_credentials_are_told_apart(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(name, value)
    assert told in problem(place)


@pytest.mark.usefixtures("remote")
def test_no_credentials_at_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in problem(place)


@pytest.mark.usefixtures("remote")
def test_who_may_only_read_hears_it_when_asked_to_write(
    place: Path, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.reader_key)
    remotes.check(place)
    assert "these credentials may not write there; docs/remotes.md lists" in problem(place, writing=True)


def test_a_bucket_that_is_not_there(place: Path, remote: Settings, server: S3Server) -> None:
    remote("s3://absent/dvc")
    where = f"remote storage (s3://absent/dvc at {server.endpoint})"
    assert problem(place) == (
        f"{where}: there is no such bucket; make it, or correct the URL: dvc remote modify storage url URL"
    )


def test_a_server_that_is_down(place: Path, remote: Settings) -> None:
    (port,) = free_ports(1)
    remote(endpointurl=f"http://127.0.0.1:{port}")
    told = problem(place)
    assert told.startswith(f"remote storage (s3://checked/dvc at http://127.0.0.1:{port}): nothing answers")
    assert "AWS_ENDPOINT_URL" in told


class Refusal(BaseHTTPRequestHandler):
    """An S3 server's answer to everything."""

    status = 400
    code = "ExpiredToken"

    def do_GET(self) -> None:
        body = f"<Error><Code>{self.code}</Code><Message>Something.</Message></Error>".encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Broken(Refusal):
    status = 500
    code = "InternalError"


@contextmanager
def served(answers: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with QuietServer(("127.0.0.1", 0), answers) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}"
        finally:
            web.shutdown()
            thread.join()


def test_credentials_that_have_expired(
    place: Path, remote: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of yesterday")
    with served(Refusal) as url:
        remote(endpointurl=url)
        assert "the credentials have expired; sign in again, or set new keys" in problem(place)


def test_a_server_with_an_error_of_its_own(place: Path, remote: Settings) -> None:
    with served(Broken) as url:
        remote(endpointurl=url)
        assert "the server has an error of its own; is its disk full?" in problem(place)


@pytest.mark.usefixtures("remote")
def test_a_project_without_a_remote(place: Path) -> None:
    (place / ".dvc/config").write_text("[core]\nanalytics = false\n", encoding="utf-8")
    told = "no remote; dvc remote add -d storage s3://BUCKET/FOLDER (docs/remotes.md)"
    assert problem(place) == told
    (place / ".dvc/config").write_text("[core]\nremote = gone\n", encoding="utf-8")
    assert problem(place) == ".dvc/config: config file error: remote 'gone' doesn't exist"
    (place / ".dvc/config").write_text("[core\n", encoding="utf-8")
    assert problem(place).startswith(".dvc/config: config file error: Invalid line ('[core')")


def test_a_folder_without_a_project(tmp_path: Path) -> None:
    assert problem(tmp_path).startswith(f"{tmp_path}: no DVC project here")


def test_a_secret_in_the_file_that_git_shares_is_refused(place: Path, remote: Settings) -> None:
    remote(access_key_id="tester", secret_access_key="not-a-secret")
    told = problem(place)
    assert told.startswith((".dvc/config: holds access_key_id", ".dvc/config: holds secret_access_key"))
    assert ".dvc/config.local" in told
    assert "not-a-secret" not in told


def test_a_secret_in_the_file_that_git_ignores_is_used(
    place: Path, remote: Settings, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    local = place / ".dvc/config.local"
    keys = f"access_key_id = {server.access_key}\nsecret_access_key = {server.secret_key}\n"
    local.write_text(f"['remote \"storage\"']\n{keys}", encoding="utf-8")
    try:
        remotes.check(place, writing=True)
        ignored = ["git", "check-ignore", "-q", ".dvc/config.local"]
        assert subprocess.run(ignored, cwd=place, check=False).returncode == 0
    finally:
        local.unlink()


def test_a_folder_that_all_see_needs_no_server(place: Path, remote: Settings, tmp_path: Path) -> None:
    remote(str(tmp_path / "shared"))
    assert str(remotes.check(place, writing=True)) == f"storage ({tmp_path / 'shared'})"


# ---------------------------------------------------------------------------------- other storage


@pytest.mark.parametrize(
    ("scheme", "answers", "refusal"),
    [
        ("gs", GoogleAnswers, "can't list there; check URL and rights (docs/remotes.md): "),
        ("azure", AzureAnswers, "these credentials may not list there; docs/remotes.md lists the rights"),
    ],
)
def test_google_and_azure_are_asked_in_the_same_way(
    place: Path, remote: Settings, monkeypatch: pytest.MonkeyPatch, scheme: str, answers: type, refusal: str
) -> None:
    remote(f"{scheme}://corpus/nima")
    with object_store(answers, "corpus") as service:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", service.url)
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", AZURE_ACCOUNT.format(service.url))
        service.put("nima/files/md5/aa/bb", b"an object")
        assert str(remotes.check(place)) == f"storage ({scheme}://corpus/nima)"
        service.refuses = True
        forget_clients()
        assert refusal in problem(place)
        service.refuses, service.bucket = False, "another"
        forget_clients()
        assert "there is no such bucket" in problem(place)


def test_azure_without_an_account(place: Path, remote: Settings) -> None:
    remote("azure://corpus/nima")
    assert "no credentials; set AZURE_STORAGE_CONNECTION_STRING" in problem(place)


@pytest.mark.parametrize(("scheme", "plugin"), [("s3", "dvc_s3"), ("gs", "dvc_gs"), ("azure", "dvc_azure")])
def test_storage_without_its_extra_says_what_to_install(
    place: Path, remote: Settings, monkeypatch: pytest.MonkeyPatch, scheme: str, plugin: str
) -> None:
    remote(f"{scheme}://corpus/nima")
    monkeypatch.setitem(sys.modules, plugin, None)
    told = f"{scheme}://corpus/nima: needs the extra {scheme}: pip install 'nima-lm[{scheme}]'"
    assert problem(place) == told
