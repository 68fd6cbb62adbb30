"""The README of a model folder, as the Hugging Face hub reads it. Equal inputs give equal bytes: no dates."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nima.workspace.params import Params

# Licences by the names that the hub knows them by.
HUB_LICENCES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"),
    *("cc0-1.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "unlicense"),
)
FIGURES = {
    "bits_per_byte": "bits per byte of text",
    "loss": "loss, nats per token",
    "perplexity": "perplexity",
    "accuracy": "share of tokens predicted first",
}
Source = Mapping[str, Any]
"""A source as params.yaml has it."""

USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("models/model")
model = AutoModelForCausalLM.from_pretrained("models/model")
inputs = tokenizer({prompt}, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=100, do_sample=True, temperature=0.8)
print(tokenizer.decode(output[0], skip_special_tokens=True))
```"""


def model_card(
    params: Params,
    train: Mapping[str, Any],
    split: Mapping[str, Any],
    evaluate: Mapping[str, Any] | None = None,
) -> str:
    """The card of a finished training.

    `train`, `split` and `evaluate` are what the stages' metrics files hold; without `evaluate`, figures are
    those of the validation part.
    """
    sources = [source.model_dump() for source in params.prepare.sources]
    names = ", ".join(source.name for source in params.prepare.sources)
    parts = [
        front_matter(licence(sources), params, languages(params), data_sets(sources)),
        f"# {params.model.preset}, trained by Nima\n",
        what_it_is(params, train),
        training_data(sources, split),
        training(params, train, split),
        figures(train, evaluate),
        limits(names, split, unmasked(params)),
        f"## How to use it\n\n{USE.format(prompt=json.dumps(first_prompt(params)))}\n",
    ]
    return "\n".join(parts)


def trained_card(params: Params, train: Mapping[str, Any], text: Mapping[str, Any]) -> str:
    """The card that the train stage leaves beside the weights: of what it depends on, and nothing else.

    `train` is what metrics/train.json holds, `text` what `Tokens.totals` says of the training part. Licences
    are no dependency of training: one that is corrected must not train the model again.
    """
    split = {"train": text}
    parts = [
        front_matter({}, params, ["und"]),
        f"# {params.model.preset}, trained by Nima\n",
        what_it_is(params, train),
        text_counts(text),
        training(params, train, split),
        figures(train, None),
        limits(", ".join(text.get("sources", {})), split, []),
        f"## How to use it\n\n{USE.format(prompt=json.dumps('The'))}\n",
    ]
    return "\n".join(parts)


def front_matter(
    licence: Mapping[str, str | list[str]], params: Params, languages: list[str], hub: Sequence[str] = ()
) -> str:
    content: dict[str, str | list[str]] = {
        **licence,
        "language": languages,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["nima", params.model.preset],
        "metrics": ["perplexity", "accuracy"],
    }
    if hub:
        content["datasets"] = list(hub)
    # JSON is YAML, and quotes what YAML would read as something else.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in content.items()]
    return "\n".join(["---", *lines, "---\n"])


def languages(params: Params) -> list[str]:
    language = params.prepare.quality.language
    return list(language.keep) if language else ["und"]  # ISO 639: undetermined


def data_sets(sources: Sequence[Source]) -> list[str]:
    """Of the Hugging Face hub."""
    return sorted({source["hub"]["dataset"] for source in sources if source.get("hub")})


def licence(sources: Sequence[Source]) -> dict[str, str | list[str]]:
    """The licence that all training text has, if the hub knows it."""
    found = {(source.get("licence") or "unknown").lower() for source in sources}
    only = found.pop() if len(found) == 1 else "mixed"
    if only in (*HUB_LICENCES, "unknown"):
        return {"license": only}
    return {"license": "other", "license_name": "as-the-training-data"}


def what_it_is(params: Params, train: Mapping[str, Any]) -> str:
    shape = params.model.shape()
    return (
        f"A decoder-only language model with {train['parameters']:,} parameters, trained from random "
        f"weights: {shape['num_layers']} layers of width {shape['width']}, {shape['num_heads']} attention "
        f"heads over {shape['num_kv_heads']} of keys and values, at most {shape['context_tokens']:,} tokens "
        "of context.\n"
    )


