import codecs
import json

import pytest
from held_files import read, rejected, summary

TEXTS = {
    "cp1252": "L'été dernier, nous avons mangé des crêpes à la crème près de l'église. Où êtes-vous ? ",
    "cp1250": "Příliš žluťoučký kůň úpěl ďábelské ódy. "
    "Včera jsme byli v Praze a viděli jsme mnoho krásných věcí. ",
    "iso8859-2": "Zażółć gęślą jaźń. Wczoraj byliśmy w Łodzi i jedliśmy pierogi, a książka leży na stole. ",
    "cp1251": "Съешь ещё этих мягких булок, да выпей чаю. Вчера мы гуляли по городу. ",
    "koi8-r": "Съешь ещё этих мягких булок, да выпей чаю. Вчера мы гуляли по городу. ",
    "cp1254": "Dün İstanbul'a gittik ve çok güzel şeyler gördük. Öğretmen öğrencilere kitap verdi. ",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。薄暗い所で泣いていた。",
    "euc_jp": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。薄暗い所で泣いていた。",
    "gb18030": "我们昨天去了北京,天气非常好。这本书很有意思,你应该读一读。中国的历史悠久,文化丰富多彩。",
}
RECORDS = '{"text": "ä"}\n{"text": "\u20ac\U0001f600"}\n'


@pytest.mark.parametrize(
    ("mark", "codec"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("declared", ["utf-8", "auto", "cp1252"])
def test_byte_order_marks_are_recognised_whatever_is_declared(mark, codec, declared) -> None:
    texts = ["ä", "\u20ac\U0001f600"]
    for name, text in (
        ("a.jsonl", RECORDS),
        ("a.json", f"[{','.join(RECORDS.splitlines())}]"),
        ("a.csv", "text\nä\n\u20ac\U0001f600\n"),
    ):
        assert summary(read(name, mark + text.encode(codec), encoding=declared)) == texts
    assert summary(read("a.txt", mark + "ä\r\nb".encode(codec), encoding=declared)) == ["ä\nb"]


@pytest.mark.parametrize(
    "codec", ["cp1252", "latin-1", "utf-16", "utf-16-be", "utf-32", "utf-8-sig", "cp500", "utf-7"]
)
def test_a_declared_encoding_is_used(codec: str) -> None:
    text = '{"text": "ä\\n"}\n{"text": "ö"}\n'
    assert summary(read("a.jsonl", text.encode(codec), encoding=codec)) == ["ä\n", "ö"]
    assert summary(read("a.txt", "ä".encode(codec), encoding=codec)) == ["ä"]


def test_without_a_mark_utf16_and_utf32_begin_with_the_small_end() -> None:
    for codec in ("utf-16", "utf-32"):
        assert summary(read("a.txt", "ä".encode(f"{codec}-le"), encoding=codec)) == ["ä"]


def test_bytes_that_a_declared_encoding_does_not_know_reject_their_record() -> None:
    content = b'{"text": "a"}\n{"text": "\x81"}\n{"text": "\xe4"}\n'
    first, rejection, last = read("a.jsonl", content, encoding="cp1252")
    assert (first.text, last.text) == ("a", "ä")
    assert (rejection.reason, rejection.raw) == ("invalid_encoding", b'{"text": "\x81"}')
    assert rejection.detail == "line 2: not cp1252: byte 24: character maps to <undefined>"


def test_half_a_pair_of_utf16_rejects_its_record_only() -> None:
    lines = ['{"text": "a"}', '{"text": "\ud83d"}', '{"text": "b"}']
    content = codecs.BOM_UTF16_LE + "\n".join(lines).encode("utf-16-le", "surrogatepass")
    assert summary(read("a.jsonl", content)) == ["a", "invalid_encoding", "b"]
    assert summary(
        read("a.json", codecs.BOM_UTF16_LE + f"[{','.join(lines)}]".encode("utf-16-le", "surrogatepass"))
    ) == [
        "a",
        "invalid_encoding",
        "b",
    ]
    assert summary(read("a.jsonl", content[:-1])) == ["a", "invalid_encoding", "invalid_encoding"]


def test_surrogates_that_a_codec_lets_through_are_no_text() -> None:
    assert rejected("a.txt", b"a+2AA-b", encoding="utf-7").reason == "invalid_encoding"
    assert rejected("a.json", b'{"text": "+2AA-"}', encoding="utf-7").reason == "invalid_encoding"
    assert rejected("a.txt", b"a\\ud800", encoding="unicode_escape").reason == "invalid_encoding"


@pytest.mark.parametrize("codec", TEXTS)
def test_auto_finds_the_encoding_of_text_that_is_not_utf8(codec: str) -> None:
    text = TEXTS[codec]
    assert summary(read("a.txt", text.encode(codec), encoding="auto")) == [text]
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for _ in range(3))
    assert summary(read("a.jsonl", lines.encode(codec), encoding="auto")) == [text] * 3


def test_auto_leaves_utf8_alone_also_beside_another_encoding() -> None:
    text = TEXTS["cp1252"]
    lines = [
        json.dumps({"text": text}, ensure_ascii=False).encode(codec) for codec in ("utf-8", "cp1252", "utf-8")
    ]
    assert summary(read("a.jsonl", b"\n".join(lines), encoding="auto")) == [text] * 3


def test_auto_finds_utf16_without_a_mark() -> None:
    text = "hello world, this is text without a byte order mark"
    assert summary(read("a.txt", text.encode("utf-16-le"), encoding="auto")) == [text]


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff" * 100, b"x" * 3000 + b"\xe9" + b"y" * 3000])
def test_auto_rejects_what_it_is_not_sure_of(content: bytes) -> None:
    assert rejected("a.txt", content, encoding="auto").reason == "unknown_encoding"


def test_auto_rejects_binaries() -> None:
    content = bytes(range(256)) * 10
    assert rejected("a.txt", content, encoding="auto").reason in ("unknown_encoding", "nul_byte")


def test_every_codec_of_python_reads_or_is_refused_in_one_line() -> None:
    import encodings.aliases

    from nima.workspace.errors import SourceError

    refused = []
    for codec in sorted(
        {*encodings.aliases.aliases.values(), "undefined", "idna", "punycode", "mbcs", "charmap"}
    ):
        try:
            assert len(read("a.txt", b"plain text", encoding=codec)) == 1
            read("a.jsonl", b'{"text": "a"}\n\xff\xfe\n', encoding=codec)
        except SourceError as error:
            refused.append(str(error))
    assert all("is unknown; name one that Python knows" in message for message in refused)
