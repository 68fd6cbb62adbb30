"""A real project in miniature: the checkout's own files, a small recipe, a Git repository with DVC."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from ruamel.yaml import YAML
from warm_start import warm_programs
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# A busy machine is not a failure.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")

ROOT = Path(__file__).parent.parent
SMALL = {
    "tokenize": {"vocab_size": 400},
    "split": {"leakage": {}},
    "model": {"preset": "custom-nano", "num_layers": 2, "width": 32, "context_tokens": 64, "dropout": 0.1},
    "training": {
        "max_steps": 60,
        "block_tokens": 32,
        "batch_tokens": 512,
        "micro_batch_tokens": 256,
        "warmup_steps": 5,
        "validate_every_steps": 15,
        "log_every_steps": 2,
        "validation_max_tokens": 640,
    },
    "evaluate": {"window_tokens": 64, "stride_tokens": 32},
    "generate": {"max_new_tokens": 12, "prompts": ["The server", "To restart"]},
    "run": {"save_every_steps": 4, "save_every_seconds": None, "print_every_steps": 1},
}
NOT_COPIED = ("data/raw/", "tests/", "metrics/", "plots/", "dvc.lock")


class Project:
    """A folder with a pipeline in it, and the commands that a user would type there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        foreign = ("DVC_", "GIT_", "NIMA_", "PYTHONDONTWRITEBYTECODE")
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(foreign)} | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_SITE_CACHE_DIR": str(path.parent / "site-cache"),
            "DVC_NO_ANALYTICS": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_AUTHOR_NAME": "A. Tester",
            "GIT_AUTHOR_EMAIL": "tester@example.com",
            "GIT_COMMITTER_NAME": "A. Tester",
            "GIT_COMMITTER_EMAIL": "tester@example.com",
            "NIMA_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }

    @property
    def warm_env(self) -> dict[str, str]:
        """With `dvc` and `python` that start faster, though not as children of whoever starts them."""
        return self.env | {"PATH": f"{warm_programs()}{os.pathsep}{self.env['PATH']}"}

    def run(self, *command: str, check: bool = True, warm: bool = True) -> subprocess.CompletedProcess[str]:
        env = self.warm_env if warm else self.env
        done = subprocess.run(
            command, cwd=self.path, env=env, capture_output=True, text=True, timeout=300, check=False
        )
        assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    def dvc(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("dvc", *arguments, check=check)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """A true program in a process group of its own, its output readable while it runs."""
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def read(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def set_params(self, changes: dict[str, dict]) -> None:
        yaml = YAML(typ="rt")
        tree = yaml.load(self.path / "params.yaml")
        for section, keys in changes.items():
            tree[section].update(keys)
        yaml.dump(tree, self.path / "params.yaml")

    def commit(self, message: str) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-qm", message)

    def files(self, *folders: str) -> dict[str, bytes]:
        """Every file below the folders, with its bytes."""
        return {
            path.relative_to(self.path).as_posix(): path.read_bytes()
            for folder in folders
            for path in sorted((self.path / folder).rglob("*"))
            if path.is_file() and path.name not in (".gitignore", "timing.json")
        }

    def outputs(self) -> dict[str, bytes]:
        """All that the pipeline writes, without the clock's figures."""
        data = ("data/documents", "data/rejected", "data/tokens", "data/splits", "data/samples")
        return self.files(*data, "models", "metrics", "plots")

    def copy_to(self, path: Path) -> "Project":
        shutil.copytree(self.path, path, symlinks=True)
        return Project(path)


def write_small_corpus(folder: Path) -> None:
    """Documents with a grammar that a tiny model learns something of, all different."""
    draw = random.Random(5)
    things = ["server", "volume", "cluster", "socket", "backup", "router", "container", "queue"]
    verbs = ["restart", "inspect", "mount", "drain", "scale", "verify", "rotate", "list"]
    states = ["ready", "pending", "degraded", "stopped", "healthy"]
    folder.mkdir(parents=True)
    for number in range(90):
        lines = [f"# Note {number}", ""]
        for _ in range(draw.randint(3, 8)):
            thing, verb = draw.choice(things), draw.choice(verbs)
            lines.append(
                f"To {verb} the {thing}, run this command and wait until it is {draw.choice(states)}."
            )
            lines += ["", "```bash", f"ctl {verb} --{thing} {draw.randint(1, 99)}", "```", ""]
        (folder / f"note-{number:02d}.md").write_text("\n".join(lines), encoding="utf-8")


def create_project(path: Path) -> Project:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    for name in filter(None, names):
        source = ROOT / name
        if source.is_file() and not name.startswith(NOT_COPIED):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, path / name)
    write_small_corpus(path / "data" / "raw" / "notes")
    project = Project(path)
    source = {"name": "notes", "path": "data/raw/notes", "glob": "**/*.md"}
    project.set_params(SMALL | {"prepare": {"sources": [source], "quality": {"min_chars": 20}}})
    project.run("python", "-m", "nima.provision")
    project.run("git", "init", "-q", "-b", "main")
    project.commit("A small project")
    return project


# The files that take longest, so that workers end together: one of a minute must not begin last.
SLOWEST = (  # of test_NAME.py
    "pipeline zero resume_processes resume processes comparison ci observation tuning sharing verification "
    "training trackers experiments ci_trouble micro_batch remotes compilation launch preflight report"
)
# They share what starts slowly: a team's history and data, a server of objects, a cluster of Ray.
TOGETHER = (("ci", "ci_trouble"), ("sharing", "remotes"), ("parallel", "tokens", "prepare"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {f"test_{name}.py": number for number, name in enumerate(SLOWEST.split())}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


class FileScheduling(LoadScopeScheduling):
    """One worker runs a whole file, which sets up once what its tests share; or the files of one group."""

    def _split_scope(self, nodeid: str) -> str:
        name = nodeid.partition("::")[0].rpartition("/")[2].removeprefix("test_").removesuffix(".py")
        return next((names[0] for names in TOGETHER if name in names), name)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileScheduling:
    config.option.loadscopereorder = False  # by the number of tests: the order above is better
    return FileScheduling(config, log)


def built_once(factory: pytest.TempPathFactory, name: str, build: Callable[[Path], object]) -> Project:
    """The project that `build` makes in a folder: once, whatever the number of test workers."""
    shared = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    place = shared / name / "project"
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place.parent / "done").exists():
            shutil.rmtree(place.parent, ignore_errors=True)
            build(place)
            (place.parent / "done").touch()
    return Project(place)


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The small project after `dvc repro`, committed."""

    def build(place: Path) -> None:
        project = create_project(place)
        project.dvc("repro")
        project.commit("The first results")

    return built_once(tmp_path_factory, "finished", build)


@pytest.fixture(scope="session")
def tried_project(finished_project: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The finished project with an experiment `brief`, whose samples are shorter. To copy, not to change."""

    def build(place: Path) -> None:
        project = finished_project.copy_to(place)
        project.dvc("exp", "run", "--temp", "-n", "brief", "-S", "generate.max_new_tokens=5")

    return built_once(tmp_path_factory, "tried", build)


@pytest.fixture
def project(finished_project: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, to change at will."""
    return finished_project.copy_to(tmp_path / "project")


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Nima starts in this process, DVC and its stages, starts as in `Project.run`."""
    monkeypatch.setattr(sys, "executable", str(warm_programs() / "python"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)


def kill_group(process: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    os.killpg(process.pid, number)


@pytest.fixture(scope="session")
def cluster() -> Iterator[tuple[str, object]]:
    """A Ray cluster of two nodes on this machine: its address, and the second node."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster.address, node
    cluster.shutdown()
