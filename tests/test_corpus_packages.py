import base64
import hashlib
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_server import WebServer, web_server

from nima.corpus.sources import streams
from nima.corpus.sources.sources import fetch_packages, files_of
from nima.workspace.errors import SourceError
from nima.workspace.params import LimitsParams, PackageParams, SourceParams


def packed(archive: Path, glob: str = "**/*", sha256: str | None = None) -> SourceParams:
    found = hashlib.sha256(archive.read_bytes()).hexdigest() if sha256 is None else sha256
    package = PackageParams(index="pypi", name="corpus-demo", version="1.0", sha256=found)
    return SourceParams(name="s", package=package, glob=glob)


def read(source: SourceParams, packages: Path) -> dict[str, bytes]:
    content = {}
    for file in files_of(source, packages, LimitsParams(), packages / "scratch"):
        with file.open() as stream:
            content[file.key] = stream.read()
    return content


def write_wheel(folder: Path, members: dict[str, str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "corpus_demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


def write_sdist(folder: Path, members: dict[str, str], name: str = "corpus_demo-1.0.tar.gz") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as archive:
        for key, text in members.items():
            member = tarfile.TarInfo(key)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return folder / name


# -------------------------------------------------------------------------------------- package files

MEMBERS = {"demo/docs/b.rst": "b", "demo/docs/x/y/a.rst": "a", "demo/docs/a.rst": "c", "demo/code.py": "d"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Where the package corpus-demo 1.0 is kept."""
    return tmp_path / "packages" / "corpus-demo-1.0"


def test_files_inside_a_wheel_are_read_in_order_without_unpacking(cache: Path) -> None:
    wheel = write_wheel(cache, MEMBERS)
    found = read(packed(wheel, "demo/docs/**/*.rst"), cache.parent)
    assert list(found.items()) == [
        ("demo/docs/a.rst", b"c"),
        ("demo/docs/b.rst", b"b"),
        ("demo/docs/x/y/a.rst", b"a"),
    ]
    assert list(cache.iterdir()) == [wheel]


def test_the_folder_around_an_sdist_is_no_part_of_its_keys(cache: Path) -> None:
    sdist = write_sdist(cache, {f"corpus_demo-1.0/{name}": text for name, text in MEMBERS.items()})
    assert read(packed(sdist, "demo/docs/**/*.rst"), cache.parent) == {
        "demo/docs/a.rst": b"c",
        "demo/docs/b.rst": b"b",
        "demo/docs/x/y/a.rst": b"a",
    }


@pytest.mark.parametrize("name", ["../evil.rst", "/evil.rst", "demo/../../evil.rst", "..\\evil.rst"])
@pytest.mark.parametrize("write", [write_wheel, write_sdist])
def test_a_name_that_points_outside_the_package_is_refused(cache: Path, write, name: str) -> None:
    archive = write(cache, MEMBERS | {name: "evil"})
    with pytest.raises(SourceError, match="points outside the archive"):
        read(packed(archive), cache.parent)


def test_the_right_checksum_is_required_of_a_kept_package(cache: Path) -> None:
    wheel = write_wheel(cache, MEMBERS)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=rf"wrong checksum: expected sha256 {'0' * 64}, found {found}"):
        read(packed(wheel, sha256="0" * 64), cache.parent)


def test_a_package_damaged_after_fetching_is_noticed(cache: Path) -> None:
    wheel = write_wheel(cache, MEMBERS)
    source = packed(wheel)
    read(source, cache.parent)
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"x")
    with pytest.raises(SourceError, match=r"py3-none-any\.whl: wrong checksum"):
        read(source, cache.parent)


def test_a_package_that_is_no_archive_is_named(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "corpus_demo-1.0.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(SourceError, match=r"1\.0\.tar\.gz: cannot be unpacked: Not a gzipped file"):
        read(packed(cache / "corpus_demo-1.0.tar.gz"), cache.parent)


def test_a_damaged_member_is_named(cache: Path) -> None:
    wheel = write_wheel(cache, {"a.txt": "a" * 1000, "b.txt": "b"})
    content = bytearray(wheel.read_bytes())
    content[45] ^= 0xFF
    wheel.write_bytes(content)
    with pytest.raises(SourceError, match=r"none-any\.whl:a\.txt: cannot be read: "):
        read(packed(wheel), cache.parent)


# ---------------------------------------------------------------------------------------- fetching: PyPI


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place where pip looks for packages: a folder."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


METADATA = """Metadata-Version: 2.1
Name: corpus-demo
Version: 1.0
Requires-Python: >=99
Requires-Dist: none-such
"""
WHEEL = {
    "corpus_demo-1.0.dist-info/METADATA": METADATA,
    "corpus_demo-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "corpus_demo-1.0.dist-info/RECORD": "",
    "demo/a.rst": "a",
}
BACKEND = """
from pathlib import Path
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = Path(folder, "corpus_demo-1.0.dist-info")
    info.mkdir()
    info.joinpath("METADATA").write_text("Metadata-Version: 2.1\\nName: corpus-demo\\nVersion: 1.0\\n")
    return info.name
"""
SDIST = {
    "corpus_demo-1.0/PKG-INFO": METADATA,
    "corpus_demo-1.0/pyproject.toml": (
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    ),
    "corpus_demo-1.0/backend.py": BACKEND,
    "corpus_demo-1.0/demo/a.rst": "a",
}


def test_a_wheel_is_fetched_once_and_then_needs_no_index(tmp_path: Path, index: Path, cache: Path) -> None:
    wheel = write_wheel(index, WHEEL)
    source = packed(wheel, "demo/*.rst")
    local = SourceParams(name="t", path=str(tmp_path))
    assert fetch_packages([source, local], cache.parent) == [cache / wheel.name]
    wheel.unlink()
    assert read(source, cache.parent) == {"demo/a.rst": b"a"}
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_an_sdist_is_fetched_where_its_checksum_is_pinned(index: Path, cache: Path) -> None:
    write_wheel(index, WHEEL)
    sdist = write_sdist(index, SDIST)
    assert read(packed(sdist, "demo/*.rst"), cache.parent) == {"demo/a.rst": b"a"}
    assert [path.name for path in cache.iterdir()] == [sdist.name]


def test_a_fetched_package_with_another_checksum_is_refused_and_not_kept(index: Path, cache: Path) -> None:
    wheel = write_wheel(index, WHEEL)
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(SourceError, match=rf"expected sha256 {'0' * 64}, found {found}; "):
        read(packed(wheel, sha256="0" * 64), cache.parent)
    assert list(cache.parent.iterdir()) == []


def test_a_package_that_pip_cannot_find_is_one_clear_line(index: Path, cache: Path) -> None:
    package = PackageParams(index="pypi", name="corpus-demo", version="1.0", sha256="0" * 64)
    with pytest.raises(
        SourceError, match=r"^package corpus-demo 1\.0: cannot be fetched; pip says: No matching [^\n]*$"
    ):
        read(SourceParams(name="s", package=package), cache.parent)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    package = PackageParams(index="pypi", name="corpus-demo", version="1.0", sha256="0" * 64)
    with pytest.raises(SourceError, match=r"file/corpus-demo-1\.0: cannot be written: .*NIMA_CACHE"):
        read(SourceParams(name="s", package=package), tmp_path / "file")


def test_a_password_in_the_index_is_not_shown(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://someone:secret@127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    package = PackageParams(index="pypi", name="corpus-demo", version="1.0", sha256="0" * 64)
    with pytest.raises(SourceError) as refusal:
        read(SourceParams(name="s", package=package), cache.parent)
    assert "secret" not in str(refusal.value)


# ----------------------------------------------------------------------------------------- fetching: npm

TARBALL = {"package/package.json": "{}", "package/docs/a.md": "a", "package/docs/x/b.mdx": "b"}


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WebServer]:
    """The only place where npm looks for packages: a server on this machine."""
    for name in [name for name in os.environ if name.lower().startswith("npm_config_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", os.devnull)
    monkeypatch.setenv("NPM_CONFIG_CACHE", str(tmp_path / "npm-cache"))
    monkeypatch.setenv("NPM_CONFIG_FETCH_RETRIES", "0")
    monkeypatch.setenv("NPM_CONFIG_UPDATE_NOTIFIER", "false")
    monkeypatch.setattr(streams, "WAITS_SECONDS", (0.01, 0.01))
    with web_server() as server:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", server.url)
        yield server


def publish(registry: WebServer, folder: Path, name: str, members: dict[str, str] = TARBALL) -> SourceParams:
    """Puts a package on the registry as npm's do; the source that pins it."""
    last = name.rpartition("/")[2]
    content = write_sdist(folder, members, f"{last}.tgz").read_bytes()
    tarball = registry.put(f"/{name}/-/{last}-1.0.0.tgz", content)
    sha512 = hashlib.sha512(content).digest()
    integrity = f"sha512-{base64.b64encode(sha512).decode()}"
    version = {"name": name, "version": "1.0.0", "dist": {"tarball": tarball, "integrity": integrity}}
    about = {"name": name, "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
    for path in (f"/{name}", f"/{name.replace('/', '%2f')}", f"/{name.replace('/', '%2F')}"):
        registry.put(path, json.dumps(about).encode(), type="application/json", etag=None)
    package = PackageParams(
        index="npm", name=name, version="1.0.0", sha256=hashlib.sha256(content).hexdigest()
    )
    return SourceParams(name="s", package=package, glob="docs/**/*")


def hide_npm(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))


needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


@pytest.mark.parametrize("with_npm", [pytest.param(True, marks=needs_npm), False])
@pytest.mark.parametrize("name", ["corpus-demo", "@scope/corpus-demo"])
def test_an_npm_package_is_fetched_once_and_its_folder_is_no_part_of_the_keys(
    tmp_path: Path, registry: WebServer, monkeypatch: pytest.MonkeyPatch, name: str, with_npm: bool
) -> None:
    if not with_npm:
        hide_npm(monkeypatch, tmp_path / "bin")
    source = publish(registry, tmp_path / "npm", name)
    packages = tmp_path / "packages"
    (archive,) = fetch_packages([source], packages)
    assert archive.parent == packages / "npm" / f"{name}-1.0.0"
    registry.pages.clear()
    assert read(source, packages) == {"docs/a.md": b"a", "docs/x/b.mdx": b"b"}
    assert list(archive.parent.iterdir()) == [archive]


@pytest.mark.parametrize("with_npm", [pytest.param(True, marks=needs_npm), False])
def test_an_npm_package_with_another_checksum_is_refused_and_not_kept(
    tmp_path: Path, registry: WebServer, monkeypatch: pytest.MonkeyPatch, with_npm: bool
) -> None:
    if not with_npm:
        hide_npm(monkeypatch, tmp_path / "bin")
    good = publish(registry, tmp_path / "npm", "corpus-demo").package
    assert good is not None
    bad = SourceParams(name="s", package=good.model_copy(update={"sha256": "0" * 64}))
    message = rf"^package corpus-demo 1\.0\.0: wrong checksum: expected sha256 0{{64}}, found {good.sha256}; "
    with pytest.raises(SourceError, match=message):
        read(bad, tmp_path / "packages")
    assert list((tmp_path / "packages" / "npm").iterdir()) == []


@needs_npm
def test_npm_complaints_are_one_clear_line(tmp_path: Path, registry: WebServer) -> None:
    source = publish(registry, tmp_path / "npm", "corpus-demo")
    registry.pages.clear()
    with pytest.raises(
        SourceError,
        match=r"^package corpus-demo 1\.0\.0: cannot be fetched; npm says: Not Found [^\n]*$",
    ):
        read(source, tmp_path / "packages")


def test_without_npm_the_registry_of_the_scope_is_asked(
    tmp_path: Path, registry: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_npm(monkeypatch, tmp_path / "bin")
    source = publish(registry, tmp_path / "npm", "@scope/corpus-demo")
    (tmp_path / "npmrc").write_text(f"# mine\n@scope:registry={registry.url}/\nregistry=http://127.0.0.1:9\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(tmp_path / "npmrc"))
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    assert set(read(source, tmp_path / "packages")) == {"docs/a.md", "docs/x/b.mdx"}


def test_without_npm_and_registry_the_way_out_is_named(
    tmp_path: Path, registry: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_npm(monkeypatch, tmp_path / "bin")
    source = publish(registry, tmp_path / "npm", "corpus-demo")
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        SourceError,
        match=r"^package corpus-demo 1\.0\.0: npm is not installed; install it, or set NPM_CONFIG_",
    ):
        read(source, tmp_path / "packages")


@pytest.mark.parametrize("answer", [b"no JSON", b"{}", b'{"versions": {"2.0.0": {}}}', b"[]"])
def test_without_npm_a_version_that_the_registry_lacks_is_named(
    tmp_path: Path, registry: WebServer, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    hide_npm(monkeypatch, tmp_path / "bin")
    source = publish(registry, tmp_path / "npm", "corpus-demo")
    registry.put("/corpus-demo", answer)
    with pytest.raises(
        SourceError, match=r"corpus-demo 1\.0\.0: http://\S+-demo does not tell of this version"
    ):
        read(source, tmp_path / "packages")


@needs_npm
def test_nothing_of_an_npm_package_is_run(tmp_path: Path, registry: WebServer) -> None:
    scripts = dict.fromkeys(("prepack", "prepare", "install", "postinstall"), f"touch {tmp_path}/ran")
    about = json.dumps({"name": "corpus-demo", "version": "1.0.0", "scripts": scripts})
    source = publish(registry, tmp_path / "npm", "corpus-demo", TARBALL | {"package/package.json": about})
    assert read(source, tmp_path / "packages")
    assert not (tmp_path / "ran").exists()
