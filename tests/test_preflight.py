"""What would go wrong with an experiment, told before it starts; each claim checked against DVC itself."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Project
from tiny_project import create_tiny_project

from nima.experiments import preflight
from nima.experiments.preflight import findings, shell_findings
from nima.repository import other_processes
from nima.workspace.errors import UserError


@pytest.fixture(scope="module")
def first_result(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return create_tiny_project(tmp_path_factory.mktemp("tiny") / "project")


@pytest.fixture
def project(first_result: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    project = first_result.copy_to(tmp_path / "project")
    for key in [key for key in os.environ if key.startswith(("DVC_", "GIT_", "NIMA_"))]:
        monkeypatch.delenv(key)
    for key, value in project.env.items():
        monkeypatch.setenv(key, value)
    return project


def write(project: Project, name: str, text: str = "x\n") -> None:
    path = project.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def blocking(project: Project, *, apart: bool = True, name: str | None = None) -> list[str]:
    found = findings(project.path, apart=apart, names=[name] if name else [])
    return [finding.line for finding in found if finding.blocks]


def notes(project: Project) -> list[str]:
    return [finding.line for finding in findings(project.path, apart=True) if not finding.blocks]


def test_a_clean_project_is_ready(project: Project) -> None:
    assert findings(project.path, apart=True) == []
    assert shell_findings() == []


# ------------------------------------------------------------------------------------------ files


def test_changes_to_tracked_files_and_staged_files_are_seen(project: Project) -> None:
    write(project, "data/text.md", "Another text.\n")
    write(project, "data/staged.md")
    project.run("git", "add", "data/staged.md")
    assert blocking(project) == []


def test_what_a_temporary_run_would_not_see_is_named_and_indeed_not_seen(project: Project) -> None:
    write(project, "data/new.md")
    write(project, "data/old.bak")
    write(project, ".gitignore", "/model.bin\n*.bak\n")
    write(project, "aside.md")
    assert blocking(project) == [
        "data/new.md: untracked, but in data, an input of train: the run would not see it: "
        "git add data/new.md",
        "data/old.bak: ignored by Git, but in data, an input of train: the run would not see it: "
        "git add -f data/old.bak, or name it in .dvcignore",
    ]
    listing = project.read("dvc.yaml").replace("python train.py", "ls data && python train.py")
    write(project, "dvc.yaml", listing)
    done = project.dvc("exp", "run", "--temp", "--force").stdout
    assert "text.md" in done
    assert "new.md" not in done
    assert "old.bak" not in done
    assert blocking(project, apart=False) == []


def test_files_that_dvc_ignores_and_outputs_do_not_count(project: Project) -> None:
    write(project, ".dvcignore", "*.bak\n__pycache__/\n")
    write(project, "data/old.bak")
    write(project, "data/__pycache__/x.pyc")
    assert (project.path / "model.bin").exists()
    text = project.read("dvc.yaml").replace("deps: [train.py, data]", "deps: [train.py, data, made]")
    write(project, "dvc.yaml", text + "  make:\n    cmd: echo > made/x\n    outs: [made]\n")
    write(project, "made/x")
    assert blocking(project) == []


def test_data_that_dvc_tracks_is_there_but_its_dvc_file_must_be_tracked(project: Project) -> None:
    write(project, "data/large.txt")
    project.dvc("add", "data/large.txt")
    assert [line.partition(" but")[0] for line in blocking(project)] == [
        "data/.gitignore: untracked,",
        "data/large.txt.dvc: untracked,",
    ]
    project.run("git", "add", "data")
    assert blocking(project) == []
    write(project, "data/large.txt", "Changed, and not added again.\n")
    assert blocking(project) == []
    listing = project.read("dvc.yaml").replace("python train.py", "cat data/large.txt && python train.py")
    write(project, "dvc.yaml", listing)
    assert "Changed, and not added" in project.dvc("exp", "run", "--temp").stdout, "DVC takes it along"


def test_settings_that_git_ignores_are_named(project: Project) -> None:
    write(project, ".gitignore", "/model.bin\nparams.yaml\n")
    project.run("git", "rm", "-q", "--cached", "params.yaml")
    (line,) = blocking(project)
    assert line.startswith("params.yaml: ignored by Git, but read by DVC: ")


def test_a_path_in_params_that_is_no_dependency_counts(project: Project) -> None:
    write(project, "prompts/template.jinja")
    project.set_params({"tokenize": {"chat_template": "prompts/template.jinja"}})
    (line,) = blocking(project)
    assert line.startswith(
        "prompts/template.jinja: untracked, but named in params.yaml under tokenize.chat_template:"
    )


def test_an_untracked_module_is_found_through_the_imports_and_indeed_missed(project: Project) -> None:
    stage = "import library.shapes\nfrom library import colours\n" + project.read("train.py")
    write(project, "train.py", stage)
    write(project, "library/__init__.py", "")
    write(project, "library/shapes.py", "from . import corners\nfrom .edges import EDGE\n")
    write(project, "library/colours.py")
    write(project, "library/corners.py", "")
    write(project, "library/edges.py", "EDGE = 1\n")
    write(project, "library/draft.py", "")
    write(project, "library/colours.py", "")
    named = [line.partition(": the run")[0] for line in blocking(project)]
    assert named == [
        "library/__init__.py: untracked, but imported by train.py",
        "library/colours.py: untracked, but imported by train.py",
        "library/corners.py: untracked, but imported by library/shapes.py",
        "library/edges.py: untracked, but imported by library/shapes.py",
        "library/shapes.py: untracked, but imported by train.py",
    ]
    done = project.dvc("exp", "run", "--temp", check=False)
    assert "No module named 'library'" in done.stdout + done.stderr
    project.run("git", "add", "library")
    project.run("git", "rm", "-q", "--cached", "library/draft.py")
    assert blocking(project) == []
    assert project.dvc("exp", "run", "--temp").returncode == 0


def test_a_module_in_a_source_folder_is_found_by_its_package_name(project: Project) -> None:
    write(project, "src/kit/__init__.py", "")
    write(project, "src/kit/tool.py", "import json\nimport kit.part\n")
    project.run("git", "add", "src")
    write(project, "src/kit/part.py", "")
    write(project, "src/kit/json.py", "")
    write(project, "dvc.yaml", project.read("dvc.yaml").replace("[train.py,", "[train.py, src/kit/tool.py,"))
    (line,) = blocking(project)
    assert line.startswith("src/kit/part.py: untracked, but imported by src/kit/tool.py: ")


def test_what_a_package_imports_counts_when_a_stage_names_its_folder(project: Project) -> None:
    write(project, "src/kit/__init__.py", "")
    write(project, "src/kit/tool.py", "import other\n")
    project.run("git", "add", "src")
    write(project, "src/other.py", "")
    write(project, "dvc.yaml", project.read("dvc.yaml").replace("[train.py,", "[train.py, src/kit,"))
    (line,) = blocking(project)
    assert line.startswith("src/other.py: untracked, but imported by src/kit/tool.py: ")


def test_many_files_are_counted(project: Project) -> None:
    for number in range(25):
        write(project, f"data/note-{number:02d}.md")
    lines = blocking(project)
    assert len(lines) == 21
    assert lines[-1].startswith("and 5 more files ")


def test_names_with_spaces_and_brackets_are_taken_as_they_are(project: Project) -> None:
    write(project, "data/a [1] é.md")
    (line,) = blocking(project)
    assert line.startswith("data/a [1] é.md: untracked, ")


# ------------------------------------------------------------------------------------------ Git


def test_without_git_one_line_says_so(project: Project) -> None:
    shutil.rmtree(project.path / ".git")
    (line,) = blocking(project)
    assert line.startswith("not in Git, ")


def test_without_a_commit_one_line_says_so(project: Project) -> None:
    shutil.rmtree(project.path / ".git")
    project.run("git", "init", "-q")
    (line,) = blocking(project)
    assert line.startswith("no commit yet, ")


def test_without_an_identity_one_line_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL"):
        monkeypatch.delenv(key)
    (line,) = blocking(project)
    assert "git config user.name" in line
    project.run("git", "config", "user.name", "A")
    project.run("git", "config", "user.email", "a@example.com")
    assert blocking(project) == []


def test_a_shallow_clone_loses_a_temporary_run_only(project: Project, tmp_path: Path) -> None:
    write(project, "aside.md")
    project.commit("Something else")
    url = f"file://{project.path}"
    project.run("git", "clone", "-q", "--depth", "1", url, str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    (line,) = blocking(clone)
    assert line.endswith("git fetch --unshallow")
    assert blocking(clone, apart=False) == []
    clone.dvc("exp", "run", "--temp", "-S", "training.lr=0.03")
    assert clone.dvc("exp", "list", "--name-only").stdout == ""
    clone.run("git", "fetch", "-q", "--unshallow")
    assert blocking(clone) == []


def test_a_detached_head_is_fine_and_said(project: Project) -> None:
    project.run("git", "checkout", "-q", "--detach")
    assert blocking(project) == []
    (line,) = notes(project)
    assert line.startswith("HEAD is detached at ")


def test_a_lock_of_git_stops_what_dvc_would_stop(project: Project) -> None:
    write(project, ".git/index.lock", "")
    (line,) = blocking(project)
    assert line.startswith(".git/index.lock: ")
    assert "index is locked" in project.dvc("exp", "run", "--queue", check=False).stderr


# ------------------------------------------------------------------------------------------ locks


def hold(project: Project, process: int, command: str) -> None:
    entry = {"pid": process, "cmd": command}
    lock = {"write": {str(project.path / "model.bin"): entry}, "read": {str(project.path / "data"): [entry]}}
    write(project, ".dvc/tmp/rwlock", json.dumps(lock))


def test_a_lock_of_a_killed_dvc_is_harmless_and_said(project: Project) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hold(project, gone.pid, "/usr/bin/dvc repro")
    assert blocking(project, apart=False) == []
    (line,) = notes(project)
    assert line == f"`dvc repro` (process {gone.pid}) was killed; DVC drops its lock by itself"
    assert project.dvc("exp", "run", "-S", "training.lr=0.03").returncode == 0


def test_a_lock_of_a_living_dvc_stops_a_run_in_the_workspace(project: Project) -> None:
    living = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()", "dvc"], stdin=subprocess.PIPE
    )
    try:
        hold(project, living.pid, "/usr/bin/dvc repro train")
        (line,) = blocking(project, apart=False)
        assert line.startswith(f"`dvc repro train` (process {living.pid}) works in this workspace: wait ")
        assert blocking(project) == []
        assert "is busy" in project.dvc("exp", "run", "-S", "training.lr=0.03", check=False).stderr
    finally:
        living.communicate()


def test_of_two_repros_at_once_the_second_names_the_first_and_both_are_safe(project: Project) -> None:
    project.env["NAP"] = "4"
    first = project.start("dvc", "repro", "--force")
    assert first.stdout is not None
    next(line for line in first.stdout if line.startswith("learning at"))
    (line,) = blocking(project, apart=False)
    assert re.fullmatch(
        rf"`dvc repro --force` \(process {first.pid}\) works in this workspace: wait .*", line
    )
    second = project.dvc("repro", "--force", check=False)
    assert second.returncode != 0
    assert "is busy, it is being blocked by" in second.stderr
    assert f"(PID {first.pid}): " in second.stderr
    assert first.wait() == 0
    first.stdout.close()
    assert findings(project.path, apart=False) == []
    assert project.dvc("status", "-q").returncode == 0


def test_a_lock_of_a_zombie_or_of_a_strangers_number_must_be_removed(project: Project) -> None:
    living = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        hold(project, living.pid, "/usr/bin/dvc repro")
        (line,) = blocking(project, apart=False)
        assert "is another program by now; DVC takes it for alive: rm .dvc/tmp/rwlock" in line
        assert living.stdin is not None
        living.stdin.close()
        os.waitid(os.P_PID, living.pid, os.WEXITED | os.WNOWAIT)
        (line,) = blocking(project, apart=False)
        assert "a zombie" in line
        assert "is busy" in project.dvc("exp", "run", "-S", "training.lr=0.03", check=False).stderr
    finally:
        living.wait()
    (project.path / ".dvc/tmp/rwlock").unlink()
    assert findings(project.path, apart=False) == []


def test_a_damaged_lock_is_named(project: Project) -> None:
    write(project, ".dvc/tmp/rwlock", '{"write": {"a"')
    (line,) = blocking(project)
    assert line.startswith(".dvc/tmp/rwlock: damaged")


def test_the_copy_of_a_killed_temporary_run_is_named_but_not_that_of_a_living_one(project: Project) -> None:
    place = project.path / ".dvc/tmp/exps/standalone/tmpabc"
    place.mkdir(parents=True)
    (line,) = notes(project)
    assert line.endswith(": rm -rf .dvc/tmp/exps/standalone/tmpabc")
    with subprocess.Popen([sys.executable, "-c", "input()"], cwd=place, stdin=subprocess.PIPE):
        assert notes(project) == []


# ------------------------------------------------------------------------------------------ names


def test_a_name_is_free_or_not(project: Project) -> None:
    project.dvc("exp", "run", "-n", "done", "-S", "training.lr=0.03")
    project.dvc("exp", "run", "--queue", "-n", "waiting", "-S", "training.lr=0.04")
    assert blocking(project, name="fresh") == []
    assert blocking(project, name="done")[0].startswith("-n done: this commit has an experiment of that name")
    assert blocking(project, name="waiting")[0].startswith("-n waiting: is queued or running already")
    assert blocking(project, name="a/b")[0].startswith("-n a/b: Git takes no such name")
    project.run("git", "checkout", "-q", "--", ".")
    project.run("git", "commit", "-q", "--allow-empty", "-m", "Another commit")
    assert blocking(project, name="done") == [], "a name may come again at another commit"


def test_a_running_experiment_keeps_its_name(project: Project) -> None:
    copy = project.path / ".dvc/tmp/exps/tmpabc"
    copy.mkdir(parents=True)
    write(project, ".dvc/tmp/exps/run/0123/0123.run", json.dumps({"name": "busy", "root_dir": str(copy)}))
    write(project, ".dvc/tmp/exps/run/4567/4567.run", '{"name": "half wr')
    assert preflight.waiting_names(project.path) == {"busy"}
    copy.rmdir()
    assert preflight.waiting_names(project.path) == set()


# ------------------------------------------------------------------------------------------ commands


def test_without_dvc_on_the_path_its_workers_would_not_start(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    (finding,) = shell_findings()
    assert finding.blocks
    assert "dvc queue start" in finding.line


def test_without_git_on_the_path_one_line_says_so(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"^git: not found on PATH; [^\n]+$"):
        findings(project.path, apart=True)


def test_a_process_is_told_from_another_of_the_same_number() -> None:
    assert other_processes.is_running(os.getpid(), "python")
    assert not other_processes.is_running(os.getpid(), "queue-worker")
    assert other_processes.state_of(os.getpid(), sys.executable) == "runs"
