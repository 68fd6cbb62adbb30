"""How results get back into Git, whatever happened there meanwhile."""

import os
import subprocess
from pathlib import Path

import pytest

from nima.ci import repository
from nima.workspace.errors import UserError

WHO = ("-c", "user.name=A. Tester", "-c", "user.email=tester@example.com")


class Clone:
    def __init__(self, path: Path) -> None:
        self.path = path

    def git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def commit(self, name: str, text: str) -> str:
        self.write(name, text)
        self.git("add", "-A")
        self.git(*WHO, "commit", "-qm", f"{name}: {text}")
        return self.git("rev-parse", "HEAD")

    def push(self, name: str, text: str) -> str:
        commit = self.commit(name, text)
        self.git("push", "-q", "origin", "HEAD:main")
        return commit

    def subjects(self) -> list[str]:
        return self.git("log", "--format=%s").splitlines()


@pytest.fixture(autouse=True)
def quiet_git(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)


@pytest.fixture
def origin(tmp_path: Path) -> Clone:
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(tmp_path / "origin")], check=True)
    return Clone(tmp_path / "origin")


def clone_of(origin: Clone, name: str, *options: str) -> Clone:
    path = origin.path.parent / name
    subprocess.run(["git", "clone", "-q", *options, f"file://{origin.path}", str(path)], check=True)
    return Clone(path)


