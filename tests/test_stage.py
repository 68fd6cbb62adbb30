"""What every stage does around its story: exit codes, one-line errors, inputs that must not change."""

import errno
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from nima.workspace import runtime as runtime_settings
from nima.workspace import stage
from nima.workspace.errors import Interrupted, UserError
from nima.workspace.outputs import rewritten
from nima.workspace.params import Params
from nima.workspace.params.params_file import load
from nima.workspace.runtime import Runtime
from nima.workspace.stage import run_stage

SHIPPED = Path("params.yaml").resolve()

OWN_SOURCE = os.environ | {"PYTHONPATH": str(SHIPPED.parent / "src")}


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with params, one stage and its inputs, as the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setattr(stage, "die_with_dvc", lambda: None)
    (tmp_path / "params.yaml").write_bytes(SHIPPED.read_bytes())
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.txt").write_text("a", encoding="utf-8")
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  work:\n    cmd: x\n    deps:\n    - data\n    params:\n    - tokenize\n", encoding="utf-8"
    )
    return tmp_path


def exit_code(story: stage.Story) -> int:
    """How a stage named "work" exits: 0 when it returns."""
    try:
        run_stage("work", story)
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def change_params(key: str, value: str) -> None:
    text, count = re.subn(rf"(?m)^( *{key}:) \S+", rf"\1 {value}", Path("params.yaml").read_text(), count=1)
    assert count == 1
    Path("params.yaml").write_text(text)


def change(name: str) -> None:
    with Path(name).open("a", encoding="utf-8") as file:
        file.write("1\n")


def test_a_stage_that_ends_well_notes_its_clock_figures() -> None:
    seen = []

    def story(params: Params, runtime: Runtime) -> dict[str, float]:
        seen.append((params, runtime.scratch))
        return {"tokens_per_second": 12.0}

    assert exit_code(story) == 0
    assert seen == [(load(SHIPPED), Path.cwd() / ".nima")]
    timing = json.loads(Path("metrics/timing.json").read_text(encoding="utf-8"))["work"]
    assert timing.keys() == {"seconds", "peak_memory_bytes", "tokens_per_second"}
    assert timing["peak_memory_bytes"] > 10_000_000


def test_a_stage_notes_with_what_it_ran_beside_the_other_stages() -> None:
    Path("metrics").mkdir()
    Path("metrics/environment.json").write_text('{"other": {"python": "3.11.0"}}', encoding="utf-8")
    assert exit_code(lambda *_: None) == 0
    first = Path("metrics/environment.json").read_text(encoding="utf-8")
    found = json.loads(first)
    assert found["other"] == {"python": "3.11.0"}
    assert found["work"]["python"] == platform.python_version()
    assert found["work"]["numpy"] == version("numpy")
    assert found["work"].keys() >= {"torch", "cpu", "cores", "memory_bytes", "gpus", "device", "threads"}
    assert exit_code(lambda *_: None) == 0
    assert Path("metrics/environment.json").read_text(encoding="utf-8") == first, "no clock in it"


def raises(error: BaseException) -> stage.Story:
    def story(params: Params, runtime: Runtime) -> None:
        raise error

    return story


def test_what_comes_first_comes_before_all_threads(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(stage, "die_with_dvc", lambda: order.append("threads"))
    run_stage("work", lambda *_: order.append("work"), first=lambda runtime: order.append(runtime.engine))
    assert order == ["local", "threads", "work"]


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("data/x: missing"), 2, "work: data/x: missing\n"),
        (Interrupted("stopped by SIGTERM"), 3, "work: stopped by SIGTERM\n"),
        (KeyboardInterrupt(), 3, "work: stopped\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "models/x"),
            2,
            "work: models/x: cannot be written or read: Permission denied\n",
        ),
        (
            OSError(errno.EROFS, "Read-only file system", "models/x"),
            2,
            "work: models/x: cannot be written or read: Read-only file system\n",
        ),
    ],
)
def test_what_a_user_can_cause_is_one_line_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert exit_code(raises(error)) == code
    assert capsys.readouterr().err == line
    assert not Path("metrics/timing.json").exists()


def test_a_disk_that_fills_up_is_one_line() -> None:
    def story(params: Params, runtime: Runtime) -> None:
        with Path("/dev/full").open("w", encoding="utf-8") as file:
            file.write("x")

    with pytest.raises(UserError, match=r"cannot be written or read: No space left on device") as caught:
        stage.tell_time("work", story, runtime_settings.load(Path.cwd()))
    assert str(Path.cwd()) in str(caught.value)


@pytest.mark.parametrize(
    "error", [KeyError("x"), FileNotFoundError(errno.ENOENT, "no", "y"), ValueError("z")]
)
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_stage("work", raises(error))


def test_wrong_params_stop_a_stage_before_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    change_params("vocab_size", "12\n  typo: 1")
    assert exit_code(raises(AssertionError("the story must not begin"))) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("work: params.yaml:") for line in lines)


