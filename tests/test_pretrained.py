"""models/model as a Hugging Face folder."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import random_ids, tiny_model

from nima.generation.decoding import continuation
from nima.network import pretrained
from nima.network.decoder import Decoder
from nima.workspace.errors import UserError
from nima.workspace.params import StrategyParams

SHAPES = [
    {"mlp": "swiglu", "tie_embeddings": False, "num_kv_heads": 4},
    {"mlp": "swiglu", "tie_embeddings": True, "num_kv_heads": 2},
    {"mlp": "relu2", "tie_embeddings": False, "num_kv_heads": 1},
    {"mlp": "relu2", "tie_embeddings": True, "num_kv_heads": 4},
    # Nothing about these is a default of `transformers`.
    {"mlp": "swiglu", "rope_theta": 500.0, "norm_eps": 1e-3, "num_layers": 3, "width": 48},
    {"mlp": "relu2", "rope_theta": 500.0, "norm_eps": 1e-3, "num_layers": 1, "num_heads": 2},
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def saved(model: Decoder, folder: Path) -> Path:
    pretrained.save(model, model.state_dict(), folder, end_of_text=0, pad=1)
    return folder


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: " ".join(map(str, shape.values())))
def test_transformers_gives_the_same_logits_and_the_same_greedy_tokens(shape: dict, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model, ids = tiny_model(seed=5, **shape), random_ids(2, 20)
    theirs = AutoModelForCausalLM.from_pretrained(saved(model, tmp_path))
    assert type(theirs).__module__.startswith("transformers.models.")
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)
    for prompt in ([0], ids[0].tolist()):
        found = continuation(
            model, prompt, StrategyParams(name="greedy"), end_of_text=0, max_new_tokens=30, seed=0
        )
        # The special tokens and the choice of greedy decoding come from the folder.
        generated = theirs.generate(torch.tensor([prompt]), max_new_tokens=30)[0, len(prompt) :]
        assert found.tokens == generated.tolist()


@pytest.mark.parametrize("mlp", ["swiglu", "relu2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_loaded_model_is_the_saved_one_bit_for_bit(mlp: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(mlp=mlp, tie_embeddings=tied)
    loaded = pretrained.load(saved(model, tmp_path))
    assert loaded.config == model.config
    for (name, mine), (other, read) in zip(
        model.state_dict().items(), loaded.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(mine, read)
    assert (loaded.head.weight is loaded.embedding.weight) == tied


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        saved(tiny_model(), tmp_path / name)
    for path in sorted((tmp_path / "one").iterdir()):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}


# ----------------------------------------------------------------------------------------- broken folders


def edit_config(folder: Path, **changes: object) -> None:
    content = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json: not found"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"safetensors: not found"),
    "malformed config": (
        lambda folder: (folder / "config.json").write_text('{"model_type": ', encoding="utf-8"),
        r"config\.json: malformed JSON: .*line 1",
    ),
    "config is a list": (
        lambda folder: (folder / "config.json").write_text("[]", encoding="utf-8"),
        r"config\.json: not a model's config",
    ),
    "unknown type": (
        lambda folder: edit_config(folder, model_type="bert"),
        r"config\.json: model_type 'bert' is not one of qwen3 or apertus",
    ),
    "missing key": (
        lambda folder: edit_config(folder, hidden_size=None),
        r"config\.json: key 'hidden_size' is missing",
    ),
    "no heads": (
        lambda folder: edit_config(folder, num_attention_heads=0),
        r"config\.json: no network has this shape: ",
    ),
    "truncated weights": (truncate, r"model\.safetensors: not a whole safetensors file"),
    "empty weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(b""),
        r"model\.safetensors: not a whole safetensors file",
    ),
    "missing tensor": (
        lambda folder: edit_weights(folder, lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight")),
        r"model\.safetensors: no tensor named model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "missing embedding": (
        lambda folder: edit_weights(folder, lambda weights: weights.pop("model.embed_tokens.weight")),
        r"model\.safetensors: no tensor named model\.embed_tokens\.weight",
    ),
    "tensor too many": (
        lambda folder: edit_weights(folder, lambda weights: weights.update(extra=torch.zeros(2))),
        r"model\.safetensors: does not fit config\.json: .*extra",
    ),
    "wrong shape": (
        lambda folder: edit_weights(
            folder, lambda weights: weights.update({"model.norm.weight": torch.ones(31)})
        ),
        r"model\.safetensors: does not fit config\.json: .*norm\.gain",
    ),
    "other config": (
        lambda folder: edit_config(folder, intermediate_size=64),
        r"model\.safetensors: does not fit config\.json: ",
    ),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_named_in_one_line(kind: str, tied: bool, tmp_path: Path) -> None:
    damage, message = BROKEN[kind]
    damage(saved(tiny_model(tie_embeddings=tied), tmp_path))
    with pytest.raises(UserError, match=message) as caught:
        pretrained.load(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
