"""What CI says and keeps when a change can't be run to its end."""

import hashlib
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Project, kill_group
from team import Team, change_note, history, push_commit, run_ci, stages_run

pytest_plugins = ("team_fixtures",)
EXIT_STAGE_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED = 1, 2, 3


@pytest.fixture
def team(folder_team: Team) -> Team:
    """Nothing here depends on a server."""
    return folder_team


def problem(done: subprocess.CompletedProcess[str], exit_code: int = EXIT_USER_ERROR) -> str:
    """The one line of a run that failed."""
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line.removeprefix("ci: ") for line in done.stderr.splitlines() if line.startswith("ci: ")]
    (told,) = [line for line in lines if not line.startswith(("written:", "the remote answers:"))]
    return told


def replace(project: Project, name: str, old: str, new: str) -> None:
    text = project.read(name)
    assert old in text
    (project.path / name).write_text(text.replace(old, new), encoding="utf-8")


def test_raw_data_that_was_pushed_with_git_alone_is_named_before_anything_runs(team: Team) -> None:
    a = team.clone("a")
    change_note(a, "A note that stays on this machine.\n")
    push_commit(a, "Another note")
    ci = team.clone("ci")
    done = run_ci(ci)
    unpushed = "data/raw/notes.dvc: came with Git, but data/raw/notes/ is not on the remote; dvc push"
    assert problem(done).startswith(unpushed)
    assert "Running" not in done.stdout
    assert "`data/raw/notes.dvc: came with Git," in ci.read(".nima/ci/comment.md")
    assert history(ci)[0] == "Another note"


def test_a_failing_stage_is_named_with_its_last_lines(team: Team) -> None:
    a = team.clone("a")
    a.set_params({"training": {"lr": 9.0}})
    replace(
        a, "toy.py", '    put("metrics/prepare', '    print("prepared", flush=True)\n    put("metrics/prepare'
    )
    push_commit(a, "Too fast")
    ci = team.clone("ci")
    done = run_ci(ci)
    assert problem(done, EXIT_STAGE_FAILED).startswith(
        "failed to reproduce 'train': failed to run: python toy.py"
    )
    text = ci.read(".nima/ci/comment.md")
    assert "The stage **train** failed. prepare went through" in text
    assert "train: loss is not finite at step 3; lower training.lr\n" in text
    assert "prepared" not in text, "only the lines of the stage that failed"
    assert history(ci)[0] == "Too fast"
    assert team.head() == a.run("git", "rev-parse", "HEAD").stdout.strip()


def test_results_that_others_overtook_are_made_again_on_top_of_theirs(team: Team) -> None:
    a, b = team.clone("a"), team.developer("b")
    replace(b, "params.yaml", "The server", "The router")
    b.dvc("repro", "-q")
    b.dvc("push", "-q")
    b.commit("Another prompt")
    a.set_params({"training": {"lr": 0.04}})
    push_commit(a, "Train faster")
    # While CI trains, B pushes the prompt with its results.
    b.run("git", "pull", "-q", "--rebase")
    ci = team.clone("ci")
    hook = ci.path / ".git" / "hooks" / "pre-push"
    hook.write_text(f"#!/bin/sh\nunset GIT_DIR\ncd {b.path} && git push -q origin HEAD\n")
    hook.chmod(0o755)

    assert stages_run(run_ci(ci)) == ["train", "generate_samples", "generate_samples"]
    assert history(ci)[1:3] == ["Another prompt", "Train faster"]
    assert ci.read("data/samples/samples.jsonl").count("The router") == 1
    assert ci.read("models/model/weights").endswith("0.04")
    assert team.head() == ci.run("git", "rev-parse", "HEAD").stdout.strip()
    (aside,) = set(team.branches()) - {"main"}
    assert f"Results that another push overtook stay on the branch `{aside}`." in ci.read(
        ".nima/ci/comment.md"
    )


