"""Where CI runs: on GitHub, GitLab or neither. What the place knows, and how it shows a comment."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nima.workspace.errors import UserError

Environment = Mapping[str, str]
TIMEOUT_SECONDS = 30
SECRET_NAMES = re.compile("KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL")
MIN_SECRET_CHARS = 8


@dataclass(frozen=True)
class Laptop:
    """No forge: Git knows the branch, and the comment stays a file."""

    env: Environment

    discards_unsaved = False
    """Whether outputs that DVC holds nowhere may be dropped: nobody works in a checkout of CI's."""

    def branch(self) -> str | None:
        return None

    def reference(self) -> str | None:
        """The commit that the change is compared with, as far as the forge says."""
        return None

    def file_url(self, _commit: str, path: str) -> str:
        return path

    def run_url(self) -> str | None:
        """The page of this run, with its log and files."""
        return None

    def comment(self, text: str, commit: str) -> None:
        """Show a comment where people discuss the change."""


@dataclass(frozen=True)
class GitHub(Laptop):
    discards_unsaved = True

    def event(self) -> dict[str, Any]:
        path = self.env.get("GITHUB_EVENT_PATH")
        return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}

    def branch(self) -> str | None:
        return self.env.get("GITHUB_HEAD_REF") or self.env.get("GITHUB_REF_NAME")

    def reference(self) -> str | None:
        event = self.event()
        pull_request = event.get("pull_request")
        return pull_request["base"]["sha"] if pull_request else event.get("before")

    def file_url(self, commit: str, path: str) -> str:
        return f"{self.page()}/blob/{commit}/{path}?raw=true"

    def run_url(self) -> str | None:
        return f"{self.page()}/actions/runs/{self.env.get('GITHUB_RUN_ID')}"

    def page(self) -> str:
        return f"{self.env['GITHUB_SERVER_URL']}/{self.env['GITHUB_REPOSITORY']}"

    def comment(self, text: str, commit: str) -> None:
        if summary := self.env.get("GITHUB_STEP_SUMMARY"):
            with Path(summary).open("a", encoding="utf-8") as page:
                page.write(text)
        pull_request = self.event().get("pull_request")
        place = f"issues/{pull_request['number']}" if pull_request else f"commits/{commit}"
        url = f"{self.env['GITHUB_API_URL']}/repos/{self.env['GITHUB_REPOSITORY']}/{place}/comments"
        if token := self.env.get("GITHUB_TOKEN"):
            post(url, {"body": text}, {"Authorization": f"Bearer {token}"})


@dataclass(frozen=True)
class GitLab(Laptop):
    discards_unsaved = True

    def branch(self) -> str | None:
        return self.env.get("CI_MERGE_REQUEST_SOURCE_BRANCH_NAME") or self.env.get("CI_COMMIT_BRANCH")

    def reference(self) -> str | None:
        return self.env.get("CI_MERGE_REQUEST_DIFF_BASE_SHA") or self.env.get("CI_COMMIT_BEFORE_SHA")

    def file_url(self, commit: str, path: str) -> str:
        return f"{self.env['CI_PROJECT_URL']}/-/raw/{commit}/{path}"

    def run_url(self) -> str | None:
        return self.env.get("CI_JOB_URL")

    def comment(self, text: str, commit: str) -> None:
        request = self.env.get("CI_MERGE_REQUEST_IID")
        project = f"{self.env['CI_API_V4_URL']}/projects/{self.env['CI_PROJECT_ID']}"
        note = {"body": text} if request else {"note": text}
        place = f"merge_requests/{request}/notes" if request else f"repository/commits/{commit}/comments"
        if token := self.env.get("NIMA_GIT_TOKEN"):
            post(f"{project}/{place}", note, {"PRIVATE-TOKEN": token})


def forge_of(env: Environment) -> Laptop:
    if "GITHUB_REPOSITORY" in env:
        return GitHub(env)
    return GitLab(env) if "CI_PROJECT_URL" in env else Laptop(env)


def post(url: str, content: dict[str, str], headers: dict[str, str]) -> None:
    """Raises `UserError` if the forge does not take it."""
    body = json.dumps(content).encode()
    headers = headers | {"Content-Type": "application/json", "User-Agent": "nima"}
    request = urllib.request.Request(url, body, headers)  # noqa: S310 - the forge names its own address
    try:
        urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS).close()  # noqa: S310
    except urllib.error.HTTPError as error:
        raise UserError(
            f"{url}: answers {error.code} {error.reason}; may the token write comments?"
        ) from None
    except OSError as error:
        raise UserError(f"{url}: {error}") from None


def without_secrets(text: str, env: Environment) -> str:
    """What stages print may repeat a secret of the environment; forges mask it in logs, not in comments."""
    values = {value for name, value in env.items() if SECRET_NAMES.search(name.upper())}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= MIN_SECRET_CHARS:
            text = text.replace(value, "***")
    return text
