"""Every kind of tokenizer that is learnt: lossless, the same each time, and the same in transformers."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nima
from nima.tokenizer import Tokenizer, gate, tokenizer_of
from nima.tokenizer.special_tokens import CHAT_TEMPLATE, SPECIAL_TOKENS
from nima.tokenizer.vocabulary import byte_alphabet
from nima.workspace.errors import UserError
from nima.workspace.params import TokenizeParams

KINDS = ("bpe", "unigram", "char", "byte")
OWN = ("<|tool|>", "[SEP]")
TEXTS = [
    "The following ``get pods`` example lists the pods:\n\n    kubectl get pods --all --output json\n" * 4,
    "for pod in $(cat pods.txt); do\n\t\techo \"it's  ${pod}\"  # don't\ndone\r\n" * 4,
    "Der Dienst läuft über Nacht. Kết nối mạng đã được khôi phục. 网络恢复了。 🚀🚀 café\u0301\n" * 3,
]
UNSEEN = [
    "",
    " ",
    "  leading",
    "\t\n\r\n ",
    "Ωμέγα ▁ <0x41> Ġ",
    "सेवा चल रही है।",
    "\x00\ufeff\u202e\U0010ffff",
    "\ufffd",
]


def params(kind: str, **changes: object) -> TokenizeParams:
    vocab_size = 420 if kind in ("bpe", "unigram") else None
    return TokenizeParams.model_validate({"kind": kind, "vocab_size": vocab_size, **changes})


def made(kind: str, **changes: object) -> Tokenizer:
    return tokenizer_of(params(kind, **changes), TEXTS, downloads=Path("nowhere"))


MADE = {kind: made(kind, special_tokens=list(OWN)) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return MADE[request.param]


# ------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(max_size=80))
@settings(max_examples=120, deadline=None)
def test_any_text_comes_back_with_ids_of_the_vocabulary_and_all_its_bytes(kind: str, text: str) -> None:
    tokenizer = MADE[kind]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(len(SPECIAL_TOKENS) + len(OWN) <= token < tokenizer.vocab_size for token in ids)
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert ids == tokenizer.reference_ids(text)


@pytest.mark.parametrize("text", [*UNSEEN, *TEXTS])
def test_text_unlike_the_training_text_comes_back_too(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode(text)) == text.encode()


def test_each_kind_passes_the_gate_on_text_that_it_has_not_seen() -> None:
    for kind, tokenizer in MADE.items():
        found = gate(tokenizer, UNSEEN, 101, kind)
        assert found["held_out_texts"] == len(UNSEEN)
        assert found["held_out_bytes"] == sum(len(text.encode()) for text in UNSEEN)


@pytest.mark.parametrize("threads", [1, 2])
def test_encoding_many_is_encoding_each(tokenizer: Tokenizer, threads: int) -> None:
    texts = [*TEXTS, *UNSEEN] * 20
    found = tokenizer.encode_many(texts, threads)
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in texts]
    assert {ids.dtype for ids in found} == {np.dtype("uint32")}


def test_a_lone_surrogate_is_an_error_that_says_where(tokenizer: Tokenizer) -> None:
    for method in (tokenizer.encode, tokenizer.reference_ids):
        with pytest.raises(UserError, match=r"lone surrogate U\+DC80 at character 5"):
            method("names\udc80")


@pytest.mark.parametrize("kind", KINDS[:3])
def test_learning_refuses_a_lone_surrogate(kind: str) -> None:
    with pytest.raises(UserError, match="lone surrogate"):
        tokenizer_of(params(kind), ["names\udc80"], downloads=Path("nowhere"))


# --------------------------------------------------------------------------------------- vocabularies


def test_vocabularies_are_as_large_as_their_kind_says() -> None:
    assert MADE["bpe"].vocab_size == 420
    assert 300 < MADE["unigram"].vocab_size < 420, "so short a text has no more to learn"
    assert MADE["char"].vocab_size == 6 + 256 + len(set("".join(TEXTS)))
    assert MADE["byte"].vocab_size == 6 + 256


def test_unigram_is_exactly_as_large_as_asked_for_if_the_text_is_rich() -> None:
    words = [" ".join(map("".join, itertools.permutations("abcdef", length))) for length in (3, 4, 5)]
    for own in ([], ["<|x|>"]):
        settings = params("unigram", vocab_size=600, special_tokens=own)
        assert tokenizer_of(settings, [*TEXTS, *words], downloads=Path("nowhere")).vocab_size == 600


def test_unigram_finds_a_word_that_is_frequent_in_one_form_only() -> None:
    texts = ["zebra, " * 50 + "quick brown foxes and other animals, "]
    tokenizer = tokenizer_of(params("unigram"), texts, downloads=Path("nowhere"))
    assert [tokenizer.decode([token]) for token in tokenizer.encode("a, zebra,")][-2:] == [" zebra", ","]


def test_a_character_of_the_training_text_is_one_token_and_others_are_their_bytes() -> None:
    tokenizer = made("char")
    assert len(tokenizer.encode("网络🚀é")) == 3 + 1
    assert tokenizer.token_bytes()[tokenizer.encode("ä🚀Ω")].tolist() == [2, 4, 1, 1]


def test_a_byte_has_the_token_of_its_number() -> None:
    assert made("byte").encode("aé") == [4 + byte for byte in "aé".encode()]


def test_unigram_has_every_byte_and_longer_pieces_that_texts_repeat() -> None:
    tokenizer = made("unigram")
    spelled = {tokenizer.decode_bytes([token]) for token in range(4, tokenizer.vocab_size)}
    assert spelled >= {bytes([byte]) for byte in range(256)}
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0].encode()) / 2
    assert b" pods" in spelled or b"pods" in spelled
    scores = dict(json.loads(tokenizer._reference.to_str())["model"]["vocab"][4:])
    unseen = {character for character, byte in byte_alphabet().items() if byte in (0x00, 0xFF)}
    assert max(map(scores.__getitem__, unseen)) < min(scores[name] for name in scores if len(name) > 1)


def test_too_little_text_gives_a_small_unigram_vocabulary() -> None:
    for texts in ([], ["ab ab"]):
        tokenizer = tokenizer_of(params("unigram"), texts, downloads=Path("nowhere"))
        assert 260 <= tokenizer.vocab_size <= 265
        assert tokenizer.decode(tokenizer.encode("ab cd")) == "ab cd"


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_vocabulary_without_room_for_bytes_and_special_tokens_is_refused(kind: str) -> None:
    own = [f"<|own{number}|>" for number in range(60)]
    with pytest.raises(
        UserError, match=r"vocab_size: 300 tokens do not hold .* 64 special tokens; .* least 320"
    ):
        made(kind, vocab_size=300, special_tokens=own)


def test_bpe_of_the_params_is_that_of_train(tmp_path: Path) -> None:
    made("bpe").save(tmp_path / "params")
    Tokenizer.train(TEXTS, 420).save(tmp_path / "train")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "params" / name).read_bytes() == (tmp_path / "train" / name).read_bytes()


TRAIN_AND_PRINT = """
import hashlib, json, sys
from pathlib import Path
from nima.workspace.params import TokenizeParams
from nima.tokenizer import tokenizer_of
texts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
for kind in ("bpe", "unigram", "char", "byte"):
    settings = TokenizeParams(kind=kind, vocab_size=500 if kind in ("bpe", "unigram") else None)
    tokenizer_of(settings, texts, downloads=Path()).save(Path(sys.argv[2]) / kind)
