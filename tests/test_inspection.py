import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from inspected_project import HOSTILE, TEXTS, documents, write_project
from rich.console import Console

from nima.dataset import splits
from nima.inspection import documents as module
from nima.inspection import terminal
from nima.inspection.characters import visible, visible_bytes
from nima.inspection.documents import Choice, DocumentView, TokenizedData, nearest_id
from nima.inspection.page import page, write_page
from nima.inspection.rejections import rejections
from nima.workspace.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspected")
    write_project(folder)
    return folder


@pytest.fixture
def data(root: Path, monkeypatch: pytest.MonkeyPatch) -> TokenizedData:
    monkeypatch.chdir(root)
    return TokenizedData()


def shown(document: DocumentView) -> str:
    """The text without bytes and codes."""
    return "".join(
        "".join(part.text for part in token.parts if not part.coded) + token.line_ends
        for token in document.tokens
        if not token.special
    )


# --------------------------------------------------------------------------------------- what a character is


@given(st.text(max_size=40))
@hypothesis_settings(max_examples=200, deadline=None)
def test_nothing_that_is_shown_moves_a_cursor_or_turns_text_round(text: str) -> None:
    parts = visible(text)
    for part in parts:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", part.text)
    assert all(one.coded != other.coded for one, other in pairwise(parts))


@given(st.binary(max_size=20))
@hypothesis_settings(max_examples=200, deadline=None)
def test_bytes_come_back_from_what_is_shown(content: bytes) -> None:
    written = b""
    for part in visible_bytes(content):
        if not part.coded:
            written += part.text.encode()
            continue
        for code in part.text.split():
            is_char = code.startswith("U+")
            written += chr(int(code[2:], 16)).encode() if is_char else bytes.fromhex(code)
    assert written == content


def test_half_characters_and_controls_are_codes() -> None:
    rocket = "🚀".encode()
    assert visible_bytes(b"a" + rocket[:2]) == [("a", False), ("F0 9F", True)]
    assert visible_bytes(rocket[2:] + b"b") == [("9A 80", True), ("b", False)]
    assert visible("\x1b[31m\u202e") == [("U+001B", True), ("[31m", False), ("U+202E", True)]
    assert visible("a\u00a0\n\tb") == [("a\u00a0\n\tb", False)]


def test_white_space_is_shown_on_request() -> None:
    assert visible("a b\n\tc\u00a0\r", whitespace=True) == [("a·b⏎\n→\tc⍽␍", False)]


# ----------------------------------------------------------------------------------- a document's view


def test_a_view_has_the_document_token_by_token(data: TokenizedData) -> None:
    for index, document in enumerate(documents()):
        [view] = data.views(Choice(id=document.id), whitespace=False)
        assert [token.id for token in view.tokens] == data.tokens.document(index).tolist()
        assert (view.id, view.source, view.weight) == (document.id, document.source, document.weight)
        assert view.num_bytes == data.tokens.text_bytes[index]
        assert view.num_trained_tokens == sum(token.trained for token in view.tokens)
        assert view.num_tokens == len(view.tokens)
        assert view.num_hidden_tokens == 0
        assert view.tokens[-1].special
        assert [part.text for part in view.tokens[-1].parts] == ["<|endoftext|>"]
    assert [data.views(Choice(number=n), whitespace=False)[0].split for n in range(4)] == [
        *("train", "validation", "none", "train")
    ]


def test_plain_text_is_shown_as_it_is(data: TokenizedData) -> None:
    [view] = data.views(Choice(number=0), whitespace=False)
    assert shown(view) == TEXTS["note.md"]
    assert all(token.line_ends.strip("\n") == "" for token in view.tokens)
    assert "".join(token.line_ends for token in view.tokens).count("\n") == 3


def test_in_a_conversation_the_answer_is_trained(data: TokenizedData) -> None:
    [view] = data.views(Choice(source="chats"), whitespace=False)
    answer = [token for token in view.tokens if token.trained and not token.special]
    assert "".join(token.parts[0].text + token.line_ends for token in answer) == "DNS.\nNothing else."
    special = [(token.parts[0].text, token.trained) for token in view.tokens if token.special]
    assert special == [
        *(("<|im_start|>", False), ("<|im_end|>", False)) * 2,
        *(("<|im_start|>", False), ("<|im_end|>", True), ("<|endoftext|>", True)),
    ]


