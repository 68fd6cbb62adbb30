"""npm packages without npm: the tarball by plain HTTP, from the registry that npm is set up to use."""

import json
import os
import re
from pathlib import Path
from urllib.parse import quote

from nima.corpus.sources.downloads import fetch, unchecked
from nima.corpus.sources.streams import RemoteFile, web_file
from nima.corpus.stores.failures import without_secrets
from nima.workspace.errors import SourceError
from nima.workspace.params import PackageParams

MAX_BYTES = 1_000_000_000
"""Of a description, and of a tarball."""
SETTING = re.compile(r"^\s*(?P<key>(@[^:\s]+:)?registry)\s*=\s*(?P<url>\S+)", re.MULTILINE)


def fetch_tarball(package: PackageParams, folder: Path) -> Path:
    """The package's tarball in `folder`, as the registry keeps it. Raises `SourceError`."""
    url = f"{registry_for(package)}/{quote(package.name, safe='@')}"
    with file_at(url).open() as stream:
        about = stream.read()
    try:
        tarball = json.loads(about)["versions"][package.version]["dist"]["tarball"]
    except (ValueError, KeyError, TypeError):
        raise SourceError(
            f"package {package.name} {package.version}: {without_secrets(url)} does not tell of this version"
        ) from None
    target = folder / f"{package.name.rpartition('/')[2]}-{package.version}.tgz"
    fetch(file_at(str(tarball)), target, unchecked)
    return target


def file_at(url: str) -> RemoteFile:
    if not re.match("https?://", url):
        raise SourceError(f"{without_secrets(url)}: expected a registry at https:// or http://")
    return web_file(url, MAX_BYTES)


def registry_for(package: PackageParams) -> str:
    """The url of the registry, from npm's own settings: the scope's, or else the general one."""
    settings = npm_settings()
    scope = package.name.partition("/")[0]
    url = settings.get(f"{scope}:registry") or settings.get("registry")
    if url is None:
        raise SourceError(
            f"package {package.name} {package.version}: npm is not installed; install it, "
            "or set NPM_CONFIG_REGISTRY to the url of a registry"
        )
    return url.rstrip("/")


def npm_settings() -> dict[str, str]:
    """Registries by key: the user's, then the project's, then the environment's."""
    settings: dict[str, str] = {}
    own = Path(os.environ.get("NPM_CONFIG_USERCONFIG") or Path.home() / ".npmrc")
    for path in (own, Path(".npmrc")):
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="replace")
            settings |= {match["key"]: match["url"] for match in SETTING.finditer(text)}
    for key in ("npm_config_registry", "NPM_CONFIG_REGISTRY"):
        if url := os.environ.get(key):
            settings["registry"] = url
    return settings
