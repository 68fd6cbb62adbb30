"""The schema of params.yaml: what it accepts, and how it answers to mistakes."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from nima.workspace import params
from nima.workspace.errors import ParamsError
from nima.workspace.params import params_file
from nima.workspace.params.presets import PRESETS

SHIPPED = Path("params.yaml").resolve()
# The tests below edit this file, so that the shipped recipe can change without them.
COMPLETE = """\
prepare:
  sources:
    - name: aws-cli
      package:
        index: pypi
        name: awscli
        version: 1.46.2
        sha256: d818f5a3c8e772271db67ac002c9ba2bc4ec064e5aefbf1605e23bd2cf4346c5
      glob: 'awscli/examples/**/*.rst'
      format: rst
      weight: 1.0
      licence: Apache-2.0
    - name: guides
      path: data/raw/technical
      glob: '**/*.md'
      format: markdown
      weight: 2.0
      licence: Apache-2.0
    - name: questions
      path: data/raw/technical
      glob: '**/*.json'
      format: json
      record: qa
      weight: 2.0
      licence: Apache-2.0
  cleaning:
    unicode: NFC
    control_characters: true
    trailing_space: true
    max_blank_lines: 2
  quality:
    min_chars: 40
    max_chars: 400000
  duplicates:
    exact: true
  max_shard_bytes: 64000000
tokenize:
  vocab_size: 4096
  train_max_bytes: 100000000
  min_vocab_size: 101
  loss_on: all
  max_shard_tokens: 500000000
split:
  seed: 0
  train: 0.8
  validation: 0.1
  test: 0.1
model:
  preset: gpt-tiny
  context_tokens: 512
training:
  seed: 1
  max_steps: 700
  block_tokens: 256
  batch_tokens: 8192
  micro_batch_tokens: 4096
  precision: bf16
  optimizer: muon
  lr: 0.01
  embedding_lr_ratio: 1.0
  head_lr_ratio: 0.5
  schedule: linear
  warmup_steps: 20
  decay_fraction: 0.5
  min_lr_ratio: 0.0
  weight_decay: 0.0
  beta1: 0.9
  beta2: 0.95
  momentum: 0.95
  max_grad_norm: 1.0
  log_every_steps: 2
  validate_every_steps: 50
  validation_max_tokens: 65536
  best_metric: loss
  keep: best
  early_stopping:
    metric: loss
    patience: 0
    min_delta: 0.0
evaluate:
  window_tokens: 512
  stride_tokens: 256
  micro_batch_tokens: 8192
  precision: fp32
generate:
  seed: 7
  max_new_tokens: 120
  prompts:
    - Kubernetes is
    - To deploy with Terraform
    - Docker containers
    - The following command lists all
  strategies:
    - name: greedy
    - name: temperature
      temperature: 0.8
    - name: top-k
      temperature: 0.8
      top_k: 40
    - name: top-p
      temperature: 0.9
      top_p: 0.9
    - name: beam
      num_beams: 4
run:
  save_every_seconds: 30.0
  save_every_steps: null
  keep_checkpoints: 2
  print_every_steps: 25
"""


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def edited(tmp_path: Path, *edits: tuple[str, str]) -> Path:
    """The complete file with texts replaced; each must occur in it once."""
    text = COMPLETE
    for old, new in edits:
        assert text.count(old) == 1, f"{old!r} is there {text.count(old)} times"
        text = text.replace(old, new)
    return written(tmp_path / "params.yaml", text)


def problems_of(path: Path) -> list[str]:
    with pytest.raises(ParamsError) as caught:
        params_file.load(path)
    assert all("\n" not in problem for problem in caught.value.problems)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def only_problem(path: Path) -> str:
    problems = problems_of(path)
    assert len(problems) == 1, problems
    return problems[0]


def line_with(path: Path, text: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if text in line]
    assert len(found) == 1, f"{text!r} is on lines {found}"
    return found[0]


# ------------------------------------------------------------------------------------ the shipped file


def test_the_shipped_params_load() -> None:
    loaded = params_file.load(SHIPPED)
    assert loaded.training.lr == 0.01
    assert loaded.model.shape()["context_tokens"] == 512
    assert [source.name for source in loaded.prepare.sources] == ["aws-cli", "guides", "questions"]


def keys_of(node: Any, section: str = "") -> Iterator[tuple[str, int]]:
    """Every key with its line (from 0), those of list items left out."""
    for key, value in node.items():
        yield f"{section}{key}", node.lc.data[key][0]
        if isinstance(value, dict):
            yield from keys_of(value, f"{section}{key}.")


def test_every_key_of_the_shipped_params_is_commented() -> None:
    """A comment stands on the key's line or above it; the keys of a list's items share the list's."""
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    tree = YAML(typ="rt").load("\n".join(lines))
    bare = [
        key
        for key, line in keys_of(tree)
        if "#" not in lines[line] and not lines[line - 1].lstrip().startswith("#") and key not in tree
    ]
    assert bare == []