def test_a_long_document_is_shown_from_its_beginning(
    data: TokenizedData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHOWN_TOKENS", 5)
    [view] = data.views(Choice(number=0), whitespace=False)
    assert len(view.tokens) == 5
    assert view.num_hidden_tokens == view.num_tokens - 5 > 0


# ------------------------------------------------------------------------------------------- which documents


def test_documents_are_numbered_inside_their_source_and_split(data: TokenizedData) -> None:
    assert data.chosen(Choice()) == [0]
    assert data.chosen(Choice(number=1, count=9)) == [1, 2, 3]
    assert data.chosen(Choice(source="guides", number=1, count=2)) == [1, 2]
    assert data.chosen(Choice(split="train", count=5)) == [0, 3]
    assert data.chosen(Choice(split="none")) == [2]
    assert data.chosen(Choice(source="chats", split="train")) == [3]


def test_a_seed_draws_the_same_documents_each_time(data: TokenizedData) -> None:
    draws = [tuple(data.chosen(Choice(seed=seed, count=2))) for seed in range(8)]
    assert draws == [tuple(data.chosen(Choice(seed=seed, count=2))) for seed in range(8)]
    assert len(set(draws)) > 1
    assert all(len(set(draw)) == 2 for draw in draws)
    assert sorted(data.chosen(Choice(seed=1, count=99))) == [0, 1, 2, 3]
    assert data.chosen(Choice(seed=1, source="chats")) == [3]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(source="guide"), r"^--source guide: no document has it; did you mean 'guides'\?$"),
        (
            Choice(split="validatoin"),
            r"^--split validatoin: no document has it; did you mean 'validation'\?$",
        ),
        (Choice(split="test"), r"^--split test: no document has it; known: none, train, validation$"),
        (Choice(source="chats", split="validation"), r"^no document is of source chats in split validation$"),
        (Choice(number=4), r"^--number 4: there are 4 documents, numbered from 0$"),
        (Choice(source="chats", number=1), r"^--number 1: there are 1 documents, numbered from 0$"),
        (Choice(number=1, seed=1), r"^--id, --number and --random: expected one of them$"),
    ],
)
def test_a_choice_that_is_not_there_is_named_with_what_is(
    data: TokenizedData, choice: Choice, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        data.chosen(choice)


def test_an_unknown_id_is_named_with_the_nearest(data: TokenizedData) -> None:
    for document in documents():
        wrong = f"{document.id[:-1]}!"
        with pytest.raises(
            UserError, match=rf"--id {wrong}: no such document; the nearest is {document.id}$"
        ):
            data.chosen(Choice(id=wrong))
    with pytest.raises(UserError, match="no such document"):
        data.chosen(Choice(source="chats", id=documents()[0].id))
    many = [f"{number:016x}" for number in range(1000)]
    assert nearest_id("00000000000001ff0", many, np.arange(1000)) == f"{0x1FF:016x}"
    assert nearest_id("z", many, np.arange(1000)) == many[-1]


@pytest.mark.parametrize("missing", ["data/tokens", "data/splits", "models/tokenizer"])
def test_missing_data_is_named_with_the_way_to_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / missing)
    monkeypatch.chdir(tmp_path / "copy")
    with pytest.raises(UserError, match=rf"^{missing}\S*: not found; run `dvc repro split` first"):
        TokenizedData()


def test_splits_and_a_tokenizer_of_other_data_are_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    data = TokenizedData()
    data.tokenizer.vocab_size = 200
    with pytest.raises(UserError, match=r"data/tokens: has token \d+, but models/tokenizer only 200 tokens"):
        data.views(Choice(), whitespace=False)
    nothing = np.zeros(0, dtype=np.int64)
    splits.save(Path("data/splits"), {"train": np.array([99]), "validation": nothing, "test": nothing})
    with pytest.raises(UserError, match=r"data/splits: names document 99 of 4; run `dvc repro split`"):
        TokenizedData()


# ------------------------------------------------------------------------------------------------ terminal


def printed(data: TokenizedData, choice: Choice, *, colour: bool, ids: bool = False) -> str:
    out = Console(
        record=True,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
        no_color=not colour,
        highlight=False,
        soft_wrap=True,
        file=open("/dev/null", "w", encoding="utf-8"),  # noqa: SIM115, PTH123
    )
    terminal.show_documents(out, data.views(choice, whitespace=False), ids=ids)
    return out.export_text(styles=colour)


def test_colours_say_what_is_trained(data: TokenizedData) -> None:
    text = printed(data, Choice(source="chats"), colour=True)
    styles = re.findall("\x1b\\[([0-9;]*)m([^\x1b]+)", text)
    papers = {content: style for style, content in styles}
    trained, untrained = ({f"48;2;{paper}" for paper in pair} for pair in (PAPERS[:2], PAPERS[2:]))
    assert any(paper in papers["D"] for paper in trained)
    assert any(paper in papers["?"] for paper in untrained)
    assert any(paper in papers["<|endoftext|>"] for paper in trained)
    neighbours = [style for style, content in styles if len(content) == 1 and content in "DNS"]
    assert neighbours[0] != neighbours[1]