def test_a_missing_input_stops_a_stage_before_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/a.txt").unlink()
    Path("data").rmdir()
    assert exit_code(raises(AssertionError("the story must not begin"))) == 2
    assert capsys.readouterr().err.startswith("work: data: not found")


def test_the_code_of_a_stage_is_its_modules_and_its_packages_whole() -> None:
    Path("dvc.yaml").write_text("stages:\n  work:\n    cmd: x\n    deps: [data, src/kit, work.py]\n")
    Path("src/kit/inner").mkdir(parents=True)
    for name in ("src/kit/__init__.py", "src/kit/inner/part.py", "work.py"):
        Path(name).touch()
    before = stage.code_of("work")
    change("data/a.txt")
    assert stage.code_of("work") == before
    for name in ("src/kit/inner/part.py", "work.py"):
        change(name)
        assert stage.code_of("work") != before, name
        before = stage.code_of("work")


def test_params_that_change_while_a_stage_runs_fail_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda *_: change_params("vocab_size", "123456")) == 2
    assert capsys.readouterr().err == "work: params.yaml: tokenize changed while the stage ran; run again\n"


def test_params_of_other_stages_may_change_while_a_stage_runs() -> None:
    assert exit_code(lambda *_: change_params("max_new_tokens", "7")) == 0


def test_the_run_section_may_change_while_a_stage_runs() -> None:
    assert exit_code(lambda *_: change_params("save_every_seconds", "5.5")) == 0


def test_comments_may_change_while_a_stage_runs() -> None:
    def story(params: Params, runtime: Runtime) -> None:
        with Path("params.yaml").open("a") as file:
            file.write("# a thought\n")

    assert exit_code(story) == 0


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda: Path("data/a.txt").write_text("b", encoding="utf-8"), "data/a.txt changed"),
        (lambda: Path("data/new.txt").write_text("b", encoding="utf-8"), "data/new.txt added"),
        (lambda: Path("data/a.txt").unlink(), "data/a.txt removed"),
    ],
)
def test_an_input_that_changes_while_a_stage_runs_fails_it_and_is_named(
    capsys: pytest.CaptureFixture[str], change: object, phrase: str
) -> None:
    def story(params: Params, runtime: Runtime) -> None:
        change()  # type: ignore[operator]

    assert exit_code(story) == 2
    assert phrase in capsys.readouterr().err


def test_an_interrupted_stage_says_so_even_if_an_input_changed(capsys: pytest.CaptureFixture[str]) -> None:
    def story(params: Params, runtime: Runtime) -> None:
        Path("data/a.txt").write_text("b", encoding="utf-8")
        raise Interrupted("stopped by SIGINT")

    assert exit_code(story) == 3
    assert capsys.readouterr().err == "work: stopped by SIGINT\n"


def test_a_stage_in_a_process_of_its_own_exits_with_its_code() -> None:
    code = (
        "from nima.workspace.errors import UserError\nfrom nima.workspace.stage import run_stage\n"
        "def story(params, runtime):\n    raise UserError('nothing to read')\n"
        "run_stage('work', story)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=OWN_SOURCE)
    assert (done.returncode, done.stderr) == (2, "work: nothing to read\n")


def test_a_stage_looks_for_garbage_at_its_work_but_not_among_what_it_imported(project: Path) -> None:
    (project / "stages").mkdir()
    (project / "stages/__init__.py").write_bytes((SHIPPED.parent / "stages/__init__.py").read_bytes())
    (project / "stages/work.py").write_text(
        "import gc\nfrom nima.workspace.stage import run_stage\nbefore = gc.isenabled()\n"
        "def story(params, runtime):\n    print(before, gc.isenabled(), gc.get_freeze_count() > 10_000)\n"
        "run_stage('work', story)\n"
    )
    command = [sys.executable, "-m", "stages.work"]
    done = subprocess.run(command, capture_output=True, text=True, env=OWN_SOURCE)
    assert done.stdout.startswith("False True True\n"), done.stderr


def test_an_output_folder_is_emptied_of_everything(project: Path) -> None:
    folder = project / "models/model"
    (folder / "old").mkdir(parents=True)
    (folder / "old/file").write_text("x", encoding="utf-8")
    (folder / "weights").write_text("x", encoding="utf-8")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "elsewhere").symlink_to(project / "data")
    assert rewritten(folder) == folder
    assert list(folder.iterdir()) == []
    assert (project / "data/a.txt").is_file()


def test_a_file_in_place_of_an_output_folder_is_one_line(project: Path) -> None:
    (project / "models").write_text("x", encoding="utf-8")
    for folder in (project / "models", project / "models/model"):
        with pytest.raises(UserError, match=r"^[^\n]*models[^\n]*: cannot be written: [^\n]+$"):
            rewritten(folder)


def test_a_folder_on_a_file_system_that_takes_no_files_is_one_line() -> None:
    with pytest.raises(UserError, match=r"^/proc/nima: cannot be written: "):
        rewritten(Path("/proc/nima"))