def test_every_key_of_the_schema_but_overrides_stands_in_the_shipped_params() -> None:
    tree = YAML(typ="safe").load(SHIPPED.read_text(encoding="utf-8"))
    optional = {"training": {"max_epochs", "max_tokens"}, "model": set(params.ModelParams.model_fields)}
    for name, field in params.Params.model_fields.items():
        section = getattr(field.annotation, "__args__", [field.annotation])[0]
        missing = set(section.model_fields) - set(tree[name]) - optional.get(name, set())
        assert missing == set(), f"{name} lacks {missing}"


# ---------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("number", ["1e-4", "0.0001", "1E-4", "1.0e-04", ".0001"])
def test_every_way_to_write_a_small_number_is_a_float(tmp_path: Path, number: str) -> None:
    assert params_file.load(edited(tmp_path, ("lr: 0.01", f"lr: {number}"))).training.lr == 1e-4


@pytest.mark.parametrize("value", [1e-06, 1e-05, 3e-4, 1.0])
def test_floats_as_dvc_writes_them_load_again(tmp_path: Path, value: float) -> None:
    yaml = YAML()
    tree = yaml.load(COMPLETE)
    tree["training"]["lr"] = value
    path = tmp_path / "params.yaml"
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(tree, file)
    loaded = params_file.load(path).training.lr
    assert type(loaded) is float
    assert loaded == value


def test_a_whole_number_is_a_float_where_one_is_due(tmp_path: Path) -> None:
    assert params_file.load(edited(tmp_path, ("lr: 0.01", "lr: 1"))).training.lr == 1.0


def test_anchored_values_keep_their_types(tmp_path: Path) -> None:
    path = edited(
        tmp_path, ("control_characters: true", "control_characters: &yes true"), ("seed: 7", "seed: &n 7")
    )
    loaded = params_file.load(path)
    assert loaded.prepare.cleaning.control_characters is True
    assert loaded.generate.seed == 7


@pytest.mark.parametrize(
    ("old", "new", "expected", "found"),
    [
        ("max_steps: 700", "max_steps: true", "integer", "True"),
        ("max_steps: 700", "max_steps: '700'", "integer", "'700'"),
        ("max_steps: 700", "max_steps: 7e2", "integer", "700.0"),
        ("max_steps: 700", "max_steps: 0", "greater than 0", "0"),
        ("lr: 0.01", "lr: '0.01'", "number", "'0.01'"),
        ("lr: 0.01", "lr: .nan", "a finite number", "nan"),
        ("lr: 0.01", "lr: .inf", "a finite number", "inf"),
        ("lr: 0.01", "lr: -0.1", "greater than 0", "-0.1"),
        ("beta1: 0.9\n", "beta1: .nan\n", "less than 1", "nan"),
        ("beta2: 0.95", "beta2: 1.0", "less than 1", "1.0"),
        ("min_lr_ratio: 0.0", "min_lr_ratio: 1.5", "less than or equal to 1", "1.5"),
        ("precision: bf16", "precision: fp8", "'bf16', 'fp16' or 'fp32'", "'fp8'"),
        ("version: 1.46.2", "version: 1.46", "string", "1.46"),
        ("keep_checkpoints: 2", "keep_checkpoints: 1", "greater than or equal to 2", "1"),
        ("name: aws-cli", "name: AWS CLI", "text that matches", "'AWS CLI'"),
        ("control_characters: true", "control_characters: yes", "boolean", "'yes'"),
        ("seed: 1\n", "seed: 4294967296\n", "less than 4294967296", "4294967296"),
        ("seed: 1\n", "seed: -1\n", "greater than or equal to 0", "-1"),
    ],
)
def test_a_wrong_value_is_named_with_its_line_and_what_is_right(
    tmp_path: Path, old: str, new: str, expected: str, found: str
) -> None:
    path = edited(tmp_path, (old, new))
    problem = only_problem(path)
    assert problem.startswith(f"{path}:{line_with(path, new.strip())}: ")
    assert f"{new.split(':')[0]}: expected {expected}" in problem
    assert problem.endswith(f"found {found}")


