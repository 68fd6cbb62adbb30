"""Tokenizers that others trained: read from folders and from a hub, completed, judged by the gate."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

import nima
from nima.tokenizer import Tokenizer, gate, tokenizer_of
from nima.tokenizer.encoders import GPT4_PATTERNS
from nima.tokenizer.special_tokens import CHAT_TEMPLATE
from nima.workspace.errors import UserError
from nima.workspace.params import TokenizeParams

TEXTS = [
    "The following ``get pods`` example lists the pods:\n\n    kubectl get pods --all --output json\n" * 4,
    "for pod in $(cat pods.txt); do\n\t\techo \"it's  ${pod}\"  # don't\ndone\r\n" * 4,
    "Der Dienst läuft über Nacht. Kết nối mạng. 网络恢复了。 🚀🚀 caf\u00e9 ▁▂▃ <0x41> <s> </s>\n" * 3,
    "",
    "  two spaces before and after  ",
]
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTE_NAMES = [f"<0x{byte:02X}>" for byte in range(256)]


def saved(folder: Path, reference: tokenizers.Tokenizer, **config: Any) -> Path:
    folder.mkdir(parents=True)
    reference.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def byte_level_bpe(split: Any, special: list[str], normalizer: Any = None) -> tokenizers.Tokenizer:
    """Learnt as models are: special tokens behind all others."""
    reference = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        reference.normalizer = normalizer
    reference.pre_tokenizer = split
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=ALPHABET, show_progress=False)
    reference.train_from_iterator(TEXTS, trainer)
    reference.add_special_tokens(special)
    return reference


def gpt2(folder: Path) -> Path:
    """One token for begin, end and unknown; no pad."""
    reference = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    end = "<|endoftext|>"
    return saved(
        folder, reference, tokenizer_class="GPT2Tokenizer", bos_token=end, eos_token=end, unk_token=end
    )


LLAMA3_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|eot|>{% endfor %}"
)


def llama3(folder: Path) -> Path:
    """A begin token, whole pieces first, a chat template of its own, tokens described by objects."""
    split = pre_tokenizers.Split(tokenizers.Regex(GPT4_PATTERNS[0]), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|begin|>", "<|end|>", "<|start|>", "<|eot|>"]
    reference = byte_level_bpe(pre_tokenizers.Sequence([split, spelled]), special)
    reference.model.ignore_merges = True
    reference.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", reference.token_to_id("<|begin|>"))]
    )
    return saved(
        folder,
        reference,
        bos_token={"content": "<|begin|>", "special": True},
        eos_token={"content": "<|end|>", "special": True},
        chat_template=LLAMA3_TEMPLATE,
    )


def qwen(folder: Path) -> Path:
    """NFC, added tokens that are text, ChatML's tokens, a pad that is the end of text, no begin token."""
    split = pre_tokenizers.Split(tokenizers.Regex(GPT4_PATTERNS[1]), "isolated")
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    reference = byte_level_bpe(pre_tokenizers.Sequence([split, spelled]), special, normalizers.NFC())
    reference.add_tokens([AddedToken(name, normalized=False) for name in ("<tool_call>", "</tool_call>")])
    end = "<|endoftext|>"
    folder = saved(folder, reference, bos_token=None, eos_token=end, pad_token=end)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    return folder


