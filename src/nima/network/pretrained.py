"""A model as a Hugging Face folder: what `AutoModelForCausalLM.from_pretrained` loads without custom code.

The decoder with SwiGLU is `transformers`' Qwen3, with squared ReLU its Apertus; only names differ, so the
weights map one to one.
"""

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from nima.network.decoder import Decoder, DecoderConfig
from nima.network.tensors import DamagedTensorsError, read_tensors, write_tensors
from nima.workspace.errors import UserError

ARCHITECTURES = {"swiglu": ("qwen3", "Qwen3ForCausalLM"), "relu2": ("apertus", "ApertusForCausalLM")}
NORMS = {
    "swiglu": {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"},
    "relu2": {"attention_norm": "attention_layernorm", "mlp_norm": "feedforward_layernorm"},
}
PARTS = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
WHOLE = {"embedding.weight": "model.embed_tokens.weight", "norm.gain": "model.norm.weight"}
WHOLE |= {"head.weight": "lm_head.weight"}


def save(model: Decoder, weights: dict[str, Tensor], folder: Path, *, end_of_text: int, pad: int) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    special = {"bos_token_id": end_of_text, "eos_token_id": end_of_text, "pad_token_id": pad}
    write_json(folder / "config.json", config_json(model.config) | special)
    write_json(folder / "generation_config.json", special | {"do_sample": False})
    renamed = {
        external_name(name, model.config.mlp): tensor.float()
        for name, tensor in weights.items()
        if not (model.config.tie_embeddings and name == "head.weight")
    }
    partial = folder / "model.safetensors.partial"
    write_tensors(partial, renamed, metadata={"format": "pt"})
    partial.replace(folder / "model.safetensors")


def load(folder: Path) -> Decoder:
    """The decoder in `folder`, in float32. Raises `UserError` when a file is missing or does not fit."""
    config = decoder_config(read_json(folder / "config.json"), folder)
    try:
        model = Decoder(config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"{folder / 'config.json'}: no network has this shape: {' '.join(str(error).split())}"
        ) from None
    weights = read_weights(folder / "model.safetensors")
    expected = {external_name(name, config.mlp): name for name in model.state_dict()}
    if config.tie_embeddings and "model.embed_tokens.weight" in weights:
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    if missing := [name for name in expected if name not in weights]:
        raise UserError(f"{folder / 'model.safetensors'}: no tensor named {missing[0]}")
    try:
        model.load_state_dict({expected.get(name, name): tensor for name, tensor in weights.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / 'model.safetensors'}: does not fit config.json: {reason}") from None
    return model


def external_name(name: str, mlp: str) -> str:
    """The name `transformers` gives to one of the decoder's parameters."""
    if name in WHOLE:
        return WHOLE[name]
    found = re.fullmatch(r"layers\.(\d+)\.(.+)\.(weight|gain)", name)
    if found is None:
        raise ValueError(f"{name} has no name in a Hugging Face folder")
    layer, part, _ = found.groups()
    return f"model.layers.{layer}.{(PARTS | NORMS[mlp])[part]}.weight"


def config_json(config: DecoderConfig) -> dict[str, Any]:
    model_type, architecture = ARCHITECTURES[config.mlp]
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_width,
        "hidden_act": "silu" if config.mlp == "swiglu" else "relu2",
        "max_position_embeddings": config.context_tokens,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "float32",
    }


def decoder_config(content: dict[str, Any], folder: Path) -> DecoderConfig:
    kinds = {model_type: mlp for mlp, (model_type, _) in ARCHITECTURES.items()}
    try:
        if content["model_type"] not in kinds:
            known = " or ".join(kinds)
            raise UserError(
                f"{folder / 'config.json'}: model_type {content['model_type']!r} is not one of {known}"
            )
        return DecoderConfig(
            vocab_size=content["vocab_size"],
            num_layers=content["num_hidden_layers"],
            width=content["hidden_size"],
            num_heads=content["num_attention_heads"],
            num_kv_heads=content["num_key_value_heads"],
            mlp=kinds[content["model_type"]],  # type: ignore[arg-type]
            mlp_width=content["intermediate_size"],
            context_tokens=content["max_position_embeddings"],
            dropout=0.0,
            tie_embeddings=content["tie_word_embeddings"],
            rope_theta=content["rope_parameters"]["rope_theta"],
            norm_eps=content["rms_norm_eps"],
        )
    except KeyError as error:
        raise UserError(f"{folder / 'config.json'}: key {error} is missing") from None
    except TypeError as error:
        raise UserError(f"{folder / 'config.json'}: not a model's config: {error}") from None


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return {name: tensor.float() for name, tensor in read_tensors(path).items()}
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except DamagedTensorsError as error:
        raise UserError(f"{path}: not a whole safetensors file: {error}") from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except ValueError as error:
        raise UserError(f"{path}: malformed JSON: {error}") from None


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