def test_a_seed_that_passes_is_one_that_every_generator_takes(tmp_path: Path) -> None:
    import numpy as np
    import torch

    seed = params_file.load(edited(tmp_path, ("seed: 1\n", "seed: 4294967295\n"))).training.seed
    np.random.Philox(key=[seed, 2])
    torch.manual_seed(seed * 1_000_003 + 100_000_000)


def test_a_long_value_is_shortened_in_the_message(tmp_path: Path) -> None:
    assert len(only_problem(edited(tmp_path, ("precision: bf16", f"precision: {'x' * 500}")))) < 300


# --------------------------------------------------------------------------------- many problems at once


def test_all_problems_are_reported_at_once_each_with_its_line(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        ("min_chars: 40", "min_chars: forty"),
        ("vocab_size: 4096", "vocabsize: 4096"),
        ("train: 0.8", "train: 0.7"),
        ("preset: gpt-tiny", "preset: gpt-tyni"),
        ("warmup_steps: 20", "warmup_steps: 700"),
        ("micro_batch_tokens: 4096", "micro_batch_tokens: 4097"),
        ("stride_tokens: 256", "stride_tokens: 512"),
        ("num_beams: 4", "num_beams: 1"),
    )
    problems = problems_of(path)
    where = {problem.split(": ")[1]: problem.split(": ")[0] for problem in problems}
    assert where == {
        "prepare.quality.min_chars": f"{path}:{line_with(path, 'min_chars: forty')}",
        "tokenize.vocabsize": f"{path}:{line_with(path, 'vocabsize:')}",
        "split": f"{path}:{line_with(path, 'split:')}",
        "model.preset": f"{path}:{line_with(path, 'preset: gpt-tyni')}",
        "training.warmup_steps": f"{path}:{line_with(path, 'warmup_steps: 700')}",
        "training.micro_batch_tokens": f"{path}:{line_with(path, 'micro_batch_tokens: 4097')}",
        "evaluate.stride_tokens": f"{path}:{line_with(path, 'stride_tokens: 512')}",
        "generate.strategies[4].num_beams": f"{path}:{line_with(path, 'num_beams: 1')}",
    }
    assert len(problems) == 9  # 4097 is neither whole blocks nor a divisor of the batch


@pytest.mark.parametrize(
    ("old", "new", "suggestion"),
    [
        ("\nevaluate:", "\nevalute:", "evaluate"),
        ("    patience: 0", "    pateince: 0", "patience"),
        ("  warmup_steps: 20", "  warmup_step: 20", "warmup_steps"),
        ("      record: qa", "      records: qa", "record"),
        ("        sha256: ", "        sha265: ", "sha256"),
        ("      num_beams: 4", "      num_beam: 4", "num_beams"),
        ("    trailing_space: true", "    trailing_spaces: true", "trailing_space"),
    ],
)
def test_an_unknown_key_gets_the_nearest_known_one(
    tmp_path: Path, old: str, new: str, suggestion: str
) -> None:
    path = edited(tmp_path, (old, new))
    key = new.strip().split(":")[0]
    [problem] = [problem for problem in problems_of(path) if "unknown key" in problem]
    assert problem.startswith(f"{path}:{line_with(path, f'{key}:')}: ")
    assert problem.endswith(f"{key}: unknown key; did you mean {suggestion!r}?")