def llama2(folder: Path) -> Path:
    """SentencePiece's BPE: bytes by name, a mark for spaces, one of them put in front of every text."""
    characters = sorted(set("".join(TEXTS)) - set(" \n\t\r🚀网") | {"▁"})
    names = ["<unk>", "<s>", "</s>", *BYTE_NAMES, *characters, "▁p", "od", "▁pod", "▁▁"]
    vocab = {name: number for number, name in enumerate(names)}
    merges = [("▁", "p"), ("o", "d"), ("▁p", "od"), ("▁", "▁")]
    model = models.BPE(vocab=vocab, merges=merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    reference = tokenizers.Tokenizer(model)
    reference.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    decoding = [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
    reference.decoder = decoders.Sequence(decoding)
    reference.add_special_tokens(["<unk>", "<s>", "</s>"])
    return saved(folder, reference, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram(folder: Path, byte_fallback: bool = True) -> Path:
    """SentencePiece's Unigram, with Metaspace as `tokenizers` has it by default."""
    characters = sorted(set("".join(TEXTS)) - set(" \n\t\r🚀网") | {"▁"})
    names = ["▁pod", "pod", "s", *(BYTE_NAMES if byte_fallback else [])]
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((name, -5.0) for name in dict.fromkeys([*names, *characters]))]
    reference = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=byte_fallback))
    reference.pre_tokenizer = pre_tokenizers.Metaspace()
    reference.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    reference.add_special_tokens(["<unk>", "</s>"])
    return saved(folder, reference, eos_token="</s>", unk_token="<unk>")


def bert(folder: Path) -> Path:
    reference = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    reference.normalizer = normalizers.BertNormalizer(lowercase=True)
    reference.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    reference.decoder = decoders.WordPiece()
    special = ["[UNK]", "[CLS]", "[SEP]", "[PAD]"]
    trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    reference.train_from_iterator(TEXTS, trainer)
    return saved(folder, reference, eos_token="[SEP]", pad_token="[PAD]", unk_token="[UNK]")


def taken(folder: Path, chat_template: str | None = None, **changes: Any) -> Tokenizer:
    params = TokenizeParams(kind="pretrained", pretrained=str(folder), **changes)
    return tokenizer_of(params, [], downloads=folder / "downloads", chat_template=chat_template)


SOUND = {"gpt2": gpt2, "llama3": llama3, "qwen": qwen, "llama2": llama2, "unigram": unigram}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pretrained")
    return {name: make(place / name) for name, make in SOUND.items()}


# --------------------------------------------------------------------------------------- what is kept


