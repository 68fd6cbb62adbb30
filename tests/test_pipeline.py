"""The commands that people type, against a real DVC repository."""

import html.parser
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, Project, create_project

ALL_STAGES = ["prepare", "tokenize", "split", "train", "evaluate", "generate_samples"]


def stages_run(output: str) -> list[str]:
    return re.findall(r"Running stage '(\w+)'", output)


def test_a_second_repro_runs_nothing_and_leaves_the_lock_alone(project: Project) -> None:
    before = project.read("dvc.lock")
    done = project.dvc("repro")
    assert stages_run(done.stdout) == []
    assert project.read("dvc.lock") == before


def test_the_lock_names_every_stage_and_git_is_clean_but_for_the_clock(project: Project) -> None:
    assert [stage for stage in ALL_STAGES if f"\n  {stage}:\n" in project.read("dvc.lock")] == ALL_STAGES
    assert project.run("git", "status", "--porcelain").stdout.strip() in ("", "M metrics/timing.json")


def test_forced_repro_in_a_fresh_clone_gives_the_same_bytes(project: Project, tmp_path: Path) -> None:
    """And with programs started as a user starts them, which most tests do without."""
    project.run("git", "clone", "-q", str(project.path), str(tmp_path / "clone"))
    clone = Project(tmp_path / "clone")
    clone.run("dvc", "repro", "--force", warm=False)
    assert clone.read("dvc.lock") == project.read("dvc.lock")
    assert clone.outputs() == project.outputs()
    assert clone.read("metrics/timing.json") != project.read("metrics/timing.json")


@pytest.fixture(scope="module")
def experiment(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, str]:
    """A copy in which an experiment with another learning rate ran, and what DVC printed."""
    project = finished_project.copy_to(tmp_path_factory.mktemp("experiment") / "project")
    done = project.dvc("exp", "run", "-n", "slower", "-S", "training.lr=1e-4")
    return project, done.stdout


def test_a_learning_rate_reruns_training_and_what_follows(experiment: tuple[Project, str]) -> None:
    project, printed = experiment
    assert stages_run(printed) == ["train", "evaluate", "generate_samples"]
    assert "lr: 0.0001" in project.read("params.yaml")
    assert project.read("params.yaml").count(" # ") > 50, "comments survive"

    # One change is one visible line.
    diff = project.dvc("params", "diff", "--md").stdout
    assert re.findall(r"training\.\w+", diff) == ["training.lr"]
    metrics = project.dvc("metrics", "diff", "--md").stdout
    assert "test.bits_per_byte" in metrics
    table = project.dvc("exp", "diff", "HEAD", "slower", "--md").stdout
    assert "training.lr" in table
    assert "test.loss" in table
    shown = json.loads(project.dvc("exp", "show", "--json").stdout)
    names = [experiment["name"] for row in shown for experiment in row.get("experiments") or []]
    assert "slower" in names


def test_tiny_learning_rates_stay_numbers(project: Project) -> None:
    # DVC writes 1e-05 the way that YAML 1.1 reads as a string.
    project.set_params({"training": {"max_steps": 6}})
    project.dvc("exp", "run", "-n", "tiny-rate", "-S", "training.lr=0.00001", "train")
    assert "lr: 1e-05" in project.read("params.yaml")


def test_a_new_document_reruns_everything_and_a_prompt_its_gate_and_the_samples(project: Project) -> None:
    (project.path / "data/raw/notes/note-99.md").write_text("# Note 99\n\nA note, new and long enough.\n")
    assert stages_run(project.dvc("repro").stdout) == ALL_STAGES
    project.set_params({"generate": {"prompts": ["Mount the"]}})
    assert stages_run(project.dvc("repro").stdout) == ["split", "generate_samples"]


def test_a_stage_of_the_committed_run_comes_out_again_in_a_clean_clone(project: Project) -> None:
    done = project.run("python", "-m", "nima.cli", "verify", "--stage", "evaluate")
    first = done.stdout.splitlines()[0]
    assert re.fullmatch(r"# HEAD \([0-9a-f]{7}\): (\d+) of \1 outputs are equal", first)
    assert "Versions that are not" not in done.stdout
    assert json.loads(project.read("metrics/environment.json")).keys() == set(ALL_STAGES)


def test_a_key_that_changes_no_result_reruns_nothing(project: Project) -> None:
    project.set_params({"run": {"save_every_steps": 7}})
    assert stages_run(project.dvc("repro").stdout) == []


def test_a_temporary_run_uses_its_own_code_and_leaves_the_workspace_alone(project: Project) -> None:
    before = project.outputs()
    module = project.path / "src/nima/training/schedule.py"
    module.write_text(module.read_text() + "\n\nMARK = 1\n")
    train = project.path / "stages/train.py"
    train.write_text(
        train.read_text().replace("def main(", "from nima.training.schedule import MARK\n\n\ndef main(")
    )
    done = project.dvc("exp", "run", "--temp", "-n", "aside", "-S", "training.lr=0.002")
    assert "train" in stages_run(done.stdout)
    assert project.outputs() == before
    assert "aside" in project.dvc("exp", "list", "--name-only").stdout
    assert not list(project.path.glob(".nima/checkpoints/*")), "a finished run leaves no checkpoints"


def test_queued_experiments_run_in_workers(project: Project) -> None:
    changes = ("-S", "training.lr=0.003", "-S", "training.max_steps=8")
    project.dvc("exp", "run", "--queue", "-n", "queued", *changes, "train")
    project.dvc("queue", "start", "-j", "1")
    project.run("dvc", "queue", "logs", "queued", "-f", check=False)
    for _ in range(60):
        status = project.dvc("queue", "status").stdout
        if "Success" in status or "Failed" in status:
            break
        subprocess.run(["sleep", "0.5"], check=True)
    assert "Success" in status, status + project.dvc("queue", "logs", "queued", check=False).stdout
    assert "queued" in project.dvc("exp", "list", "--name-only").stdout


