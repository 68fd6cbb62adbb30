"""The model's README, as the hub and people read it."""

from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from nima.training.model_card import model_card, trained_card
from nima.workspace.params import Params
from nima.workspace.params.params_file import parse, plain

TRAIN: dict[str, Any] = {
    "parameters": 5_245_696,
    "step": 520,
    "epochs": 1.1726,
    "validation": {"loss": 2.3446, "perplexity": 10.4289, "bits_per_byte": 0.9415, "accuracy": 0.5318},
}
SPLIT: dict[str, Any] = {
    "train": {
        "documents": 4767,
        "bytes": 6_545_169,
        "tokens": 1_754_874,
        "sources": {"aws-cli": {"documents": 4676, "bytes": 6_379_022, "tokens": 1_693_184}},
    }
}
EVALUATE = {"test": {"loss": 2.3, "bits_per_byte": 0.9064, "perplexity": None}, "floor": {"xz_9": 1.2585}}


def params(**prepare: Any) -> Params:
    tree = plain(parse(ROOT / "params.yaml"))
    tree["prepare"].update(prepare)
    return Params.model_validate(tree)


def front_matter(card: str) -> dict[str, Any]:
    empty, matter, _ = card.split("---\n", 2)
    assert empty == ""
    return YAML(typ="safe").load(matter)


def source(name: str, **others: Any) -> dict[str, Any]:
    return {"name": name, "path": f"data/raw/{name}"} | others


def test_the_front_matter_is_what_the_hub_reads() -> None:
    matter = front_matter(model_card(params(), TRAIN, SPLIT))
    assert matter["license"] == "apache-2.0"
    assert matter["library_name"] == "transformers"
    assert matter["pipeline_tag"] == "text-generation"
    assert matter["metrics"] == ["perplexity", "accuracy"]
    assert matter["language"] == ["und"]
    assert "datasets" not in matter


def test_transformers_own_reader_accepts_the_card() -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(params(), TRAIN, SPLIT))
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "MIT"], "mit"),
        (["MIT", "Apache-2.0"], "other"),
        (["MIT", None], "other"),
        ([None], "unknown"),
        (["my own"], "other"),
    ],
)
def test_the_licence_is_the_datas_only_if_all_of_it_has_the_same(
    licences: list[str | None], expected: str
) -> None:
    sources = [source(f"s{number}", licence=licence) for number, licence in enumerate(licences)]
    matter = front_matter(model_card(params(sources=sources), TRAIN, SPLIT))
    assert matter["license"] == expected
    assert ("license_name" in matter) == (expected == "other")


def test_languages_and_data_sets_come_from_params() -> None:
    hub = {"name": "wiki", "hub": {"dataset": "owner/no"}, "licence": "MIT"}
    quality = {"language": {"keep": ["en", "no"], "min_confidence": 0.5}}
    matter = front_matter(model_card(params(sources=[hub], quality=quality), TRAIN, SPLIT))
    assert matter["language"] == ["en", "no"], "no is Norwegian, not false"
    assert matter["datasets"] == ["owner/no"]


def test_the_text_names_data_licences_figures_and_limits() -> None:
    card = model_card(params(), TRAIN, SPLIT)
    assert "5,245,696 parameters" in card
    row = "| aws-cli | pypi: awscli 1.46.2 | Apache-2.0 | 4,676 | 6,379,022 | 1,693,184 |"
    assert row in card
    assert "| bits per byte of text | 0.9415 |" in card
    assert "validation part" in card
    assert "Not masked in the training text, if it held any: secrets, emails" in card
    assert 'AutoModelForCausalLM.from_pretrained("models/model")' in card


def test_test_figures_stand_beside_the_compressors() -> None:
    card = model_card(params(), TRAIN, SPLIT, EVALUATE)
    assert "| bits per byte of text | 0.9064 |" in card
    assert "`xz -9` | 1.2585 |" in card
    assert "perplexity |" not in card


def test_equal_inputs_give_equal_bytes() -> None:
    assert model_card(params(), TRAIN, SPLIT) == model_card(params(), TRAIN, SPLIT)


def test_the_trained_card_has_only_what_training_depends_on() -> None:
    card = trained_card(params(), TRAIN, SPLIT["train"])
    assert card == trained_card(params(sources=[source("other", licence="MIT")]), TRAIN, SPLIT["train"])
    assert "| aws-cli | 4,676 | 6,379,022 | 1,693,184 |" in card
    assert "license" not in front_matter(card)
    assert front_matter(card)["library_name"] == "transformers"
    assert "None" not in card


def test_a_prompt_with_quotes_stays_python() -> None:
    tree = plain(parse(ROOT / "params.yaml"))
    tree["generate"]["prompts"] = ['say "hi"\n']
    card = model_card(Params.model_validate(tree), TRAIN, SPLIT)
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert r"tokenizer(\"say".replace("\\", "") in code