def test_an_unknown_key_near_no_other_gets_the_list_of_known_ones(tmp_path: Path) -> None:
    problem = only_problem(edited(tmp_path, ("    patience: 0", "    patience: 0\n    zzz: 1")))
    assert problem.endswith(
        "training.early_stopping.zzz: unknown key; known: metric, patience, min_delta, "
        "degradation, gradient_collapse, gradient_explosion, lr_plateau"
    )


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    text = COMPLETE
    text = text[: text.index("\nevaluate:")] + text[text.index("\ngenerate:") :]
    path = written(tmp_path / "params.yaml", text)
    assert only_problem(path) == f"{path}:1: evaluate: missing; add it to this section"


def test_a_missing_key_points_to_its_section(tmp_path: Path) -> None:
    path = edited(tmp_path, ("  lr: 0.01\n", ""))
    where = f"{path}:{line_with(path, 'training:')}"
    assert only_problem(path) == f"{where}: training.lr: missing; add it to this section"


def test_a_section_without_content_is_named(tmp_path: Path) -> None:
    path = edited(tmp_path, ("    - Kubernetes is", ""), ("    - To deploy with Terraform", ""))
    path = written(
        path, re.sub(r"(?m)^    - (Docker|The following).*$", "", path.read_text(encoding="utf-8"))
    )
    assert only_problem(path).endswith("generate.prompts: expected list, found None")


def test_an_unknown_key_below_a_name_of_the_users_own_is_told(tmp_path: Path) -> None:
    path = edited(tmp_path, ("\n  test: 0.1", "\n  test: 0.1\n  sources: {notes: {tets: 1.0}}"))
    assert any(problem.endswith("unknown key; did you mean 'test'?") for problem in problems_of(path))


def test_the_run_section_may_be_left_out(tmp_path: Path) -> None:
    text = COMPLETE
    loaded = params_file.load(written(tmp_path / "params.yaml", text[: text.index("\nrun:")]))
    assert loaded.run == params.RunParams()


# ---------------------------------------------------------------------------------- cross-field checks


@pytest.mark.parametrize(
    ("edit", "key", "message"),
    [
        (("    - name: guides", "    - name: aws-cli"), "prepare.sources", "found twice: aws-cli"),
        (("    - name: top-k", "    - name: top-p"), "generate.strategies", "found twice: top-p"),
        (("max_chars: 400000", "max_chars: 39"), "prepare.quality.min_chars", "exceed max_chars (39)"),
        (
            ("min_vocab_size: 101", "min_vocab_size: 4097"),
            "tokenize.min_vocab_size",
            "exceed vocab_size (4096)",
        ),
        (("test: 0.1", "test: 0.2"), "split", "must be 1, found 1.1"),
        (("preset: gpt-tiny", "preset: gpt-huge"), "model.preset", "unknown preset 'gpt-huge'"),
        (
            ("preset: gpt-tiny", "num_heads: 3\n  preset: gpt-tiny"),
            "model.num_heads",
            "3 must divide width (256)",
        ),
        (("preset: gpt-tiny", "num_heads: 256\n  preset: gpt-tiny"), "model.width", "must be even"),
        (
            ("preset: gpt-tiny", "num_kv_heads: 3\n  preset: gpt-tiny"),
            "model.num_kv_heads",
            "divide num_heads",
        ),
        (
            ("max_steps: 700", "max_epochs: 1.5\n  max_steps: 700"),
            "training",
            "exactly one of max_steps, max_",
        ),
        (("max_steps: 700", "max_steps: null"), "training", "exactly one of max_steps, max_epochs"),
        (
            ("warmup_steps: 20", "warmup_steps: 700"),
            "training.warmup_steps",
            "700 must be below max_steps (700)",
        ),
        (
            ("\n  batch_tokens: 8192", "\n  batch_tokens: 8193"),
            "training.batch_tokens",
            "8193 must be whole blocks",
        ),
        (
            ("micro_batch_tokens: 4096", "micro_batch_tokens: 768"),
            "training.micro_batch_tokens",
            "768 must divide",
        ),
        (("window_tokens: 512", "window_tokens: 513"), "evaluate.window_tokens", "context_tokens (512)"),
        (("max_new_tokens: 120", "max_new_tokens: 512"), "generate.max_new_tokens", "512 must be below"),
        (("stride_tokens: 256", "stride_tokens: 512"), "evaluate.stride_tokens", "below window_tokens (512)"),
        (("num_beams: 4", "num_beams: 4\n      top_k: 3"), "generate.strategies[4].num_beams", "excludes"),
        (
            ("path: data/raw/technical\n      glob: '**/*.md'", "glob: '*.md'"),
            "prepare.sources[1]",
            "exactly one",
        ),
    ],
)
def test_values_that_do_not_fit_each_other_are_found(
    tmp_path: Path, edit: tuple[str, str], key: str, message: str
) -> None:
    problems = problems_of(edited(tmp_path, edit))
    assert any(f": {key}: " in problem and message in problem for problem in problems), problems


