"""Fixtures of tests that need a shared project: `pytest_plugins = ("team_fixtures",)`."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_server
from team import Team, toy_project


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as started:
        yield started


@pytest.fixture(scope="session")
def shared(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Team:
    """A toy project, its raw notes in DVC, shared through Git and the bucket."""
    return founded(tmp_path_factory.mktemp("shared"), server, "shared")


@pytest.fixture(scope="session")
def shared_in_folder(tmp_path_factory: pytest.TempPathFactory) -> Team:
    folder = tmp_path_factory.mktemp("shared")
    return founded(folder, None, str(folder / "storage"))


def founded(folder: Path, server: S3Server | None, bucket: str) -> Team:
    toy_project(folder / "founder" / "project")
    team = Team(folder, server, bucket)
    team.share(folder / "founder" / "project")
    return team


@pytest.fixture
def team(shared: Team, tmp_path: Path) -> Team:
    """A team of its own: its history starts with the shared one, its data lies in the same bucket."""
    shutil.copytree(shared.origin, tmp_path / "origin.git")
    return Team(tmp_path, shared.server, shared.bucket)


@pytest.fixture
def folder_team(shared_in_folder: Team, tmp_path: Path) -> Team:
    """The same without a server."""
    shutil.copytree(shared_in_folder.origin, tmp_path / "origin.git")
    return Team(tmp_path, None, shared_in_folder.bucket)