def test_a_bad_param_stops_before_any_work_with_one_line_for_each_problem(project: Project) -> None:
    project.set_params({"training": {"precision": "fp8", "lr": -1.0}})
    done = project.dvc("repro", check=False)
    assert done.returncode != 0
    problems = [line for line in done.stderr.splitlines() if line.startswith("train: params.yaml:")]
    assert len(problems) == 2
    assert "Traceback" not in done.stderr
    assert project.dvc("status").returncode == 0


# ----------------------------------------------------------------------------------------- in a browser


def browser() -> str:
    names = ("chromium", "google-chrome", "chromium-browser")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("no Chromium on this machine: install it to test the plots page")
    return found


class Addresses(html.parser.HTMLParser):
    """Everything that a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_plots_of_two_revisions_open_without_the_network(
    experiment: tuple[Project, str], tmp_path: Path
) -> None:
    project, _ = experiment
    project.dvc("plots", "diff", "HEAD", "workspace", "-o", str(tmp_path / "page"))
    page = tmp_path / "page" / "index.html"
    text = page.read_text(encoding="utf-8")
    addresses = Addresses()
    addresses.feed(text)
    assert [address for address in addresses.found if address.startswith(("http", "//"))] == []

    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser(), args=["--no-sandbox", "--disable-gpu"])
        tab = chromium.new_context(offline=False, viewport={"width": 1300, "height": 900}).new_page()
        errors: list[str] = []
        requests: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(page.as_uri())
        tab.wait_for_selector("canvas, svg.marks", timeout=20_000)
        tab.wait_for_timeout(500)
        titles = tab.evaluate("document.body.innerText")
        charts = tab.locator("canvas, svg.marks").count()
        tab.screenshot(path=str(tmp_path / "page.png"), full_page=True)
        chromium.close()
    assert errors == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in requests)
    assert charts >= 7, titles
    loss = next(spec for spec in vega_specs(text) if "Loss, training" in json.dumps(spec))
    assert {row["rev"] for row in rows_of(loss)} == {"HEAD", "workspace"}
    assert {Path(row["filename"]).parent.name for row in rows_of(loss)} == {"train", "validation"}
    width, height = struct.unpack(">II", (tmp_path / "page.png").read_bytes()[16:24])
    assert width >= 1000
    assert height >= 900


def vega_specs(page: str) -> list[dict]:
    decoder = json.JSONDecoder()
    return [decoder.raw_decode(page, found.end())[0] for found in re.finditer(r"var spec = ", page)]


def rows_of(spec: dict) -> list[dict]:
    return spec["data"]["values"]


def test_plots_show_names_every_chart(project: Project) -> None:
    project.dvc("plots", "show")
    text = project.read("dvc_plots/index.html")
    for title in ("Loss, training and validation", "Perplexity on", "Learning rate", "against compressors"):
        assert title in text


def test_the_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make repro" in readme
    assert "make test" in readme
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in ("repro", "test", "lint", "bench", "help"):
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_shipped_pipeline_is_up_to_date_with_its_lock() -> None:
    """dvc.lock was made from the code and params that are committed beside it."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    lock = yaml.load((ROOT / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    params = yaml.load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert list(lock) == ALL_STAGES
    for name, stage in lock.items():
        for section, values in stage.get("params", {}).get("params.yaml", {}).items():
            assert values == params[section], f"{name}: run `make repro` and commit dvc.lock"


@pytest.fixture
def unfinished(tmp_path: Path) -> Project:
    return create_project(tmp_path / "project")


def test_works_from_a_folder_with_spaces(tmp_path: Path) -> None:
    project = create_project(tmp_path / "a folder" / "of mine")
    done = project.dvc("repro", "split")
    assert stages_run(done.stdout) == ["prepare", "tokenize", "split"]


OWN_LOSS = """
from torch.nn.functional import cross_entropy


def plain(logits, targets):
    return cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
"""


def test_an_own_loss_is_a_dependency_and_rules_are_set_from_the_command_line(project: Project) -> None:
    (project.path / "losses.py").write_text(OWN_LOSS)
    own = ("-S", "training.loss=losses:plain", "-S", "training.max_steps=8")
    stopped = (*own, "-S", "training.early_stopping.gradient_collapse={norm: 1e9, patience: 6}", "train")
    undeclared = project.dvc("exp", "run", *stopped, check=False)
    assert undeclared.returncode != 0
    assert "dvc.yaml does not name losses.py among the deps of train" in undeclared.stderr + undeclared.stdout
    before, train, after = project.read("dvc.yaml").partition("\n  train:\n")
    declared = after.replace("    deps:\n", "    deps:\n      - losses.py\n", 1)
    (project.path / "dvc.yaml").write_text(before + train + declared)
    done = project.dvc("exp", "run", *stopped)
    assert "after step 6: the gradient norm was below 1000000000.0 for 6 updates" in done.stderr
    metrics = json.loads(project.read("metrics/train.json"))
    assert metrics["stopped_early"] is True
    assert stages_run(project.dvc("repro", "train").stdout) == []
    (project.path / "losses.py").write_text(OWN_LOSS + "# another\n")
    again = project.dvc("repro", "train")
    assert stages_run(again.stdout) == ["train"]
    assert "continuing" not in again.stderr
