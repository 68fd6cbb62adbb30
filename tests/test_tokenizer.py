import hashlib
import itertools
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

import nima
from nima.tokenizer import Tokenizer, gate
from nima.tokenizer.encoders import pre_tokenizer
from nima.tokenizer.gate import fuzzed_texts
from nima.tokenizer.special_tokens import CHAT_TEMPLATE, SPECIAL_TOKENS
from nima.tokenizer.vocabulary import byte_alphabet
from nima.workspace.errors import UserError

COMMANDS = """
**To list the running pods of a namespace**

The following ``get pods`` example lists them::

    kubectl get pods --namespace kube-system --output json | jq '.items[].metadata.name'

Output::

    {
        "Reservations": [{"InstanceId": "i-1234567890abcdef0", "State": {"Code": 16, "Name": "running"}}],
        "NextToken": null
    }

----------------------------------------------------------------------------
for pod in $(cat pods.txt); do
\t\techo "it's ${pod}"  # don't stop
done
"""
PROSE = (
    "Der Dienst läuft über Nacht. Kết nối mạng đã được khôi phục. "
    "सेवा चल रही है। 网络恢复了。 🚀🚀 café\u0301\n"
)
TEXTS = [COMMANDS, PROSE * 3, COMMANDS.replace("pods", "services"), "a  b   c    d\r\n\r\n\t\tx\n" * 20]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, vocab_size=500)


def from_merges(merges: list[tuple[str, str]], alphabet: list[str]) -> tokenizers.Tokenizer:
    """A tokenizer of the reference package with exactly these merges, in spelled bytes."""
    names = list(dict.fromkeys([*SPECIAL_TOKENS, *alphabet, *("".join(pair) for pair in merges)]))
    vocabulary = {name: token for token, name in enumerate(names)}
    reference = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    reference.pre_tokenizer = pre_tokenizer()
    reference.decoder = decoders.ByteLevel()
    reference.add_special_tokens(list(SPECIAL_TOKENS))
    return reference


ALPHABET = sorted(byte_alphabet())


# ------------------------------------------------------------------------------- learning and the file