@pytest.fixture
def ci(origin: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """The clone that the functions work in, with a record of results and params."""
    clone = clone_of(origin, "ci")
    clone.git("checkout", "-qb", "main")
    clone.commit("dvc.lock", "train: {}\n")
    clone.push("params.yaml", "lr: 1\n")
    monkeypatch.chdir(clone.path)
    return clone


@pytest.fixture
def colleague(origin: Clone, ci: Clone) -> Clone:
    return clone_of(origin, "colleague")


def results(ci: Clone, lock: str = "train: {lr: 1}\n") -> str:
    """What a run left, committed."""
    source = ci.git("rev-parse", "HEAD")
    ci.write("dvc.lock", lock)
    ci.write("metrics/train.json", "{}")
    ci.write("metrics/timing.json", "{}")
    assert repository.commit_results(["train"])
    return source


def refusal() -> str:
    with pytest.raises(UserError) as caught:
        repository.refuse_unusable()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------- before the work


def test_what_is_not_a_clone_with_commits_and_an_origin_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert "no Git repository here" in refusal()
    repository.git("init", "-q")
    assert "no commit yet" in refusal()
    Clone(tmp_path).commit("file", "text")
    assert "git remote add origin URL" in refusal()


def test_work_that_is_not_committed_is_named(ci: Clone) -> None:
    repository.refuse_unusable()
    ci.commit("metrics/timing.json", "{}")
    ci.write("metrics/timing.json", '{"seconds": 1}')
    repository.refuse_unusable()
    ci.write("params.yaml", "lr: 2\n")
    ci.write("data/raw/new.md", "A note that nobody else has.")
    message = refusal()
    assert message.startswith("not committed: params.yaml, data/; ")
    assert "commit or stash" in message


def test_a_shallow_clone_gets_its_history(origin: Clone, ci: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = clone_of(origin, "shallow", "--depth", "1")
    monkeypatch.chdir(shallow.path)
    assert len(shallow.subjects()) == 1
    repository.deepen()
    assert shallow.subjects() == ci.subjects()


def test_the_branch_is_the_named_one_or_the_one_that_is_here(ci: Clone) -> None:
    assert repository.branch_to_push("other") == "other"
    assert repository.branch_to_push(None) == "main"
    ci.git("checkout", "-q", "--detach")
    assert repository.branch_to_push(None) == "main"
    ci.git("push", "-q", "origin", "HEAD:refs/heads/twin")
    with pytest.raises(UserError, match=r"detached head.*main and twin.*--branch NAME"):
        repository.branch_to_push(None)


def test_no_right_to_push_is_known_beforehand(ci: Clone, colleague: Clone) -> None:
    colleague.push("params.yaml", "lr: 2\n")
    repository.refuse_no_push("main")  # that somebody was faster is for later
    ci.git("remote", "set-url", "origin", "http://127.0.0.1:9/nowhere.git")
    with pytest.raises(UserError, match="can't push to origin: fatal: unable to access"):
        repository.refuse_no_push("main")


def test_results_are_compared_with_where_the_branches_parted(ci: Clone, colleague: Clone) -> None:
    first, second = ci.git("rev-parse", "HEAD~1"), ci.git("rev-parse", "HEAD")
    tip = colleague.push("readme", "elsewhere")
    mine = ci.commit("params.yaml", "lr: 3\n")
    ci.git("fetch", "-q")
    assert repository.compared_with(tip) == second
    assert repository.compared_with(None) == second
    assert repository.compared_with("0" * 40) == second
    assert repository.compared_with(mine) == second
    ci.git("checkout", "-q", first)
    assert repository.compared_with(None) == first


# -------------------------------------------------------------------------------------- after the work


def test_results_are_committed_with_the_commit_that_was_run(ci: Clone) -> None:
    source = results(ci)
    message = ci.git("log", "-1", "--format=%B%an <%ae>")
    assert message.startswith(f"Results of {source[:9]}: train\n\nResults-of: {source}\n")
    assert message.endswith("Nima CI <nima-ci@localhost>"), "nobody is configured here"
    assert ci.git("status", "--porcelain") == ""
    assert repository.is_result_of_parent()
    ci.commit("params.yaml", "lr: 4\n")
    assert not repository.is_result_of_parent()


def test_clock_figures_alone_are_no_results(ci: Clone) -> None:
    ci.push("metrics/timing.json", "{}")
    ci.write("metrics/timing.json", '{"train": 1}')
    assert not repository.commit_results(["train"])
    assert ci.git("status", "--porcelain") == "M metrics/timing.json"
    assert ci.git("diff", "--cached", "--name-only") == ""


def test_results_go_on_top_of_commits_that_came_in_between(ci: Clone, colleague: Clone) -> None:
    source = results(ci)
    colleague.push("params.yaml", "lr: 2\n")
    assert repository.push_results("main")
    colleague.git("pull", "-q")
    assert colleague.subjects()[:2] == [f"Results of {source[:9]}: train", "params.yaml: lr: 2"]
    assert not repository.is_result_of_parent(), "the commit below has not been run"


def test_results_of_two_runs_are_never_merged(ci: Clone, colleague: Clone, origin: Clone) -> None:
    results(ci)
    mine = ci.git("rev-parse", "HEAD")
    theirs = colleague.push("dvc.lock", "prepare: {}\ntrain: {}\n")
    assert not repository.push_results("main")
    assert origin.git("rev-parse", "main") == theirs

    aside = repository.put_aside()
    assert origin.git("rev-parse", aside) == mine
    repository.begin_again(aside)
    assert ci.git("rev-parse", "HEAD") == theirs
    assert not repository.drop_if_equal(aside)
    assert origin.git("rev-parse", aside) == mine

    results(ci)  # the same record once more
    assert repository.push_results("main")
    assert repository.drop_if_equal(aside)
    assert origin.git("branch", "--format=%(refname:short)") == "main"


def test_own_commits_that_do_not_fit_the_new_head_stay_and_are_named(ci: Clone, colleague: Clone) -> None:
    ci.commit("params.yaml", "lr: 5\n")
    results(ci)
    colleague.commit("params.yaml", "lr: 6\n")
    colleague.push("dvc.lock", "train: {lr: 6}\n")
    assert not repository.push_results("main")
    aside = repository.put_aside()
    with pytest.raises(UserError, match=f"does not fit together.*{aside}"):
        repository.begin_again(aside)
    assert ci.subjects()[0] == "params.yaml: lr: 5"
    assert "rebas" not in ci.git("status")


def test_a_server_that_refuses_the_results_is_quoted(ci: Clone, origin: Clone) -> None:
    results(ci)
    hook = origin.path / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho main is protected >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(UserError, match="does not take the results: remote: main is protected"):
        repository.push_results("main")
    assert repository.is_result_of_parent(), "they are still here"
