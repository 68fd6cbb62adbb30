"""What goes wrong between here and a server, as one reason each, with the way out and no secret in it."""

import os
import re
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 20
"""Without an answer, or between two parts of one."""
BLOCK_SECONDS = 600
"""For one answer in all."""
CREDENTIALS = {
    "http": "check the user and password in the url or in ~/.netrc, and whether a signed url has expired",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, for one who may read it; "
    "FSSPEC_S3_ANON=true reads a public bucket",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file of one who may read it; "
    "FSSPEC_GS_TOKEN=anon reads a public bucket",
    "az": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, "
    "for one who may read it",
}
ADDRESSES = {
    "http": "check the url",
    "s3": "check bucket and path, and AWS_ENDPOINT_URL if the server is not Amazon's",
    "gs": "check bucket and path",
    "az": "check container and path, and the account",
}
# By parts of class names: each client library has classes of its own for the same few events.
NO_CREDENTIALS = re.compile("Credential|Auth|ProfileNotFound|Refresh")
NO_ANSWER = re.compile("Timeout")
NO_CONNECTION = re.compile("Connector|EndpointConnection|ServiceRequest|DNS|Resolve")
BROKEN_OFF = re.compile(
    "Payload|Disconnected|Incomplete|ConnectionReset|ConnectionClosed|Streaming|ServiceResponse"
)
SECRETS = re.compile(r"(?<=://)[^/@\s]+@|\?[^\s\"']+")


class Failure(Exception):  # noqa: N818 - becomes the reason in a `SourceError`
    """A request to a server that failed."""

    def __init__(self, reason: str, *, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.may_pass = may_pass
        """Whether the same request may succeed a little later."""


class Changed(Failure):
    """The server has another version of the file than when it was listed."""

    def __init__(self) -> None:
        super().__init__("changed or went away after it was listed; start again once it is at rest")


def scheme_of(url: str) -> str:
    scheme = url.partition("://")[0].lower()
    return "http" if scheme == "https" else scheme


def without_secrets(url: str) -> str:
    """For messages: no password, and no query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def refused(status: int, scheme: str) -> Failure:
    """What an error status means."""
    if status in (401, 403):
        return Failure(f"access refused ({status}); {CREDENTIALS[scheme]}")
    if status in (404, 410):
        return Failure(f"not found ({status}); {ADDRESSES[scheme]}")
    if status == 412:
        return Changed()
    may_pass = status in (408, 425, 429) or status >= 500
    advice = "; try again later" if may_pass else ""
    return Failure(f"the server answers {status}{advice}", may_pass=may_pass)


def client_errors(scheme: str) -> tuple[type[Exception], ...]:
    """What the client library of a scheme raises when a request fails."""
    import aiohttp

    found: tuple[type[Exception], ...] = (OSError, EOFError, TimeoutError, aiohttp.ClientError)
    if scheme == "s3":
        from botocore.exceptions import BotoCoreError, ClientError

        return (*found, BotoCoreError, ClientError)
    if scheme == "gs":
        from gcsfs.retry import HttpError
        from google.auth.exceptions import GoogleAuthError

        return (*found, HttpError, GoogleAuthError, ValueError)
    if scheme == "az":
        from azure.core.exceptions import AzureError

        return (*found, AzureError, ValueError)
    return found


def failure_of(error: Exception, scheme: str) -> Failure:
    """`error` came from a client library."""
    status = status_of(error)
    if status and status >= 400:
        return refused(status, scheme)
    if isinstance(error, FileNotFoundError):
        return refused(404, scheme)
    if isinstance(error, PermissionError) or str(error).startswith("Forbidden"):
        return refused(403, scheme)
    name = type(error).__name__
    if NO_CREDENTIALS.search(name) or "credentials" in str(error):
        return Failure(f"no credentials; {CREDENTIALS[scheme]}")
    if isinstance(error, TimeoutError) or NO_ANSWER.search(name):
        waited = f"no answer for {TIMEOUT_SECONDS} seconds, or no end of it in {BLOCK_SECONDS}"
        return Failure(f"{waited}; is the server well?", may_pass=True)
    if "Certificate" in name or "SSL" in name:
        return Failure(f"no trusted connection: {said(error)}")
    if isinstance(error, ConnectionRefusedError) or NO_CONNECTION.search(name):
        return Failure(f"cannot be reached: {said(error)}; {ADDRESSES[scheme]}", may_pass=True)
    if isinstance(error, ConnectionError | EOFError) or BROKEN_OFF.search(name):
        return Failure("the connection broke off before the end", may_pass=True)
    return Failure(f"{name}: {said(error)}")


def status_of(error: Any) -> int | None:
    """The HTTP status that an exception carries, whatever library it is of."""
    for known in (error, error.__cause__):
        if isinstance(response := getattr(known, "response", None), dict):  # botocore's
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    found = (str(getattr(error, name, "")) for name in ("status", "status_code", "code"))
    return next((int(value) for value in found if value.isdecimal()), None)


def said(error: Exception) -> str:
    """An exception's own words, in one line, without what may be secret."""
    cause = getattr(error, "os_error", None)  # aiohttp's
    reason = getattr(cause, "strerror", None) or str(error)
    if isinstance(cause, ConnectionError) and cause.errno:
        reason = os.strerror(cause.errno)
    return redacted(reason.strip().partition("\n")[0])


def redacted(text: str) -> str:
    """Without what looks like a password or a signature in a url."""
    return SECRETS.sub("", text)