def test_special_tokens_have_the_first_ids_and_every_byte_is_a_token(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == {name: token for token, name in enumerate(SPECIAL_TOKENS)}
    assert (tokenizer.end_of_text, tokenizer.pad) == (0, 1)
    singles = {tokenizer.decode_bytes([token]) for token in range(4, 260)}
    assert singles == {bytes([byte]) for byte in range(256)}


def test_the_vocabulary_is_exactly_as_large_as_asked_for(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 500
    assert max(itertools.chain.from_iterable(map(tokenizer.encode, TEXTS))) > 450


def test_what_is_learnt_from_a_text_stays_what_it_was(tokenizer: Tokenizer) -> None:
    """Another vocabulary from the same text would make runs of the past impossible to repeat."""
    model = json.loads(tokenizer._reference.to_str())["model"]
    learnt = json.dumps([model["vocab"], model["merges"]]).encode()
    assert hashlib.sha256(learnt).hexdigest().startswith("e796c7298df2b423")


def test_too_little_text_gives_a_smaller_vocabulary() -> None:
    assert Tokenizer.train(["ab ab"], vocab_size=600).vocab_size == 4 + 256 + 1


TRAIN_AND_PRINT = """
import sys
from collections.abc import Iterator
from pathlib import Path
from nima.tokenizer import Tokenizer
texts = Path(sys.argv[1]).read_text(encoding="utf-8").split("\\f")
Tokenizer.train(texts, 600).save(Path(sys.argv[2]), 512)
"""


def test_the_file_is_the_same_in_every_process_and_with_any_number_of_threads(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    # Many equally frequent pairs: ties are what another order would break differently.
    words = ["".join(word) for word in itertools.permutations("abcde")]
    corpus.write_text("\f".join([*TEXTS, *words, *words]), encoding="utf-8")
    found = []
    for run, threads in enumerate(["1", "2", "7"]):
        environment = dict(os.environ, PYTHONHASHSEED=str(run), RAYON_NUM_THREADS=threads)
        environment["PYTHONPATH"] = str(Path(nima.__file__).parent.parent)
        folder = tmp_path / threads
        subprocess.run(
            [sys.executable, "-c", TRAIN_AND_PRINT, str(corpus), str(folder)], env=environment, check=True
        )
        found.append([(path.name, path.read_bytes()) for path in sorted(folder.iterdir())])
    assert [name for name, _ in found[0]] == ["tokenizer.json", "tokenizer_config.json"]
    assert found[0] == found[1] == found[2]


def test_learning_and_encoding_use_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    assert Tokenizer.train(TEXTS, 300).encode("pods")
    assert not (tmp_path / "cache").exists()


def test_saved_and_loaded_it_gives_the_same_ids(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path, context_tokens=128)
    loaded = Tokenizer.load(tmp_path)
    assert [loaded.encode(text) for text in TEXTS] == [tokenizer.encode(text) for text in TEXTS]
    assert loaded.vocab_size == tokenizer.vocab_size
    loaded.save(tmp_path / "again", context_tokens=128)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_who_asks_about_its_tokens_does_not_wait_for_its_encoder(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer.save(tmp_path)
    monkeypatch.setattr("nima.tokenizer.tokenizer.encoder_of", lambda *_: pytest.fail("an encoder was made"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.token_bytes().sum() > 0
    assert loaded.decode(tokenizer.encode("pods")) == "pods"


@pytest.mark.parametrize("content", [None, b"", b"{", b'{"model": {}}', b"\xff\xfe", b"[]"])
def test_a_missing_or_broken_file_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UserError, match=r"tokenizer\.json: .*the stage tokenize writes it") as raised:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_tokenizer_without_the_special_tokens_is_refused(tmp_path: Path) -> None:
    reference = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    reference.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer\.json: the tokenizer has no token <\|endoftext\|>"):
        Tokenizer.load(tmp_path)


def test_an_error_while_texts_are_read_reaches_the_user() -> None:
    def texts() -> Iterator[str]:
        yield "fine"
        raise UserError("documents-00000.parquet: broken")

    with pytest.raises(UserError, match="documents-00000"):
        Tokenizer.train(texts(), 300)


# -------------------------------------------------------------------------------- there and back again


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_any_text_comes_back_and_has_the_ids_of_the_file(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert ids == tokenizer.reference_ids(text)
    assert not set(ids) & set(tokenizer.special_ids.values())


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_names_of_special_tokens_in_text_stay_text(tokenizer: Tokenizer, name: str) -> None:
    text = f"{name}a {name}\n{name}{name}"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not set(ids) & {0, 1, 2, 3}


def test_special_tokens_stand_for_no_text(tokenizer: Tokenizer) -> None:
    ids = [0, *tokenizer.encode("kubectl"), 3, 1]
    assert tokenizer.decode(ids) == "kubectl"
    assert tokenizer.token_bytes()[:4].tolist() == [0, 0, 0, 0]


def test_token_bytes_add_up_to_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int64
    assert lengths.shape == (tokenizer.vocab_size,)
    for text in TEXTS:
        assert lengths[tokenizer.encode(text)].sum() == len(text.encode())


def test_half_a_character_decodes_to_the_replacement_character(tokenizer: Tokenizer) -> None:
    rocket = tokenizer.encode("\U0010fff0")
    assert len(rocket) > 1
    assert tokenizer.decode_bytes(rocket[:-1]) == "\U0010fff0".encode()[:3]
    assert "\ufffd" in tokenizer.decode(rocket[:-1])


@pytest.mark.parametrize("threads", [1, 3])
def test_encoding_many_is_encoding_each(tokenizer: Tokenizer, threads: int) -> None:
    texts = [f"pod {number} {text}" for number, text in enumerate(TEXTS * 60)]
    found = tokenizer.encode_many([*texts, ""], threads)
    assert [ids.tolist() for ids in found] == [tokenizer.encode(text) for text in [*texts, ""]]
    assert {ids.dtype for ids in found} == {np.dtype("uint32")}


@pytest.mark.parametrize("method", ["encode", "reference_ids"])
def test_a_lone_surrogate_is_an_error_that_says_where(tokenizer: Tokenizer, method: str) -> None:
    with pytest.raises(UserError, match=r"lone surrogate U\+DC80 at character 5"):
        getattr(tokenizer, method)("names\udc80")
    with pytest.raises(UserError, match="lone surrogate"):
        Tokenizer.train(["names\udc80"], 300)


# ------------------------------------------------------------------- two encoders, the same ids, always


def test_the_fast_encoder_is_in_use(tokenizer: Tokenizer) -> None:
    assert tokenizer._encoder is not None


def split(tokenizer: Tokenizer, text: str) -> list[bytes]:
    return [tokenizer.decode_bytes([token]) for token in tokenizer.encode(text)]


def test_random_concatenations_of_tokens_and_cuts_of_text_have_the_ids_of_the_file(
    tokenizer: Tokenizer,
) -> None:
    chance = random.Random(0)
    corpus = "".join(TEXTS)
    pieces = [text for token in range(4, 500) if "\ufffd" not in (text := tokenizer.decode([token]))]
    for _ in range(3000):
        joined = "".join(chance.choices(pieces, k=chance.randint(1, 12)))
        start = chance.randrange(len(corpus))
        cut = corpus[start : start + chance.randint(1, 60)]
        for text in (joined, cut, cut + joined):
            assert tokenizer.encode(text) == tokenizer.reference_ids(text)


@pytest.mark.parametrize("seed", range(12))
def test_repetitive_text_where_merges_overlap_has_the_ids_of_the_file(seed: int) -> None:
    """Two and three letters in runs: tokens such as aaa and abab, which can be put together in many ways."""
    chance = random.Random(seed)
    letters = ["ab", "abc", " -", "a ", "-=", "é"][seed % 6]
    texts = [random_run(chance, letters, 40) for _ in range(200)]
    tokenizer = Tokenizer.train(texts, vocab_size=260 + chance.randint(5, 150))
    assert tokenizer._encoder is not None
    for _ in range(3000):
        text = random_run(chance, letters, 40)
        assert tokenizer.encode(text) == tokenizer.reference_ids(text)
    for length in range(1, 10):
        for characters in itertools.product(letters[:2], repeat=length):
            text = "".join(characters)
            assert tokenizer.encode(text) == tokenizer.reference_ids(text)


def random_run(chance: random.Random, letters: str, longest: int) -> str:
    parts = (chance.choice(letters) * chance.randint(1, 9) for _ in range(chance.randint(1, 8)))
    return "".join(parts)[:longest]


@pytest.mark.parametrize(
    ("merges", "text"),
    [
        # abc is listed as ab + c, but bc comes first: only tiktoken puts a + bc together.
        ([("b", "c"), ("a", "b"), ("ab", "c")], "abc"),
        # A token with two listed pairs, of which the second comes late.
        ([("a", "b"), ("ab", "c"), ("c", "d"), ("b", "c"), ("a", "bc")], "abcd"),
    ],
)
def test_merges_on_which_the_encoders_could_differ_are_left_to_the_reference(
    merges: list[tuple[str, str]], text: str
) -> None:
    tokenizer = Tokenizer(from_merges(merges, ALPHABET))
    assert tokenizer._encoder is None
    assert tokenizer.encode(text) == tokenizer.reference_ids(text)
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_another_split_pattern_is_left_to_the_reference(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path, 128)
    path = tmp_path / "tokenizer.json"
    described = json.loads(path.read_text(encoding="utf-8"))
    described["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\s+|\S+"
    path.write_text(json.dumps(described), encoding="utf-8")
    loaded = Tokenizer.load(tmp_path)
    assert loaded._encoder is None
    assert [loaded.encode(text) for text in TEXTS] == [loaded.reference_ids(text) for text in TEXTS]


@pytest.mark.parametrize(
    "text", [" " * 300_000 + "x", "\n" * 200_000, " \n" * 100_000, "a" * 200_000, "é" * 99_999]
)
def test_very_long_runs_encode_and_come_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert np.array_equal(ids, tokenizer.reference_ids(text))


def test_indentation_is_one_token_and_numbers_are_pairs_of_digits() -> None:
    tokenizer = Tokenizer.train(["    return 123456\n        return 123456\n" * 9], 400)
    assert split(tokenizer, "        return 12345") == [b"       ", b" return", b" ", b"12", b"34", b"5"]


# -------------------------------------------------------------------------------------- in transformers


IN_TRANSFORMERS = """
import json, sys, warnings
warnings.simplefilter("error")
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
texts, messages = json.loads(sys.argv[2]), json.loads(sys.argv[3])
plain = {"add_special_tokens": False}
print(json.dumps({
    "ids": [tokenizer(text).input_ids for text in texts],
    "plain": [tokenizer(text, split_special_tokens=True, **plain).input_ids for text in texts],
    "decoded": [tokenizer.decode(tokenizer(text, **plain).input_ids) for text in texts],
    "chat": tokenizer.apply_chat_template(messages, return_dict=False),
    "prompt": tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True),
    "longest": tokenizer.model_max_length,
    "names": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.chat_template],
}))
"""


@pytest.fixture(scope="module")
def in_transformers(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder, context_tokens=128)
    arguments = [json.dumps(SAMPLES), json.dumps(MESSAGES)]
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    command = [sys.executable, "-c", IN_TRANSFORMERS, str(folder), *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


SAMPLES = ["kubectl get pods , now .", " it's  café\u0301\n\n", "x <|im_end|> y"]
MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "\n\n  What is it? \n"},
    {"role": "assistant", "content": "  kubectl get pods\n\n    --all"},
    {"role": "assistant", "content": ""},
]


def test_transformers_gives_the_begin_token_and_nimas_ids(
    tokenizer: Tokenizer, in_transformers: dict
) -> None:
    assert in_transformers["ids"][:2] == [[0, *tokenizer.encode(text)] for text in SAMPLES[:2]]
    assert in_transformers["plain"] == [tokenizer.encode(text) for text in SAMPLES]


def test_transformers_decodes_without_tidying_spaces(in_transformers: dict) -> None:
    assert in_transformers["decoded"] == SAMPLES


def test_transformers_knows_the_special_tokens_and_the_longest_sequence(in_transformers: dict) -> None:
    assert in_transformers["names"] == ["<|endoftext|>", "<|endoftext|>", "<|pad|>", CHAT_TEMPLATE]
    assert in_transformers["longest"] == 128


def test_the_chat_template_gives_the_tokens_that_are_trained(
    tokenizer: Tokenizer, in_transformers: dict
) -> None:
    from nima.corpus.document import Document, Message
    from nima.encoding.conversation.documents import tokenized
    from nima.encoding.conversation.templates import ChatTemplate
    from nima.workspace.params import TokenizeParams

    messages = tuple(Message(**message) for message in MESSAGES)
    document = Document("0" * 16, "chat", "a#0", "1" * 16, 1.0, "MIT", "", messages)
    [trained] = tokenized([document], tokenizer, ChatTemplate.of(tokenizer), TokenizeParams(vocab_size=500))
    assert in_transformers["chat"] == [0, *trained.tokens[:-1]]
    assert trained.tokens[-1] == 0
    assert in_transformers["prompt"] == (
        "<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>assistant\n"
    )


# --------------------------------------------------------------------------------------------- the gate


def test_a_sound_tokenizer_passes_the_gate(tokenizer: Tokenizer) -> None:
    found = gate(tokenizer, TEXTS, min_vocab_size=500)
    assert found["held_out_texts"] == 4
    assert found["held_out_bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert found["held_out_bytes_per_token"] > 1.5
    assert found["fuzzed_texts"] > 500


def test_the_fuzzed_texts_are_hostile_and_the_same_each_time() -> None:
    texts = list(fuzzed_texts(list(SPECIAL_TOKENS)))
    assert texts == list(fuzzed_texts(list(SPECIAL_TOKENS)))
    characters = set("".join(texts))
    for kind in ("\u200d", "\u202e", "\ufeff", "\x00", "\r"):
        assert kind in characters or any(abs(ord(kind) - ord(found)) < 4 for found in characters)
    assert max(characters) > "\U0010ff00"
    assert all(name in "".join(texts) for name in SPECIAL_TOKENS)


def test_the_gate_refuses_a_small_vocabulary(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        UserError, match=r"gate: 500 tokens were learnt, tokenize\.min_vocab_size asks for 501"
    ):
        gate(tokenizer, [], min_vocab_size=501)


def test_the_gate_refuses_a_tokenizer_that_learnt_nothing() -> None:
    with pytest.raises(UserError, match=r"gate: no token is longer than a byte; .*tokenize\.train_max_bytes"):
        gate(Tokenizer.train(["abc"], 300), [], 101)


def test_the_gate_refuses_a_tokenizer_that_loses_text(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "decode", lambda ids: Tokenizer.decode(tokenizer, ids).replace("\r", ""))
    with pytest.raises(UserError, match="does not survive encoding"):
        gate(tokenizer, ["a\r\nb"], 101)


def test_the_gate_refuses_special_tokens_out_of_text(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "encode", lambda text: [0])
    with pytest.raises(UserError, match="encodes to a special token"):
        gate(tokenizer, [], 101)


def test_the_gate_refuses_ids_that_the_file_would_not_give(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_byte = {tokenizer.decode_bytes([token]): token for token in range(4, 260)}
    byte_ids = lambda text: [by_byte[bytes([byte])] for byte in text.encode()]  # noqa: E731
    monkeypatch.setattr(tokenizer, "encode", byte_ids)
    with pytest.raises(UserError, match=r"has other ids in tokenizer\.json"):
        gate(tokenizer, [], 101)


def test_the_gate_refuses_an_alphabet_with_gaps() -> None:
    tokenizer = Tokenizer(from_merges([], ALPHABET[1:]))
    with pytest.raises(UserError, match=r"gate: byte 0x\w\w has no token"):
        gate(tokenizer, [], 101)


def test_the_gate_shows_a_short_piece_of_a_long_text(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "decode", lambda ids: "")
    with pytest.raises(UserError, match=r"gate: (held-out|fuzzed) text") as raised:
        gate(tokenizer, ["long " * 9999], 101)
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)
