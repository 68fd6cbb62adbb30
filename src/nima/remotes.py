"""The place where a team keeps its data and models: does it answer, and may we read and write there?

DVC asks the storage only when it transfers, which may be hours into a run, and passes on what the storage's
library says. Here the default remote is asked beforehand, and the answer is one line with the way out.
"""

import configparser
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nima.workspace.errors import UserError

if TYPE_CHECKING:
    from dvc.data_cloud import Remote as Storage
    from dvc.repo import Repo

PROBE = "nima-remote-check"
"""An object that is written beside DVC's own, and removed."""
PATIENCE_SECONDS = 10
"""How long an S3 server may take to answer; it is asked five times."""
EXTRAS = ("s3", "gs", "azure")
SILENT = ("gs", "azure")
"""Their clients call a bucket that isn't there an empty one."""
SECRETS = {"access_key_id", "secret_access_key", "session_token", "password", "connection_string"}
SECRETS |= {"account_key", "sas_token", "client_secret", "sse_customer_key"}
NO_BUCKET = "there is no such bucket; make it, or correct the URL: dvc remote modify {name} url URL"
NO_RIGHT = "these credentials may not {verb} there; docs/remotes.md lists the rights that DVC needs"
# What is wrong and the way out, by a server's error code or the name of an exception of its client.
ADVICE = {
    "NoSuchBucket": NO_BUCKET,
    "ContainerNotFound": NO_BUCKET,
    "InvalidAccessKeyId": "the server does not know this access key; check AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is not that of the access key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired; sign in again, or set new keys and AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "the server refuses this machine's clock; set it right",
    "InternalError": "the server has an error of its own; is its disk full? ask who runs it",
    "AccessDenied": NO_RIGHT,
    "AuthorizationFailure": NO_RIGHT,
    "AuthorizationPermissionMismatch": NO_RIGHT,
    "NoCredentialsError": "no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "AzureAuthError": "no credentials; set AZURE_STORAGE_CONNECTION_STRING",
    "DefaultCredentialsError": "no credentials; gcloud auth application-default login",
    "ProfileNotFound": "~/.aws/config has no such profile; check AWS_PROFILE",
    "EndpointConnectionError": "nothing answers there; is the server up, and AWS_ENDPOINT_URL right?",
    "ConnectTimeoutError": "nothing answers there; is a firewall or a proxy in between?",
    "ReadTimeoutError": "a server takes the request and does not answer; is it an S3 server, and is it well?",
}


@dataclass(frozen=True)
class Remote:
    name: str
    url: str
    endpoint: str
    """Address of an S3 server that is not AWS's, else empty."""

    def __str__(self) -> str:
        return f"{self.name} ({self.url}{f' at {self.endpoint}' if self.endpoint else ''})"


def check(root: Path, *, writing: bool = False) -> Remote:
    """The default remote of the project in `root`, after its storage has answered.

    It is listed, and with `writing` a small object is written and removed. Raises `UserError`, one line.
    """
    repo = open_project(root)
    refuse_secrets_in_git(Path(repo.dvc_dir) / "config")
    remote, storage = default_remote(repo)
    with told(remote, "list"):
        found = is_there(storage)
    if not found:
        raise UserError(f"remote {remote}: {NO_BUCKET.format(name=remote.name)}")
    if writing:
        with told(remote, "write"):
            write_and_remove(storage)
    return remote


def open_project(root: Path) -> "Repo":
    from dvc.config import ConfigError
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        return Repo(str(root))
    except NotDvcRepoError:
        raise UserError(f"{root}: no DVC project here; change to the folder that holds dvc.yaml") from None
    except ConfigError as error:
        raise UserError(f".dvc/config: {one_line(error)}") from None
    except SCMError as error:
        raise UserError(one_line(error)) from None


def refuse_secrets_in_git(config: Path) -> None:
    """.dvc/config is committed, .dvc/config.local is not."""
    found = configparser.ConfigParser(interpolation=None, strict=False)
    found.read(config, encoding="utf-8")
    for section in found.sections():
        for key in SECRETS.intersection(found.options(section)):
            raise UserError(
                f".dvc/config: holds {key}, and git would give it to everybody; take it out, put it into "
                ".dvc/config.local (dvc remote modify --local), and replace it if it was ever pushed"
            )


def default_remote(repo: "Repo") -> tuple[Remote, "Storage"]:
    from dvc.config import ConfigError, NoRemoteError

    name = repo.config["core"].get("remote", "")
    settings = repo.config["remote"].get(name, {})
    url, endpoint = settings.get("url", ""), ""
    scheme = url.partition("://")[0]
    if scheme == "s3":
        endpoint = settings.get("endpointurl") or os.environ.get("AWS_ENDPOINT_URL", "")
        for key in ("connect_timeout", "read_timeout"):
            settings.setdefault(key, PATIENCE_SECONDS)
    try:
        return Remote(name, url, endpoint), repo.cloud.get_remote()
    except NoRemoteError:
        raise UserError("no remote; dvc remote add -d storage s3://BUCKET/FOLDER (docs/remotes.md)") from None
    except ConfigError as error:
        raise UserError(f".dvc/config: {one_line(error)}") from None
    except ImportError as error:
        if scheme not in EXTRAS:
            raise UserError(f"{url}: {one_line(error)}") from None
        raise UserError(f"{url}: needs the extra {scheme}: pip install 'nima-lm[{scheme}]'") from None


def is_there(storage: "Storage") -> bool:
    """Asks for what is in the remote's folder, one level deep. An empty folder is one that DVC will make."""
    try:
        storage.fs.ls(storage.path)
    except NotImplementedError:  # a web server has no listing
        return True
    except FileNotFoundError as error:
        if error.__cause__ is not None:  # an S3 server's refusal; without one the folder is merely empty
            raise
        if storage.fs.protocol in SILENT:
            return bool(storage.fs.exists(storage.path.partition("/")[0]))
    return True


def write_and_remove(storage: "Storage") -> None:
    storage.fs.makedirs(storage.path)
    probe = storage.fs.join(storage.path, PROBE)
    storage.fs.pipe_file(probe, b"written by nima remote check, can be removed\n")
    storage.fs.rm_file(probe)


@contextmanager
def told(remote: Remote, verb: str) -> Iterator[None]:
    """What the storage's library raises, as one line. Each library has its own kinds of errors."""
    try:
        yield
    except Exception as error:
        signs = [sign for each in causes(error) for sign in signs_of(each)]
        advice = next((ADVICE[sign] for sign in signs if sign in ADVICE), None)
        if advice is None:
            advice = f"can't {{verb}} there; check URL and rights (docs/remotes.md): {quoted(error)}"
        raise UserError(f"remote {remote}: {advice.format(name=remote.name, verb=verb)}") from None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def signs_of(error: BaseException) -> list[str]:
    response = getattr(error, "response", None)  # of botocore's ClientError
    code = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return [*filter(None, [code, getattr(error, "error_code", None)]), type(error).__name__]


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def quoted(error: BaseException) -> str:
    """For a template: braces are the error's own."""
    return f"{type(error).__name__}: {one_line(error)}".replace("{", "{{").replace("}", "}}")