def test_objects_that_vanished_from_the_remote_are_named(team: Team) -> None:
    a = team.developer("a")
    change_note(a, "A note whose object will vanish.\n")
    a.set_params({"training": {"lr": 0.06}})
    a.dvc("repro", "-q")
    a.dvc("push", "-q")
    push_commit(a, "A note, and its results")
    lose(team, a, "data/raw/notes/0.md")
    lose(team, a, "models/model/weights")
    assert "up to date" in a.dvc("push").stdout, "DVC does not notice"
    ci = team.clone("ci")
    note = "data/raw/notes.dvc: came with Git, but data/raw/notes/0.md is not on the remote; dvc push"
    assert problem(run_ci(ci)).startswith(note)
    both = "data/raw/notes/0.md, models/model/weights"
    assert problem(run_ci(a)).startswith(f"not on the remote: {both}; dvc push")


def lose(team: Team, project: Project, path: str) -> None:
    digest = hashlib.md5((project.path / path).read_bytes()).hexdigest()
    (Path(team.bucket) / "files" / "md5" / digest[:2] / digest[2:]).unlink()


def test_results_that_change_with_every_run_do_not_go_round_for_ever(team: Team) -> None:
    a = team.clone("a")
    command = "    cmd: python toy.py prepare\n"
    replace(a, "dvc.yaml", command, command + "    always_changed: true\n")
    replace(a, "toy.py", '{"num_bytes": len(text)}', '{"num_bytes": __import__("time").time()}')
    a.commit("A metric that is a clock")
    source = a.run("git", "rev-parse", "HEAD").stdout.strip()
    (a.path / "metrics/prepare.json").write_text('{"num_bytes": 0.5}')
    push_commit(a, f"Results, as CI commits them\n\nResults-of: {source}")
    assert problem(run_ci(team.clone("ci"))).startswith("prepare ran again on the commit of their results")
    assert team.head() == a.run("git", "rev-parse", "HEAD").stdout.strip()


def test_a_stopped_run_leaves_no_stage_behind_and_a_second_one_does_not_disturb_it(team: Team) -> None:
    a = team.clone("a")
    watch = "    from nima.workspace.signals import die_with_dvc\n    die_with_dvc()\n"
    pause = f"    import time\n{watch}    time.sleep(60)\n"
    replace(a, "toy.py", 'if stage == "train":\n', f'if stage == "train":\n{pause}')
    a.set_params({"training": {"lr": 0.05}})
    push_commit(a, "Train for a minute")
    ci = team.clone("ci")
    running = ci.start(".ci/repro")
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if line == "> python toy.py train\n":
                break
        told = problem(run_ci(ci))
        assert told.startswith("`dvc repro --pull --allow-missing` (process ")
        assert "wait for its end" in told
        running.terminate()
        asked = time.monotonic()
        printed = running.stdout.read()  # to the end: until nobody is left who could write
        assert time.monotonic() - asked < 40, "the stage went on without its DVC"
        assert running.wait(30) == EXIT_INTERRUPTED, printed
        assert "ci: stopped by SIGTERM; run again to continue\n" in printed
    finally:
        with suppress(ProcessLookupError):
            kill_group(running)
    # The lock of the killed DVC is no hindrance, a broken one is named.
    assert problem(run_ci(ci)).startswith("not committed: dvc.lock; ")
    ci.run("git", "restore", ".")
    (ci.path / ".dvc/tmp/rwlock").write_text("{", encoding="utf-8")
    assert problem(run_ci(ci)).endswith("if none runs, rm .dvc/tmp/rwlock")


def test_outputs_that_nobody_else_has_are_not_thrown_away_on_a_laptop(team: Team) -> None:
    a = team.developer("a")
    (a.path / "models/model/weights").write_text("weights edited by hand")
    assert problem(run_ci(a)).startswith("dvc checkout: models/model/weights: changed by hand; dvc checkout")
    assert a.read("models/model/weights") == "weights edited by hand"