def test_every_section_that_exceeds_the_context_is_named_at_its_own_line(tmp_path: Path) -> None:
    path = edited(tmp_path, ("context_tokens: 512", "context_tokens: 64"))
    lines = [int(problem.removeprefix(f"{path}:").split(":")[0]) for problem in problems_of(path)]
    keys = ("  block_tokens: 256", "  window_tokens: 512", "  max_new_tokens: 120")
    assert lines == [line_with(path, key) for key in keys]


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_is_a_shape_that_the_checks_accept(preset: str) -> None:
    shape = params.ModelParams(preset=preset).shape()
    assert shape["width"] % shape["num_heads"] == 0
    assert None not in shape.values()


def test_any_field_of_a_preset_can_be_overridden_even_by_false() -> None:
    shape = params.ModelParams(preset="custom-nano", tie_embeddings=False, dropout=0.0, width=64).shape()
    assert (shape["tie_embeddings"], shape["dropout"], shape["width"]) == (False, 0.0, 64)


# --------------------------------------------------------------------------------- what is no params file


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "expected a mapping of sections, found nothing"),
        ("# only a comment\n", 1, "found nothing"),
        ("- a\n- b\n", 1, "found a list"),
        ("just text\n", 1, "found 'just text'"),
        ("a:\n  b: 1\n  b: 2\n", 3, "duplicate key"),
        ("a:\n\tb: 1\n", 2, "'\\t'"),
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: *nowhere\n", 1, "undefined alias"),
        ("a: 1\nb: \x07\n", 2, "control character"),
        ("a: 1\n---\nb: 2\n", 2, "another document"),
    ],
)
def test_a_file_that_is_no_params_file_is_one_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    path = written(tmp_path / "params.yaml", text)
    problem = only_problem(path)
    assert problem.startswith(f"{path}:{line}: ")
    assert message in problem


def test_an_impossible_date_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    assert "not valid YAML" in only_problem(edited(tmp_path, ("version: 1.46.2", "version: 2024-13-45")))


def test_a_file_that_is_not_utf8_is_named_with_line_and_byte(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"# fine\n# caf\xe9\n")
    assert only_problem(path) == f"{path}:2: not UTF-8 at byte 12"


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SHIPPED.read_bytes())
    assert params_file.load(path) == params_file.load(SHIPPED)


def test_a_missing_file_tells_where_to_run(tmp_path: Path) -> None:
    assert "run from the project's root" in only_problem(tmp_path / "params.yaml")


def test_a_folder_in_place_of_the_file_is_one_line(tmp_path: Path) -> None:
    assert "cannot be read: Is a directory" in only_problem(tmp_path)


def test_a_python_tag_executes_nothing(tmp_path: Path) -> None:
    target = tmp_path / "touched"
    path = edited(tmp_path, ("lr: 0.01", f"lr: !!python/object/apply:os.system ['touch {target}']"))
    assert "training.lr" in only_problem(path)
    assert not target.exists()


# ------------------------------------------------------------------------------------------ dependencies


def test_a_stage_depends_on_what_dvc_yaml_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert params_file.stage_dependencies("train") == []
    deps = "    deps:\n      - data/tokens\n      - src/a.py\n    params:\n      - model\n"
    written(tmp_path / "dvc.yaml", f"stages:\n  train:\n{deps}  bare:\n    cmd: y\n")
    assert params_file.stage_dependencies("train") == [Path("data/tokens"), Path("src/a.py")]
    assert params_file.stage_sections("train") == ["model"]
    assert params_file.stage_dependencies("bare") == params_file.stage_sections("bare") == []
    assert params_file.stage_dependencies("unknown") == []
    written(tmp_path / "dvc.yaml", "stages:\n")
    assert params_file.stage_dependencies("train") == []