PAPERS = ("168;218;181", "124;196;143", "217;220;225", "188;193;201")


def test_without_colour_signs_say_it(data: TokenizedData) -> None:
    text = printed(data, Choice(source="chats"), colour=False)
    assert "\x1b" not in text
    assert "⟪‹<|im_start|>›│" in text
    assert "⟫D│N│S│.│\nN" in text.replace("│\n│", "│\n")
    assert text.rstrip().endswith("⟪\n⟫‹<|endoftext|>›")


def test_ids_stand_behind_tokens_and_before_line_ends(data: TokenizedData) -> None:
    text = printed(data, Choice(number=0), colour=False, ids=True)
    last = data.tokens.document(0).tolist()
    assert f" {last[-2]}\n│‹<|endoftext|>› {last[-1]}" in text


@pytest.mark.parametrize("colour", [True, False])
def test_a_hostile_document_sends_the_terminal_nothing(data: TokenizedData, colour: bool) -> None:
    text = printed(data, Choice(number=2), colour=colour)
    assert "\x1b[31mred" not in text
    assert not set(text) & {"\x07", "\u202e"}
    plain = re.sub("\x1b\\[[0-9;]*m", "", text)
    assert "U+001B" in plain
    assert "[bold]" in plain.replace("│", "")


# ------------------------------------------------------------------------------------ rejected records


def test_rejected_records_are_counted_and_chosen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    found = rejections(None, None, 2)
    assert list(found.counts.items()) == [("too_short", 2), ("too_long", 1)]
    assert [record.key for record in found.records] == ["short.md", "long.md"]
    assert [record.key for record in rejections("chats", None, 9).records] == ["bad.json#3"]
    assert rejections("chats", None, 9).counts == {"too_short": 1}
    found = rejections("guides", "too_long", 9)
    assert [record.key for record in found.records] == ["long.md"]
    for source, reason, message in (
        ("guide", None, r"^--source guide: no rejected record has it; did you mean 'guides'\?$"),
        (None, "too_shrot", r"^--reason too_shrot: no rejected record has it; did you mean 'too_short'\?$"),
        ("chats", "too_long", r"^--reason too_long: no rejected record has it"),
    ):
        with pytest.raises(UserError, match=message):
            rejections(source, reason, 9)


def test_without_rejected_records_the_way_to_them_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^data/rejected: not found; run `dvc repro prepare` first"):
        rejections(None, None, 1)


# ------------------------------------------------------------------------------------------------- the page


def test_a_page_opens_in_a_browser_and_shows_every_document_as_it_is(
    data: TokenizedData, tmp_path: Path
) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None)
    if browser is None:
        pytest.skip("no Chromium on this machine: install it to test the page")
    write_page(tmp_path / "page.html", data.views(Choice(count=4), whitespace=False), ids=False)

    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    requests: list[str] = []
    papers, texts = {}, []
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        for scheme in ("light", "dark"):
            tab = chromium.new_context(
                color_scheme=scheme, viewport={"width": 1000, "height": 800}
            ).new_page()
            tab.on("pageerror", lambda error: errors.append(str(error)))
            tab.on("dialog", lambda dialog: errors.append(dialog.message))
            tab.on("console", lambda message: errors.append(message.text))
            tab.on("request", lambda request: requests.append(request.url))
            tab.goto((tmp_path / "page.html").as_uri())
            texts = tab.eval_on_selector_all(".text", "all => all.map(one => one.textContent)")
            colour = "one => getComputedStyle(one).backgroundColor"
            papers[scheme] = [
                tab.eval_on_selector(name, colour) for name in ("body", ".t", ".t.b", ".u", ".u.b")
            ]
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
        chromium.close()
    assert errors == []
    assert all(url.startswith(("file:", "data:")) for url in requests)
    assert len(set(papers["light"] + papers["dark"])) == 10, (
        "each shade differs from the others, by night too"
    )
    assert texts[0] == TEXTS["note.md"] + "<|endoftext|>"
    assert texts[3].startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
    assert "<script>alert('x')</script> <b>&amp;" in texts[2]
    assert "{{ 7 * 7 }}" in texts[2]


def test_nothing_of_a_document_is_markup(data: TokenizedData) -> None:
    text = page(data.views(Choice(count=4), whitespace=False), ids=True)
    assert "<script" not in text
    assert HOSTILE[:8] not in text
    assert "&lt;" in text
    assert not re.search(r"(src|href)=\"(?!data:)", text)


def test_a_page_that_cannot_be_written_is_named(data: TokenizedData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--html .*/none/page\.html: cannot be written: No such file"):
        write_page(tmp_path / "none" / "page.html", [], ids=False)
