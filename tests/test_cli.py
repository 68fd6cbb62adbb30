import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from inspected_project import documents, write_project
from typer.testing import CliRunner

from nima.cli import application, main
from nima.workspace.errors import UserError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    write_project(folder)
    return folder


def nima(root: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nima.cli", *arguments],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_the_commands_and_comes_at_once(root: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = nima(root, "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    for command in ("inspect", "compare", "report", "tune", "exp", "verify"):
        assert command in done.stdout
    # Seconds of the processor: other work on the machine does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3
    listed = nima(root, "inspect", "--help").stdout
    assert "data" in listed
    assert "rejected" in listed


def test_help_loads_nothing_heavy(root: Path) -> None:
    code = (
        "import sys, nima.cli; nima.cli.application(); heavy = {'torch', 'numpy', 'pyarrow', 'pydantic'}; "
        "sys.exit(not (heavy | {'rich', 'dvc', 'jinja2', 'optuna', 'scipy'}).isdisjoint(sys.modules))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == 0


def test_a_pipe_gets_signs_and_no_colour(root: Path) -> None:
    done = nima(root, "inspect", "data", "--source", "chats", "--whitespace", "--ids")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert f"{documents()[3].id}  source chats  split train  weight 0.5  " in done.stdout
    assert "⏎ " in done.stdout


def on_terminal(root: Path, *arguments: str, **environment: str) -> str:
    """What the command writes to a terminal."""
    leader, follower = pty.openpty()
    variables = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"PYTHONPATH": str(ROOT / "src"), "TERM": "xterm-256color"} | environment
    command = [sys.executable, "-m", "nima.cli", *arguments]
    with subprocess.Popen(command, cwd=root, env=variables, stdin=follower, stdout=follower) as process:
        os.close(follower)
        written = b""
        try:
            while part := os.read(leader, 65536):
                written += part
        except OSError:  # Linux reports the end of the other side so
            pass
        finally:
            os.close(leader)
        assert process.wait(30) == 0
    return written.decode()


def test_a_terminal_gets_colour_unless_it_does_not_want_it(root: Path) -> None:
    command = ("inspect", "data", "--source", "chats")
    assert "\x1b[" in on_terminal(root, *command)
    for written in (
        on_terminal(root, *command, NO_COLOR="1"),
        on_terminal(root, *command, "--no-color"),
    ):
        assert "⟪‹<|im_start|>›│" in written
        assert "\x1b[38" not in written
        assert "\x1b[48" not in written


def run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    """Runs the command in this process; its exit code."""
    monkeypatch.setattr(sys, "argv", ["nima", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("data", "--source", "gides"), "nima: --source gides: no document has it; did you mean 'guides'?\n"),
        (("data", "--id", "1", "--number", "1"), "nima: --id, --number and --random: expected one of them\n"),
        (
            ("rejected", "--reason", "x"),
            "nima: --reason x: no rejected record has it; known: too_long, too_short\n",
        ),
    ],
)
def test_a_users_error_is_one_line_and_code_2(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(root)
    assert run_here(monkeypatch, "inspect", *arguments) == 2
    assert capsys.readouterr() == ("", message)


def test_outside_of_a_project_the_way_is_named(tmp_path: Path) -> None:
    done = nima(tmp_path, "inspect", "data")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "nima: data/tokens/documents.parquet: not found; run `dvc repro split` first, in the project's root\n"
    )


@pytest.mark.parametrize("arguments", [("--count", "0"), ("--random", "-1"), ("--nubmer", "1")])
def test_a_wrong_option_is_told_by_its_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, str]
) -> None:
    assert run_here(monkeypatch, "inspect", "data", *arguments) == 2
    assert arguments[0] in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(root: Path) -> None:
    command = f"{sys.executable} -m nima.cli inspect data --count 4 --ids | head -n 1"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        ["bash", "-c", command], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_an_output_that_cannot_hold_the_text_gets_it_escaped(root: Path) -> None:
    done = nima(root, "inspect", "data", "--number", "1", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Gr" in done.stdout
    assert "\\xfc" in done.stdout


def test_a_page_is_written_instead(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    path = tmp_path / "page.html"
    done = RUNNER.invoke(application(), ["inspect", "data", "--count", "3", "--html", str(path)])
    assert (done.exit_code, done.output) == (0, f"{path}: 3 documents\n")
    text = path.read_text(encoding="utf-8")
    assert all(document.id in text for document in documents()[:3])
    assert documents()[3].id not in text


def test_a_draw_can_be_repeated(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    command = ["inspect", "data", "--random", "5", "--count", "2", "--no-color"]
    first, second = (RUNNER.invoke(application(), command) for _ in range(2))
    assert first.exit_code == 0
    assert first.output == second.output


def test_errors_reach_the_caller_of_the_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(RUNNER.invoke(application(), ["inspect", "data"]).exception, UserError)


def test_rejected_records_show_reason_and_excerpt(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    done = RUNNER.invoke(application(), ["inspect", "rejected", "--source", "guides"])
    assert done.exit_code == 0
    lines = done.output.splitlines()
    assert lines[0] == "2 rejected: 1 too_long, 1 too_short"
    assert lines[2:5] == [
        "too_short  guides: short.md",
        "12 characters, quality.min_chars = 40",
        "Too short.",
    ]
    assert lines[7] == "x" * 400 + "…"
    hostile = RUNNER.invoke(application(), ["inspect", "rejected", "--source", "chats"]).output
    assert "⟨U+001B⟩[31mred" in hostile
    assert "\x1b" not in hostile
