"""A real S3-compatible server on this machine (SeaweedFS), for tests that read from a bucket."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

READY_SECONDS = 60
PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
PORTS += ("filer.port", "filer.port.grpc", "s3.port", "s3.port.grpc")


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    access_key: str = "tester"
    secret_key: str = "not-a-secret"
    reader_key: str = "reader"
    """Of somebody who may list and read, with the same secret."""

    @property
    def environment(self) -> dict[str, str]:
        """What every S3 client reads: where the server is, and who asks."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def filesystem(self) -> Any:
        """To make buckets and put objects."""
        import s3fs

        return s3fs.S3FileSystem(
            key=self.access_key,
            secret=self.secret_key,
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            client_kwargs={"region_name": "us-east-1"},
        )


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Starts the server on free ports, its data in `folder`, and stops it. Takes about 3 seconds."""
    with starting_s3_server(folder) as ready:
        yield ready()


@contextmanager
def starting_s3_server(folder: Path) -> Iterator[Callable[[], S3Server]]:
    """As `s3_server`, but something else can be done until the server is ready."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
    folder.mkdir(parents=True, exist_ok=True)
    identities = [
        identity(server.access_key, server.secret_key, "Admin", "Read", "Write", "List", "Tagging"),
        identity(server.reader_key, server.secret_key, "Read", "List"),
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    command = [str(Path(sys.executable).with_name("weed")), "server", f"-dir={folder}", "-filer", "-s3"]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder / 's3.json'}"]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=100", "-master.telemetry=false"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # services at ports that are not free for all
    command += [f"-{name}={port}" for name, port in ports.items()]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
    try:
        yield partial(ready_server, server, process, folder / "log")
    finally:
        process.kill()  # asked politely it takes half a minute
        process.wait()
        log.close()
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def identity(key: str, secret: str, *actions: str) -> dict[str, Any]:
    return {"name": key, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}


def ready_server(server: S3Server, process: subprocess.Popen, log: Path) -> S3Server:
    """Waits for it; ready is who refuses a request without a key."""
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            urllib.request.urlopen(server.endpoint, timeout=1).close()
        except urllib.error.HTTPError:
            return server
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"the S3 server did not start:\n{log.read_text(errors='replace')[-2000:]}")


def free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
