"""The house keeps its shape: layers, owners of third-party packages, dependencies of stages."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from stage_code import (
    MODULES,
    ROOT,
    SOURCE,
    STAGES,
    code_of,
    imported_names,
    is_type_checking,
    own_imports,
    packages_of,
    tree_of,
)

# A module imports only from what stands before it: from layers above its own row, and from the left in it.
LAYERS = (
    ("workspace", "workers"),
    ("corpus", "tokenizer", "network"),
    (
        "dataset",
        "encoding",
        "leakage",
        "batches",
        "optimizer",
        "processes",
        "checkpoint",
        "monitoring",
        "trackers",
    ),
    ("scoring", "evaluation", "generation", "inspection"),
    ("training",),
    ("lr_finder", "observation", "data_report", "provision"),
    ("saved_runs", "checkpoint_commands"),
    ("repository", "remotes", "reports", "verification", "experiments", "tuning"),
    ("results_commands", "experiment_commands"),
    ("ci",),
    ("cli",),
)
# The one module that may import each heavy package.
OWNERS = {
    "ruamel": {"nima.workspace.params.params_file", "nima.corpus.formats.yaml_tree"},
    "pydantic": {"nima.workspace.params"},
    "pydantic_core": {"nima.workspace.params"},
    "tokenizers": {"nima.tokenizer"},
    "tiktoken": {"nima.tokenizer"},
    "pyarrow": {
        "nima.workspace.columns",
        "nima.corpus.document",
        "nima.corpus.outcomes",
        "nima.corpus.collection",
        "nima.corpus.formats.parquet",
        "nima.dataset.tokens",
        "nima.tokenizer.ascii_pieces",
        "nima.encoding.token_writer",
        "nima.encoding.encoding",
        "nima.verification.differences",
    },
    "datasets": {"nima.corpus.sources.hub"},
    "qdrant_client": {"nima.corpus.sources.vectors"},
    "ray": {"nima.workers.parallel"},
    "sentencepiece": {"nima.tokenizer"},
    "selectolax": {"nima.corpus.formats.html"},
    "chardet": {"nima.corpus.formats.encodings"},
    "ftfy": {"nima.corpus.cleaning.cleaning"},
    "py3langid": {"nima.corpus.quality.languages"},
    "jinja2": {
        "nima.encoding.conversation.templates",
        "nima.inspection.page",
        "nima.data_report",
        "nima.reports.web_pages",
    },
    "typer": {
        "nima.cli",
        "nima.checkpoint_commands",
        "nima.results_commands",
        "nima.experiment_commands",
    },
    "scipy": {"nima.reports.comparison"},
    "optuna": {"nima.tuning.study"},
    "safetensors": {"nima.network.tensors"},
    "dvclive": {"nima.training.tracking"},
    "accelerate": {"nima.processes"},
    "matplotlib": {"nima.scoring.pictures"},
    "rich": {"nima.monitoring.progress", "nima.inspection.terminal", "nima.reports.comparison_views"},
    "psutil": {
        "nima.workspace.runtime",
        "nima.workspace.surroundings",
        "nima.repository.other_processes",
        "nima.monitoring.hardware",
        "nima.monitoring.monitor",
        "nima.training.process_memory",
    },
    "pynvml": {"nima.monitoring.hardware"},
    "tensorboard": {"nima.trackers.to_tensorboard"},
    "wandb": {"nima.trackers.to_wandb"},
    "comet_ml": {"nima.trackers.to_comet"},
    "mlflow": {"nima.trackers.to_mlflow"},
    "zstandard": {
        "nima.checkpoint.compression",
        "nima.evaluation.compression",
        "nima.corpus.formats.unpacking",
        "nima.corpus.sources.tars",
    },
    "vl_convert": {"nima.provision"},
    "bitsandbytes": {"nima.optimizer.adamw_8bit"},
    "deepspeed": {"nima.processes.zero"},
    "liger_kernel": {"nima.network.fused"},
}
# These run on a machine that has only torch and numpy.
BARE = (
    "network.fused",
    "network.varlen",
    "network.decoder",
    "training.compilation",
    "training.schedule",
    "optimizer",
    "batches",
    "monitoring.speed",
)
FORBIDDEN_WORDS = {"util", "utils", "common", "misc", "helper", "helpers", "base", "engine"}
FORBIDDEN_WORDS |= {"manager", "factory", "handler", "processor"}


def pipeline() -> dict:
    return YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))


def place_of(module: str) -> int:
    part = module.split(".")[1]
    return [name for layer in LAYERS for name in layer].index(part)


def test_every_module_has_a_layer_and_every_layer_its_modules() -> None:
    named = {part for layer in LAYERS for part in layer}
    there = {module.split(".")[1] for module in MODULES if module != "nima"}
    assert there == named


@pytest.mark.parametrize("module", [name for name in MODULES if name != "nima"])
def test_modules_import_only_what_stands_before_them(module: str) -> None:
    for other in own_imports(MODULES[module], at_run_time=False) - {"nima"}:
        assert place_of(other) <= place_of(module), f"{module} imports {other}, which stands after it"


def owner_of(module: str, package: str) -> str:
    """The module, or the package that owns for all its modules."""
    return next((parent for parent in packages_of(module) if parent in OWNERS[package]), module)


@pytest.mark.parametrize("package", OWNERS)
def test_each_heavy_package_has_its_owner(package: str) -> None:
    importers = {
        owner_of(module, package)
        for module, path in MODULES.items()
        if any(name.split(".")[0] == package for name in imported_names(path, at_run_time=False))
    }
    assert importers == OWNERS[package]


def test_what_runs_on_a_bare_gpu_machine_needs_only_torch_and_numpy() -> None:
    extras = {"bitsandbytes", "liger_kernel"}  # imported only by who asks for it
    allowed = {"torch", "numpy", "nima"} | extras | sys.stdlib_module_names
    for part in BARE:
        waiting, seen = {f"nima.{part}"}, set()
        while waiting:
            module = waiting.pop()
            seen.add(module)
            outside = {name.split(".")[0] for name in imported_names(MODULES[module])} - allowed
            assert not outside, f"nima.{part} needs {outside} through {module}"
            waiting |= own_imports(MODULES[module]) - seen


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    # And on no more, but for `stage_code.WHOLE`. Files of the user's own, with a loss or step that params
    # name, may stand beside.
    deps = pipeline()["stages"][stage]["deps"]
    assert [dep for dep in deps if dep.startswith(("src/", "stages/"))] == code_of(stage), "make deps"


def test_what_every_stage_executes_first_changes_no_result() -> None:
    docstring, *statements = map(ast.unparse, tree_of(ROOT / "stages" / "__init__.py").body)
    assert docstring.startswith(('"', "'"))
    allowed = {
        "import gc",
        "import os",
        "import sys",
        "from pathlib import Path",
        "if sys.argv[0] == '-m':\n    gc.disable()",
        "os.environ.setdefault('PYDANTIC_DISABLE_PLUGINS', '__all__')",
        "os.environ.setdefault('GOMP_SPINCOUNT', 'N')",
        "sys.path.insert(0, str(Path(__file__).resolve().parent.parent / 'src'))",
    }
    others = {re.sub(r"'\d+'", "'N'", statement) for statement in statements} - allowed
    assert not others, f"no stage depends on stages/__init__.py: {others} belongs where dvc.yaml names it"


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_short_stories(stage: str) -> None:
    assert len((ROOT / "stages" / f"{stage}.py").read_text(encoding="utf-8").splitlines()) <= 40


def test_the_pipeline_has_six_stages_in_story_order() -> None:
    stages = pipeline()["stages"]
    assert tuple(stages) == STAGES
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m stages.{name}"
        assert "run" not in stage.get("params", []), "the section `run` changes no result"
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            assert "persist" not in (next(iter(out.values())) if isinstance(out, dict) else {})


def test_params_of_a_stage_are_sections_of_the_schema() -> None:
    from nima.workspace.params import Params

    used = {section for stage in pipeline()["stages"].values() for section in stage.get("params", [])}
    assert used == set(Params.model_fields) - {"run", "tune", "lr_finder"}


@pytest.mark.parametrize("path", [*MODULES.values(), *sorted((ROOT / "stages").glob("*.py"))], ids=str)
def test_nothing_happens_at_import(path: Path) -> None:
    definitions = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)
    allowed = (*definitions, ast.Assign, ast.AnnAssign, ast.AugAssign)
    for node in tree_of(path).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        is_main = isinstance(node, ast.If) and "__main__" in ast.dump(node.test)
        is_start = path in (ROOT / "stages/__init__.py", MODULES["nima.workers.first"])
        inert = is_docstring or is_main or is_type_checking(node) or is_start
        assert isinstance(node, allowed) or inert, f"{path}:{node.lineno}: {ast.unparse(node)[:60]}"


def test_importing_the_library_writes_nothing_and_loads_no_torch_for_params() -> None:
    heavy = {"torch", "dvclive"}
    code = f"import sys, nima.workspace.stage; sys.exit(not {heavy}.isdisjoint(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SOURCE)}, check=False)
    assert done.returncode == 0


def test_reading_local_files_loads_no_database_and_no_torch() -> None:
    heavy = {"sqlite3", "qdrant_client", "torch", "datasets", "s3fs"}
    code = f"import sys, stages.prepare; sys.exit(', '.join({heavy} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_say_what_a_thing_is() -> None:
    for module, path in MODULES.items():
        defined = {
            node.name for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef | ast.ClassDef)
        } | {module.split(".")[-1]}
        for name in defined:
            words = set(name.lower().split("_"))
            assert not words & FORBIDDEN_WORDS, f"{module}: {name}"


def test_git_tracks_no_output_that_dvc_caches() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    tracked = listing.stdout.split("\0")
    for stage in pipeline()["stages"].values():
        for out in [*stage.get("outs", []), *stage.get("metrics", [])]:
            path, options = next(iter(out.items())) if isinstance(out, dict) else (out, {})
            if options.get("cache", True):
                offenders = [file for file in tracked if file == path or file.startswith(f"{path}/")]
                assert not offenders, f"DVC caches {path}, git tracks {offenders[:3]}: git rm --cached them"


def test_no_pickle_and_no_remote_code() -> None:
    for module, path in MODULES.items():
        packages = {name.split(".")[0] for name in imported_names(path)}
        assert not {"pickle", "dill", "cloudpickle", "joblib"} & packages, module
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code" not in text
        assert "torch.load" not in text
        assert "allow_pickle=True" not in text