def training_data(sources: Sequence[Source], split: Mapping[str, Any]) -> str:
    rows = ["| source | from | licence | documents | bytes | tokens |", "|---|---|---|---:|---:|---:|"]
    counts = split["train"].get("sources", {})
    for source in sources:
        mine = counts.get(source["name"], {})
        numbers = " | ".join(f"{mine.get(key, 0):,}" for key in ("documents", "bytes", "tokens"))
        terms = source.get("licence") or "not declared"
        rows.append(f"| {cell(source['name'])} | {cell(place_of(source))} | {cell(terms)} | {numbers} |")
    return "\n".join(["## Training data", "", *rows, ""])


def text_counts(text: Mapping[str, Any]) -> str:
    rows = ["| source | documents | bytes | tokens |", "|---|---:|---:|---:|"]
    for name, mine in text.get("sources", {}).items():
        numbers = " | ".join(f"{mine[key]:,}" for key in ("documents", "bytes", "tokens"))
        rows.append(f"| {cell(name)} | {numbers} |")
    more = (
        "Where each is from and under which licence is in the project's params.yaml, `prepare.sources`; "
        "`nima report REV --card README.md` writes a card that has it, and the figures of the test part."
    )
    return "\n".join(["## Training data", "", *rows, "", more, ""])


def training(params: Params, train: Mapping[str, Any], split: Mapping[str, Any]) -> str:
    settings = params.training
    return (
        "## Training\n\n"
        f"{train['step']:,} updates of {settings.batch_tokens:,} tokens, {train['epochs']:.2f} passes over "
        f"{split['train']['tokens']:,} tokens, in {settings.precision}; {settings.optimizer} at a peak "
        f"learning rate of {settings.lr:g}, {settings.schedule} schedule, seed {settings.seed}. "
        f"The {settings.keep} weights are kept. Every setting is in the project's params.yaml.\n"
    )


def figures(train: Mapping[str, Any], evaluate: Mapping[str, Any] | None) -> str:
    found = evaluate["test"] if evaluate else train["validation"]
    text = "documents that it was not trained on"
    part = f"test part: {text}" if evaluate else f"validation part: {text}, at the end of training"
    rows = [f"| {name} | {found[key]:.4f} |" for key, name in FIGURES.items() if found.get(key) is not None]
    if evaluate and evaluate["floor"].get("xz_9") is not None:
        rows.append(f"| for comparison: bits per byte of `xz -9` | {evaluate['floor']['xz_9']:.4f} |")
    return "\n".join(["## Figures", "", f"On the {part}.", "", "| figure | value |", "|---|---:|", *rows, ""])


def unmasked(params: Params) -> list[str]:
    """What the cleaning left in the text, if it was there."""
    return [kind for kind, action in params.prepare.privacy.model_dump().items() if action == "keep"]


def limits(names: str, split: Mapping[str, Any], kept: Sequence[str]) -> str:
    lines = [
        f"It knows {split['train']['bytes']:,} bytes of text ({names}) and nothing else: of other subjects "
        "and languages it writes nonsense, fluently.",
        "It states wrong commands and facts as surely as right ones: check before you run them.",
        "Nothing was done to make it safe or polite; it may repeat its training text, word for word.",
    ]
    if kept:
        kinds = ", ".join(kind.replace("_", " ") for kind in kept)
        lines.append(f"Not masked in the training text, if it held any: {kinds}.")
    return "\n".join(["## Limits", "", *(f"- {line}" for line in lines), ""])


def first_prompt(params: Params) -> str:
    return next(iter(params.generate.prompts), "The")


def place_of(source: Source) -> str:
    """Where a source's text is from, in a few words."""
    if package := source.get("package"):
        return f"{package['index']}: {package['name']} {package['version']}"
    if hub := source.get("hub"):
        revision = f" at {hub['revision']}" if hub.get("revision") else ""
        return f"hub: {hub['dataset']}{revision}"
    if qdrant := source.get("qdrant"):
        return f"qdrant: {qdrant['collection']}"
    place = source.get("path") or source.get("url") or "unknown"
    return place if isinstance(place, str) else ", ".join(map(str, place))


def cell(text: str) -> str:
    return text.replace("|", "\\|")
