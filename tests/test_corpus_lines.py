import pytest
from hypothesis import given
from hypothesis import strategies as st

from nima.corpus.formats.lines import Line, lines_of


@given(st.binary(max_size=60).map(lambda data: data.replace(b"\x00", b"\n")), st.data())
def test_lines_do_not_depend_on_how_bytes_come_in_chunks(data: bytes, choices: st.DataObject) -> None:
    cuts = sorted(choices.draw(st.lists(st.integers(0, len(data)), max_size=5)))
    chunks = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    max_bytes = choices.draw(st.integers(1, 70))
    expected = data.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    found = list(lines_of(chunks, max_bytes, first_line=3, start_bytes=7, counted=b"a"))
    assert [line.content for line in found] == [line[:max_bytes] for line in expected]
    assert [line.num_bytes for line in found] == [len(line) for line in expected]
    assert [line.num_counted for line in found] == [line.count(b"a") for line in expected]
    assert [line.number for line in found] == list(range(3, 3 + len(expected)))
    for line in found:
        assert data[line.start_bytes - 7 :].startswith(line.content)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_no_more_than_the_limit_is_kept_of_a_line(size: int) -> None:
    chunks = (b"x" * size for _ in range(5000 // size))
    (line,) = lines_of(chunks, 100)
    assert line == Line(0, 0, b"x" * 100, 5000 // size * size, 0)