"""


def test_five_trainings_in_any_process_with_any_number_of_threads_give_the_same_files(tmp_path: Path) -> None:
    """On text with many equally frequent pieces: ties are what another order would break differently."""
    words = ["".join(word) for word in itertools.permutations("abcde")]
    (tmp_path / "texts.json").write_text(json.dumps([*TEXTS, *words, *words]), encoding="utf-8")
    running = []
    for run, threads in enumerate(["1", "2", "3", "7", "2"]):
        environment = dict(os.environ, PYTHONHASHSEED=str(run), RAYON_NUM_THREADS=threads)
        environment["PYTHONPATH"] = str(Path(nima.__file__).parent.parent)
        command = [sys.executable, "-c", TRAIN_AND_PRINT, tmp_path / "texts.json", tmp_path / str(run)]
        running.append(subprocess.Popen(command, env=environment))
    assert [process.wait() for process in running] == [0] * 5
    for kind in KINDS:
        files = [(tmp_path / str(run) / kind / "tokenizer.json").read_bytes() for run in range(5)]
        assert len(set(files)) == 1, kind


# ------------------------------------------------------------------------------------- special tokens


def test_own_special_tokens_have_the_ids_behind_nimas(tokenizer: Tokenizer) -> None:
    assert list(tokenizer.special_ids.items()) == [
        (name, n) for n, name in enumerate([*SPECIAL_TOKENS, *OWN])
    ]
    assert tokenizer.token_bytes()[:7].tolist()[:6] == [0] * 6


def test_names_of_special_tokens_in_text_stay_text(tokenizer: Tokenizer) -> None:
    for name in (*SPECIAL_TOKENS, *OWN):
        text = f"{name}a {name}\n{name}{name}"
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.special_ids.values())


def test_a_special_token_of_nimas_is_not_added_twice() -> None:
    assert made("byte", special_tokens=["<|im_end|>", "<|x|>"]).special_ids == {
        **{name: token for token, name in enumerate(SPECIAL_TOKENS)},
        "<|x|>": 4,
    }


@pytest.mark.parametrize("name", ["tool", "a", " pods", "--", "é"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_special_token_that_text_could_hold_as_a_token_is_refused(kind: str, name: str) -> None:
    with pytest.raises(UserError, match=r"tokenize\.special_tokens: .* is a word that plain text may have"):
        made(kind, special_tokens=[name])


def test_the_gate_names_a_special_token_that_comes_out_of_text() -> None:
    tokenizer = made("byte")
    tokenizer.special_ids |= {"<|x|>": tokenizer.encode("K")[0]}
    with pytest.raises(UserError, match=r"gate: .* encodes to a special token, '<\|x\|>'"):
        gate(tokenizer, [], 101, "pretrained")


def test_the_gate_refuses_a_pad_that_is_the_end_of_text() -> None:
    tokenizer = made("byte")
    tokenizer.pad = tokenizer.end_of_text
    with pytest.raises(UserError, match="gate: the pad is the end of text too"):
        gate(tokenizer, [], 101, "byte")


def test_the_gate_asks_for_long_tokens_of_kinds_that_learn_them_only() -> None:
    single = Tokenizer.train(["abc"], 300)
    with pytest.raises(UserError, match="no token is longer than a byte"):
        gate(single, [], 101, "bpe")
    assert gate(made("byte"), [], 101, "byte")


# ------------------------------------------------------------------------------------- without an extra


def test_unigram_without_its_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"needs the extra unigram: pip install 'nima-lm\[unigram\]'$"):
        made("unigram")


# -------------------------------------------------------------------------------------- in transformers


IN_TRANSFORMERS = """
import json, sys, warnings
warnings.simplefilter("error")
from transformers import AutoTokenizer
texts, found = json.loads(sys.argv[2]), {}
for folder in sys.argv[3:]:
    tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{folder}")
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    ids = [tokenizer(text, **plain).input_ids for text in texts]
    found[folder] = {
        "ids": ids,
        "decoded": [tokenizer.decode(each) for each in ids],
        "with_begin": tokenizer("a").input_ids,
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)],
        "own": tokenizer.convert_tokens_to_ids(["<|tool|>", "[SEP]"]),
        "template": tokenizer.chat_template,
    }