def test_each_sound_tokenizer_passes_the_gate(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        assert gate(taken(folder), TEXTS, 101, "pretrained")["held_out_texts"] == len(TEXTS)


@given(text=st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_any_text_comes_back_with_ids_of_the_vocabulary_and_all_its_bytes(
    folders: dict[str, Path], text: str
) -> None:
    for name in SOUND:
        tokenizer = TAKEN.setdefault(name, taken(folders[name]))
        shown = tokenizer.normalized(text)
        ids = tokenizer.encode(shown)
        assert tokenizer.decode(ids) == shown, name
        assert all(token < tokenizer.vocab_size for token in ids)
        assert tokenizer.token_bytes()[ids].sum() == len(shown.encode())
        assert tokenizer.encode(text) == tokenizer.reference_ids(text)


TAKEN: dict[str, Tokenizer] = {}


@pytest.mark.parametrize(
    ("name", "begin", "end", "encoder"),
    [
        ("gpt2", "<|endoftext|>", "<|endoftext|>", "tiktoken"),
        ("llama3", "<|begin|>", "<|end|>", "tiktoken"),
        ("qwen", None, "<|endoftext|>", "tiktoken"),
        ("llama2", "<s>", "</s>", "tokenizers"),
        ("unigram", None, "</s>", "tokenizers"),
    ],
)
def test_its_own_special_tokens_keep_their_ids_and_tasks(
    folders: dict[str, Path], name: str, begin: str | None, end: str, encoder: str
) -> None:
    original = tokenizers.Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    tokenizer = taken(folders[name])
    assert tokenizer.end_of_text == original.token_to_id(end)
    assert tokenizer.begin == (None if begin is None else original.token_to_id(begin))
    assert tokenizer.report()["encoder"] == encoder
    for token, added in original.get_added_tokens_decoder().items():
        assert tokenizer.special_ids.get(added.content) == (token if added.special else None)


@pytest.mark.parametrize(
    ("name", "added"),
    [
        ("gpt2", ["<|pad|>", "<|im_start|>", "<|im_end|>"]),
        ("llama3", ["<|pad|>"]),
        ("qwen", ["<|pad|>"]),
        ("llama2", ["<|pad|>", "<|im_start|>", "<|im_end|>"]),
    ],
)
def test_only_what_is_missing_is_added_behind_the_vocabulary(
    folders: dict[str, Path], name: str, added: list[str]
) -> None:
    original = tokenizers.Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    tokenizer = taken(folders[name], special_tokens=["<|tool|>"])
    assert tokenizer.report()["added_tokens"] == [*added, "<|tool|>"]
    size = original.get_vocab_size(with_added_tokens=True)
    assert [tokenizer.special_ids[each] for each in (*added, "<|tool|>")] == list(
        range(size, tokenizer.vocab_size)
    )
    assert tokenizer.pad == tokenizer.special_ids["<|pad|>"] != tokenizer.end_of_text


def test_ids_of_text_are_those_of_the_original(folders: dict[str, Path]) -> None:
    for name in ("gpt2", "llama3", "qwen"):
        original = tokenizers.Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        tokenizer = taken(folders[name])
        assert not tokenizer.report()["space_in_front_removed"]
        for text in TEXTS:
            original.encode_special_tokens = True
            assert tokenizer.encode(text) == original.encode(text, add_special_tokens=False).ids


def test_the_chat_template_is_the_users_or_its_own_or_chatml(folders: dict[str, Path]) -> None:
    assert taken(folders["llama3"]).chat_template == LLAMA3_TEMPLATE
    assert taken(folders["qwen"]).chat_template == taken(folders["gpt2"]).chat_template == CHAT_TEMPLATE
    users = taken(folders["llama3"], chat_template=CHAT_TEMPLATE)
    assert users.chat_template == CHAT_TEMPLATE
    assert users.report()["added_tokens"] == ["<|pad|>", "<|im_start|>", "<|im_end|>"]


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "several")
    named = [{"name": "tools", "template": "T"}, {"name": "default", "template": "D"}]
    config = {"eos_token": "<|endoftext|>", "chat_template": named}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert taken(folder).chat_template == "D"


def test_a_folder_with_nothing_but_tokenizer_json_gets_nimas_tokens(tmp_path: Path) -> None:
    reference = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), [])
    tokenizer = taken(saved(tmp_path / "bare", reference))
    assert tokenizer.report()["added_tokens"] == ["<|endoftext|>", "<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert (tokenizer.begin, tokenizer.end_of_text, tokenizer.pad) == (400, 400, 401)


def test_a_token_for_unknown_text_that_its_config_names_in_vain_is_not_added(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "unknown")
    config = {"eos_token": "<|endoftext|>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "<unk>" not in taken(folder).special_ids


def test_limits_and_padding_that_were_saved_with_it_are_lifted(tmp_path: Path) -> None:
    reference = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), ["<|endoftext|>"])
    reference.enable_truncation(5)
    reference.enable_padding(length=9)
    tokenizer = taken(saved(tmp_path / "cut", reference))
    for text in ("x", TEXTS[0]):
        assert tokenizer.decode(tokenizer.reference_ids(text)) == text


