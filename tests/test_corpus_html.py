import time

import pytest
from held_files import read, rejected

from nima.corpus.quality.blocks import verbatim_lines


def markdown(html: str) -> str:
    (record,) = read("a.html", html.encode())
    assert record.markup == "markdown"
    return record.text


def test_headings_paragraphs_and_breaks_are_markdown() -> None:
    html = "<h1>One\n two</h1><p>a  <b>bold</b>\n <a href='x'>link</a>, end.</p><p>b<br>c</p><h3>Sub</h3>d"
    assert markdown(html) == "# One two\n\na bold link, end.\n\nb\nc\n\n### Sub\n\nd"


def test_the_title_comes_on_top_once() -> None:
    assert markdown("<title>T &amp; x</title><p>a") == "# T & x\n\na"
    assert markdown("<title>T</title><h1>T</h1><p>a") == "# T\n\na"
    assert markdown("<title> \n</title><p>a") == "a"


def test_entities_are_decoded() -> None:
    assert markdown("<p>&lt;b&gt; &eacute; &#8211; &#x1F600; &copy;") == "<b> é – \U0001f600 ©"


def test_what_is_no_content_goes() -> None:
    html = (
        "<style>p {}</style><nav>menu</nav><p>a<script>var x = '</p>'</script><!-- c --></p>"
        "<div role=navigation>menu</div><p hidden>no</p><h2>H<a class='headerlink' href='#h'>¶</a></h2>"
        "<form><label>Name</label><input value=v><select><option>o</select><button>Go</button></form>"
        "<svg><text>no</text></svg><template><p>no</p></template><footer>legal</footer>"
    )
    assert markdown(html) == "a\n\n## H\n\nName"


NEWLINE = "\n"
CODE = "\n  def f(x):\n\treturn  x   \n\n\n  # <done> & \x07 \xa0\u200b ``` \n"


@pytest.mark.parametrize("around", ["{}", "<div>{}</div>", "<ul><li>x{}</ul>", "<blockquote>{}</blockquote>"])
@pytest.mark.parametrize("inner", ["{}", "<code>{}</code>", "<code><span class=k>{}</span></code>"])
def test_code_stays_to_the_byte_and_is_known_as_code(around: str, inner: str) -> None:
    escaped = CODE.replace("&", "&amp;").replace("<", "&lt;")
    # A newline that is the first thing in <pre> does not count, as HTML has it.
    text = markdown(f"<p>a</p>{around.format(f'<pre>{NEWLINE}{inner.format(escaped)}</pre>')}<p>b</p>")
    assert f"\n````\n{CODE}````\n" in text
    lines = text.split("\n")
    flags = verbatim_lines(lines, "markdown")
    assert all(flag for line, flag in zip(lines, flags, strict=True) if "return" in line or "done" in line)
    assert not flags[-1]


def test_a_break_in_code_is_a_newline_and_blank_code_is_nothing() -> None:
    assert markdown("<pre>a<br>b</pre><pre> \n </pre><p>c") == "```\na\nb\n```\n\nc"


@pytest.mark.parametrize(
    "html",
    [
        '<pre class="language-sh">{}</pre>',
        '<pre><code class="hljs lang-sh">{}</code></pre>',
        '<div class="highlight-sh notranslate"><div class="highlight"><pre>{}</pre></div></div>',
    ],
)
def test_the_language_of_code_is_kept(html: str) -> None:
    assert markdown(html.format("ls")) == "```sh\nls\n```"


def test_inline_code_stands_in_backticks() -> None:
    assert markdown("<p>Run <code>a\n  b</code> or <kbd>x`y</kbd>.") == "Run `a b` or ``x`y``."


def test_lists_nest_and_count() -> None:
    html = "<ul><li>a<li>b<ol><li>one<p>more</p><li>two</ol><li><p>c</p><p>d</p></ul>"
    assert markdown(html) == "- a\n- b\n  1. one\n\n    more\n\n  2. two\n- c\n\n  d"


def test_definitions_and_quotations_keep_their_parts() -> None:
    assert markdown("<dl><dt>term<dd>what it is</dl>") == "term\n\nwhat it is"
    assert markdown("<blockquote><p>a<br>b</p><blockquote>c</blockquote></blockquote>") == "> a\n> b\n\n> > c"


def test_tables_have_pipes_and_those_for_layout_do_not() -> None:
    html = "<table><caption>C</caption><tr><th>a<th>b|c<tr><td>1<br>2<td><code>x</code><tr><td>3</table>"
    assert markdown(html) == "C\n\n| a | b\\|c |\n| --- | --- |\n| 1 2 | `x` |\n| 3 |  |"
    assert markdown("<table><tr><td>a<td><p>b</p><pre>c</pre></table>") == "a\n\nb\n\n```\nc\n```"
    assert markdown("<table><tr><td><p>only</p><p>one</p></table>") == "only\n\none"


def test_numbers_of_code_lines_in_a_table_go() -> None:
    html = "<table><tr><td class='linenos'><pre>1\n2</pre><td class='code'><pre>a\nb</pre></table>"
    assert markdown(html) == "```\na\nb\n```"


def test_broken_html_is_read_as_browsers_read_it() -> None:
    assert markdown("<p>a<div>b</p></b></div><li>c</ul><p x='>d") == "a\n\nb\n\n- c"
    assert markdown("no tags & all") == "no tags & all"
    assert markdown("") == ""


def test_pages_nest_as_deep_as_they_like() -> None:
    depth = 5000
    assert markdown("<div>" * depth + "a" + "</div>" * depth) == "a"
    assert markdown("<span>" * depth + "a" + "<pre>" + "<i>" * depth + "b") == "a\n\n```\nb\n```"


@pytest.mark.parametrize(
    "html",
    [
        "<div>" * 300_000,
        "<ul><li>" * 200_000,
        "<p " + " ".join(f"a{number}=1" for number in range(50_000)) + ">",
        "<b>" * 30_000 + "<div>" * 30_000,
        "<DIV x=y>" * 300_000,
    ],
)
def test_pages_built_to_take_forever_are_refused_at_once(html: str) -> None:
    started = time.monotonic()
    rejection = rejected("a.html", html.encode())
    assert (rejection.reason, rejection.key) == ("too_deep", "a.html")
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "html",
    [
        "<table><tr><td>a" * 2000 + "<table><tr><td>b<td>c",
        "<ul><li>a" * 5000,
        "<blockquote>a<br>b" * 5000,
        "<table><tr><td>x<td>" + "y<p>" * 50_000,
        "<pre>" * 20_000 + "`" * 20_000,
        "<div class=x><a class=y><span class=z>a" * 5000,
    ],
)
def test_deep_pages_of_all_kinds_are_read_in_time(html: str) -> None:
    started = time.process_time()
    assert len(markdown(html)) < 3_000_000
    assert time.process_time() - started < 5


def test_the_raw_page_is_kept() -> None:
    (record,) = read("a.html", b"<p>a</p>\r\n")
    assert record.raw == "<p>a</p>\r\n"