print(json.dumps(found))
"""
SHOWN = [*TEXTS, *UNSEEN, "x <|im_end|> y <|tool|> [SEP]"]


@pytest.fixture(scope="module")
def in_transformers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict]:
    folder = tmp_path_factory.mktemp("kinds")
    for kind, tokenizer in MADE.items():
        tokenizer.save(folder / kind)
    command = [sys.executable, "-c", IN_TRANSFORMERS, str(folder), json.dumps(SHOWN), *KINDS]
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_each_kind_with_equal_ids(kind: str, in_transformers: dict) -> None:
    tokenizer, found = MADE[kind], in_transformers[kind]
    assert found["ids"] == [tokenizer.encode(text) for text in SHOWN]
    assert found["decoded"] == SHOWN
    assert found["with_begin"] == [0, *tokenizer.encode("a")]
    assert found["special"] == [0, 0, 1, tokenizer.vocab_size]
    assert found["own"] == [4, 5]
    assert found["template"] == CHAT_TEMPLATE


def test_saved_and_loaded_each_kind_is_the_same(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path, context_tokens=64)
    loaded = Tokenizer.load(tmp_path)
    for text in SHOWN:
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.special_ids == tokenizer.special_ids
    assert loaded.report() == tokenizer.report()
    assert (loaded.begin, loaded.end_of_text, loaded.pad) == (0, 0, 1)
    assert loaded.token_bytes().tolist() == tokenizer.token_bytes().tolist()


def test_another_chat_template_is_saved_and_found_again(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer_of(params("byte"), [], downloads=tmp_path, chat_template=template).save(tmp_path)
    assert Tokenizer.load(tmp_path).chat_template == template
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"] == template


def test_every_spelled_byte_is_a_character_of_its_own() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