def test_gpt2s_own_files_are_read(tmp_path: Path, folders: dict[str, Path]) -> None:
    original = tokenizers.Tokenizer.from_file(str(folders["gpt2"] / "tokenizer.json"))
    (tmp_path / "saved").mkdir()
    vocabulary, merges = original.model.save(str(tmp_path / "saved"))
    for names in (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")):
        folder = tmp_path / names[0]
        folder.mkdir()
        for source, name in zip((vocabulary, merges), names, strict=True):
            (folder / name).write_bytes(Path(source).read_bytes())
        tokenizer = taken(folder)
        assert tokenizer.encode(TEXTS[1]) == original.encode(TEXTS[1]).ids
        assert tokenizer.report()["encoder"] == "tiktoken"


# ------------------------------------------------------------------------------ marks, spaces and bytes


@pytest.mark.parametrize("name", ["llama2", "unigram"])
def test_no_space_is_put_in_front_and_that_is_reported(folders: dict[str, Path], name: str) -> None:
    tokenizer = taken(folders[name])
    assert tokenizer.report()["space_in_front_removed"]
    original = tokenizers.Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
    assert original.encode("pod", add_special_tokens=False).tokens == ["▁pod"]
    assert tokenizer.decode(tokenizer.encode("pod")) == "pod"
    assert tokenizer.decode(tokenizer.encode(" pod")) == " pod"
    middle = original.encode("x pods pod", add_special_tokens=False).ids[-4:]
    assert tokenizer.encode("x pods pod")[-4:] == middle


def test_a_byte_level_tokenizer_with_a_space_in_front_loses_it(tmp_path: Path) -> None:
    reference = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<|endoftext|>"])
    tokenizer = taken(saved(tmp_path / "prefix", reference))
    assert tokenizer.report()["space_in_front_removed"]
    assert gate(tokenizer, TEXTS, 101, "pretrained")


@pytest.mark.parametrize("name", ["llama2", "unigram"])
def test_marks_and_names_of_bytes_in_text_are_spelled_in_bytes(folders: dict[str, Path], name: str) -> None:
    tokenizer = taken(folders[name])
    for text in ("▁", "a▁b ▁ c", "<0x41>", "x<0x0A>▁y", "A\n", "a <unk>x</s>"):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_tokens_of_bytes_and_marks_of_spaces_stand_for_one_byte(folders: dict[str, Path]) -> None:
    for name in ("llama2", "unigram"):
        tokenizer = taken(folders[name])
        original = tokenizers.Tokenizer.from_file(str(folders[name] / "tokenizer.json"))
        token = original.token_to_id
        assert tokenizer.decode_bytes([token("<0xE2>"), token("<0x96>")]) == b"\xe2\x96"
        assert tokenizer.decode_bytes([token("▁pod"), token("ä")]) == " podä".encode()
        assert tokenizer.token_bytes()[
            [token("▁pod"), token("ä"), token("<0xE2>"), token("</s>")]
        ].tolist() == [4, 2, 1, 0]


# ----------------------------------------------------------------------------------- what is refused


def test_the_gate_refuses_wordpiece(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gate: byte 0x00 has no token, so that some text would be lost"):
        gate(taken(bert(tmp_path / "bert")), TEXTS, 101, "pretrained")


def test_the_gate_refuses_unigram_without_byte_fallback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gate: byte 0x00 has no token"):
        gate(taken(unigram(tmp_path / "unigram", byte_fallback=False)), TEXTS, 101, "pretrained")


def test_the_gate_refuses_lower_casing_and_names_the_text(tmp_path: Path) -> None:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    folder = saved(tmp_path / "lower", byte_level_bpe(split, ["<|endoftext|>"], normalizers.Lowercase()))
    with pytest.raises(
        UserError, match=r"fuzzed text .It's the DNS .* survive encoding: .* back as .it's the dns"
    ):
        gate(taken(folder), TEXTS, 101, "pretrained")


def test_held_out_text_outside_the_normal_form_is_named_with_a_way_out(folders: dict[str, Path]) -> None:
    decomposed = "long " * 50 + "cafe\u0301"
    with pytest.raises(UserError, match=r"held-out text .*cafe\\u0301.*NFC: set prepare\.cleaning\.unicode"):
        gate(taken(folders["qwen"]), [decomposed], 101, "pretrained")


def test_a_text_that_cannot_be_encoded_at_all_is_named(tmp_path: Path) -> None:
    model = models.Unigram([("a", -1.0), ("</s>", 0.0)], byte_fallback=False)
    reference = tokenizers.Tokenizer(model)
    reference.add_special_tokens(["</s>"])
    tokenizer = taken(saved(tmp_path / "a", reference, eos_token="</s>"))
    with pytest.raises(UserError, match=r"text 'b': the tokenizer cannot encode it"):
        tokenizer.encode("b")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"holds no tokenizer; expected tokenizer\.json in it"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json: is no tokenizer"),
        ({"tokenizer.json": None, "tokenizer_config.json": "["}, r"tokenizer_config\.json: cannot be read"),
        (
            {"tokenizer.json": None, "tokenizer_config.json": "[" * 99999},
            r"tokenizer_config\.json: cannot be read",
        ),
        ({"tokenizer.json": None, "tokenizer_config.json": "[]"}, r"tokenizer_config\.json: holds a list"),
        ({"vocab.json": "{", "merges.txt": ""}, r"vocab\.json: is no vocabulary with merges\.txt"),
    ],
)
def test_a_broken_folder_is_one_line(
    tmp_path: Path, folders: dict[str, Path], files: dict[str, str | None], message: str
) -> None:
    sound = (folders["gpt2"] / "tokenizer.json").read_text(encoding="utf-8")
    for name, content in files.items():
        (tmp_path / name).write_text(sound if content is None else content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as raised:
        taken(tmp_path)
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------------------------------ other tools


IN_TRANSFORMERS = """
import json, sys, warnings
warnings.simplefilter("error")
from transformers import AutoTokenizer
texts, found = json.loads(sys.argv[2]), {}
for name in sys.argv[3:]:
    tokenizer = AutoTokenizer.from_pretrained(f"{sys.argv[1]}/{name}")
    plain = {"add_special_tokens": False, "split_special_tokens": True}
    ids = [tokenizer(text, **plain).input_ids for text in texts]
    found[name] = {
        "ids": ids,
        "decoded": [tokenizer.decode(each) for each in ids],
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)],
        "template": tokenizer.chat_template,
        "longest": tokenizer.model_max_length,
    }
print(json.dumps(found))
"""
# Marks of spaces, and for Unigram names of its own tokens, are not for other tools: they take them for those.
SHOWN = [*TEXTS[:2], "läuft 网络 🚀 caf\u00e9 <|im_end|> <|pad|>", *TEXTS[3:]]


def test_transformers_loads_what_was_saved_with_equal_ids(folders: dict[str, Path], tmp_path: Path) -> None:
    made = {name: taken(folder) for name, folder in folders.items()}
    for name, tokenizer in made.items():
        tokenizer.save(tmp_path / name, context_tokens=777)
    command = [sys.executable, "-c", IN_TRANSFORMERS, str(tmp_path), json.dumps(SHOWN), *made]
    environment = dict(os.environ, HF_HUB_OFFLINE="1")
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    for name, found in json.loads(done.stdout).items():
        tokenizer = made[name]
        assert found["ids"] == [tokenizer.encode(text) for text in SHOWN], name
        assert found["decoded"] == SHOWN, name
        special = [tokenizer.begin, tokenizer.end_of_text, tokenizer.pad, tokenizer.vocab_size]
        assert found["special"] == special, name
        assert (found["template"], found["longest"]) == (tokenizer.chat_template, 777)


def test_saved_and_loaded_it_is_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    for name, folder in folders.items():
        tokenizer = taken(folder, special_tokens=["<|tool|>"])
        tokenizer.save(tmp_path / name)
        loaded = Tokenizer.load(tmp_path / name)
        for text in TEXTS:
            assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.special_ids == tokenizer.special_ids
        assert (loaded.begin, loaded.end_of_text, loaded.pad) == (
            tokenizer.begin,
            tokenizer.end_of_text,
            tokenizer.pad,
        )
        assert loaded.chat_template == tokenizer.chat_template


def test_a_sentencepiece_model_is_converted(tmp_path: Path) -> None:
    import sentencepiece

    (tmp_path / "text.txt").write_text(
        "\n".join(TEXTS[:2]) + "\nother words of every kind\n", encoding="utf-8"
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "tokenizer"),
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    config = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = taken(tmp_path)
    assert gate(tokenizer, TEXTS, 101, "pretrained")
    assert (tokenizer.begin, tokenizer.end_of_text) == (1, 2)
    (tmp_path / "config.json").write_text(
        '{"auto_map": {"AutoTokenizer": "code.Tokenizer"}}', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"config\.json: asks to run code of its own"):
        taken(tmp_path)


def test_flags_of_special_tokens_stay_as_they_were(tmp_path: Path) -> None:
    reference = byte_level_bpe(pre_tokenizers.ByteLevel(add_prefix_space=False), [])
    reference.add_special_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    tokenizer = taken(saved(tmp_path / "flags", reference, eos_token="</s>"))
    kept = {token.content: token for token in tokenizer._reference.get_added_tokens_decoder().values()}
    assert kept["</s>"].rstrip
    assert kept["</s>"].special


# ---------------------------------------------------------------------------------------------- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs."""

    files: dict[str, bytes]
    requests: list[str]
    sha = "5" * 40

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.requests.append(self.path)
        status, body = self.content()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{len(body)}"')
        self.send_header("X-Repo-Commit", self.sha)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def content(self) -> tuple[int, bytes]:
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/closed/") or self.path.startswith("/api/models/closed/"):
            return 403, b""
        if "/org/name" not in self.path:
            return 404, b""
        if "/tree/" in self.path:
            listed = [
                {"type": "file", "path": path, "size": len(data), "oid": path}
                for path, data in self.files.items()
            ]
            return 200, json.dumps(listed).encode()
        if self.path.startswith("/api/"):
            siblings = [{"rfilename": path} for path in self.files]
            return 200, json.dumps({"id": "org/name", "sha": self.sha, "siblings": siblings}).encode()
        return (200, self.files[name]) if name in self.files else (404, b"")


@pytest.fixture
def hub(folders: dict[str, Path]) -> Iterator[http.server.ThreadingHTTPServer]:
    files = {path.name: path.read_bytes() for path in folders["llama3"].iterdir() if path.is_file()}
    handler = type("OneHub", (Hub,), {"files": files | {"model.safetensors": b"x" * 99}, "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


FROM_HUB = """
import json, sys
from pathlib import Path
from nima.workspace.errors import UserError
from nima.workspace.params import TokenizeParams
from nima.tokenizer import tokenizer_of
for place in sys.argv[2:]:
    settings = TokenizeParams(kind="pretrained", pretrained=place)
    try:
        found = tokenizer_of(settings, [], downloads=Path(sys.argv[1]))
        print(json.dumps(found.report() | {"begin": found.begin}))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def from_hub(port: int, folder: Path, *places: str) -> list[Any]:
    environment = dict(os.environ, HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=str(folder / "home"))
    environment["PYTHONPATH"] = str(Path(nima.__file__).parent.parent)
    environment.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", FROM_HUB, str(folder / "downloads"), *places]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_tokenizer_comes_from_the_hub_once_and_without_the_model(
    hub: http.server.ThreadingHTTPServer, folders: dict[str, Path], tmp_path: Path
) -> None:
    requests = hub.RequestHandlerClass.requests
    expected = taken(folders["llama3"]).report() | {"revision": Hub.sha}
    [found, again] = from_hub(hub.server_port, tmp_path, "org/name", "org/name")
    assert found == again == expected | {"begin": taken(folders["llama3"]).begin}
    assert sum("/resolve/" in path and path.endswith("tokenizer.json") for path in requests) <= 2
    assert not any("safetensors" in path for path in requests)
    requests.clear()
    assert from_hub(hub.server_port, tmp_path, "org/name") == [found]
    assert not any("org/name" in path for path in requests)


def test_what_the_hub_refuses_is_one_line_each(hub: http.server.ThreadingHTTPServer, tmp_path: Path) -> None:
    found = from_hub(
        hub.server_port, tmp_path, "org/missing", "closed/name", "no/such/folder", "./folder", "o/n@../x"
    )
    assert "tokenize.pretrained: org/missing: no such folder, and the hub does not give it: 404" in found[0]
    assert "closed/name: no such folder, and the hub does not give it" in found[1]
    assert "403" in found[1]
    for message in found[2:4]:
        assert message.endswith("no such folder, and no hub id (owner/name)")
    assert all("\n" not in message for message in found)


def test_a_hub_that_is_down_is_one_line(tmp_path: Path) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        port = server.server_port
    [found] = from_hub(port, tmp_path, "org/name")
    assert "tokenize.pretrained: org/name: no such folder, and the hub does not give it" in found
    assert "Connection refused" in found
