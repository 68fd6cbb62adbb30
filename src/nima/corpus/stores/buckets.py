"""Files of object stores (`s3://`, `gs://`, `az://`), each part asked for in the version that was listed."""

import logging
from collections.abc import Callable, Iterable
from typing import Any

from nima.corpus.stores import failures
from nima.corpus.stores.failures import Changed, Failure
from nima.workspace.errors import UserError

STORES = ("s3", "gs", "az")
VERSIONS = {"s3": "ETag", "gs": "generation", "az": "etag"}
"""What a listing calls the version of a file."""


def store(scheme: str) -> Any:
    """The fsspec file system. Credentials and server come from the environment, as its clients read them."""
    try:
        return {"s3": s3_store, "gs": gs_store, "az": az_store}[scheme]()
    except ImportError:
        extra = "azure" if scheme == "az" else scheme
        raise UserError(f"{scheme}:// needs the extra {extra}: pip install 'nima-lm[{extra}]'") from None


def s3_store() -> Any:
    import s3fs

    seconds = failures.TIMEOUT_SECONDS
    once = {"total_max_attempts": 1}
    found = s3fs.S3FileSystem(
        use_listings_cache=False,
        config_kwargs={"connect_timeout": seconds, "read_timeout": seconds, "retries": once},
    )
    found.retries = 1  # tried again in one place only: here it would multiply with botocore's tries and ours
    return found


def gs_store() -> Any:
    import aiohttp

    # The package's main class asks first for a kind of bucket, through another protocol and for a minute.
    from gcsfs.core import GCSFileSystem

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints tracebacks of what it then raises
    seconds = failures.TIMEOUT_SECONDS
    timeout = aiohttp.ClientTimeout(total=None, connect=seconds, sock_read=seconds)
    return GCSFileSystem(use_listings_cache=False, requests_timeout=timeout)


def az_store() -> Any:
    import adlfs

    seconds = failures.TIMEOUT_SECONDS
    return adlfs.AzureBlobFileSystem(
        use_listings_cache=False, connection_timeout=seconds, read_timeout=seconds
    )


def described(scheme: str, path: str) -> dict[str, Any]:
    """A file or a folder: name, type, and of a file size and version."""
    return store(scheme).info(path)


def files_below(scheme: str, path: str) -> list[dict[str, Any]]:
    """Every file below a folder. An object whose name ends in `/` only marks a folder."""
    found: Iterable[dict[str, Any]] = store(scheme).find(path, detail=True).values()
    return [info for info in found if info["type"] == "file" and not info["name"].endswith("/")]


def block(scheme: str, path: str, version: str, start: int, end: int) -> bytes:
    """The bytes from `start` to before `end`. Raises `Changed`."""
    read: dict[str, Callable[..., bytes]] = {"s3": s3_block, "gs": gs_block, "az": az_block}
    try:
        content = read[scheme](store(scheme), path, version, start, end)
    except FileNotFoundError:
        raise Changed from None
    if len(content) != end - start:
        raise Failure("the connection broke off before the end", may_pass=True)
    return content


def s3_block(found: Any, path: str, version: str, start: int, end: int) -> bytes:
    from fsspec.asyn import sync

    bucket, _, key = path.partition("/")
    part = f"bytes={start}-{end - 1}"
    response = found.call_s3("get_object", Bucket=bucket, Key=key, Range=part, IfMatch=version)
    return sync(found.loop, response["Body"].read, timeout=failures.BLOCK_SECONDS)


def gs_block(found: Any, path: str, version: str, start: int, end: int) -> bytes:
    return found.cat_file(path, start=start, end=end, generation=version)


def az_block(found: Any, path: str, version: str, start: int, end: int) -> bytes:
    from azure.core import MatchConditions
    from fsspec.asyn import sync

    container, _, blob = path.partition("/")

    async def read() -> bytes:
        async with found.service_client.get_blob_client(container, blob) as client:
            match = {"etag": version, "match_condition": MatchConditions.IfNotModified}
            stream = await client.download_blob(offset=start, length=end - start, **match)
            return await stream.readall()

    return sync(found.loop, read, timeout=failures.BLOCK_SECONDS)
