"""The test split's results side by side."""

import csv
import io
import json
import math

import numpy as np
import pytest

from nima.batches import Stream, scoring_windows
from nima.evaluation.compression import floors
from nima.evaluation.scorecard import ScoredText, bits_per_byte, scorecard, scored_text, tables
from nima.scoring.likelihood import Likelihood, Scorer
from nima.tokenizer import Tokenizer
from nima.workspace.errors import Interrupted, UserError

TEXTS = ["aws s3 ls lists buckets. " * 40, "kubectl get pods\n" * 30, "aws ec2 stop-instances " * 20]
SOURCES = ["manuals", "guides", "manuals"]


class Documents:
    """Tokenized texts in memory; `spans` gives what is scored."""

    def __init__(self, tokenizer: Tokenizer, first_scored: int = 0) -> None:
        self.texts = [np.array([*tokenizer.encode(text), tokenizer.end_of_text]) for text in TEXTS]
        self.first_scored = first_scored
        self.num_documents = len(TEXTS)
        self.lengths = np.array([len(text) for text in self.texts])
        self.weights = np.ones(len(TEXTS))
        self.ids = list(map(str, range(len(TEXTS))))

    def document(self, index: int) -> np.ndarray:
        return self.texts[index]

    def spans(self, index: int) -> np.ndarray:
        return np.array([[self.first_scored, len(self.texts[index])]])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def scorer(documents: Documents, tokenizer: Tokenizer, chosen: list[int]) -> Scorer:
    stream = Stream(documents, np.array(chosen))
    windows = scoring_windows(stream.num_tokens, 16, 8)
    return Scorer(stream, windows, tokenizer.end_of_text, tokenizer.token_bytes(), SOURCES, 64, "fp32")


def test_the_text_is_that_of_the_scored_documents_in_order(tokenizer: Tokenizer) -> None:
    found = scored_text(scorer(Documents(tokenizer), tokenizer, [0, 1, 2]), tokenizer)
    assert found.whole == "".join(TEXTS).encode()
    assert found.sources == {"guides": TEXTS[1].encode(), "manuals": (TEXTS[0] + TEXTS[2]).encode()}
    some = scored_text(scorer(Documents(tokenizer), tokenizer, [2]), tokenizer)
    assert some == ScoredText(TEXTS[2].encode(), {"manuals": TEXTS[2].encode()})


def test_the_text_has_the_bytes_that_the_likelihood_counts(tokenizer: Tokenizer) -> None:
    from tiny_models import tiny_model

    made = scorer(Documents(tokenizer, first_scored=5), tokenizer, [0, 1, 2])
    parts = made(tiny_model(vocab_size=tokenizer.vocab_size))
    found = scored_text(made, tokenizer)
    assert {name: len(text) for name, text in found.sources.items()} == {
        name: part.num_bytes for name, part in parts.items()
    }
    assert len(found.whole) < len("".join(TEXTS).encode())


PARTS = {
    "guides": Likelihood(nats=100.0, num_tokens=50, num_correct=20, num_bytes=510),
    "manuals": Likelihood(nats=700.0, num_tokens=200, num_correct=60, num_bytes=1460),
}
TEXT = ScoredText(
    "".join(TEXTS).encode(), {"guides": TEXTS[1].encode(), "manuals": (TEXTS[0] + TEXTS[2]).encode()}
)


def test_the_card_holds_totals_sources_and_floors() -> None:
    card = scorecard(PARTS, TEXT)
    assert card["test"] == {
        "loss": 800 / 250,
        "perplexity": pytest.approx(math.exp(3.2)),
        "accuracy": 80 / 250,
        "bits_per_byte": pytest.approx(800 / math.log(2) / 1970),
        "tokens": 250,
        "bytes": 1970,
    }
    assert card["sources"]["guides"]["loss"] == 2.0
    assert card["floor"] == {
        **floors(TEXT.whole),
        "sources": {name: floors(text) for name, text in TEXT.sources.items()},
    }
    json.dumps(card, allow_nan=False)


@pytest.mark.parametrize(("nats", "beats"), [(10.0, True), (5000.0, False)])
def test_the_card_says_whether_the_model_beats_xz(nats: float, beats: bool) -> None:
    part = Likelihood(nats=nats, num_tokens=250, num_bytes=len(TEXT.whole))
    assert scorecard({"manuals": part}, TEXT)["beats_xz"] is beats


def test_figures_that_do_not_exist_are_none_and_not_drawn() -> None:
    parts = {"empty": Likelihood(nats=9000.0, num_tokens=9), "guides": PARTS["guides"]}
    card = scorecard(parts, ScoredText(TEXTS[1].encode(), {"empty": b"", "guides": TEXTS[1].encode()}))
    assert card["sources"]["empty"]["perplexity"] is None
    assert card["sources"]["empty"]["bits_per_byte"] is None
    assert card["floor"]["sources"]["empty"] == {"xz_9": None, "zstd_19": None}
    json.dumps(card, allow_nan=False)
    assert bits_per_byte(card)["empty"] == {}


def test_a_split_without_tokens_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match=r"split\.test: the test split has no token"):
        scorecard({}, ScoredText(b"", {}))


def test_an_interruption_stops_between_compressions() -> None:
    def poll() -> None:
        raise Interrupted("stopped")

    with pytest.raises(Interrupted):
        scorecard(PARTS, TEXT, poll)


def test_the_tables_have_a_row_for_each_text_and_method() -> None:
    card = scorecard(PARTS, TEXT)
    everything, sources = (
        {row["method"]: float(row["bits_per_byte"]) for row in csv.DictReader(io.StringIO(table))}
        for table in tables(bits_per_byte(card)).values()
    )
    assert list(everything) == ["model", "xz -9", "zstd -19"]
    assert everything["model"] == card["test"]["bits_per_byte"]
    assert len(sources) == 6
    assert sources["guides: xz -9"] == card["floor"]["sources"]["guides"]["xz_9"]
