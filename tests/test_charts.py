"""Charts as text: scales, marks, and that any text stays text."""

import re
from xml.etree import ElementTree

import pytest

from nima.reports.charts import Axis, Line, axis, bar_chart, line_chart


def marks(scale: Axis) -> list[str]:
    return [text for _, text in scale.marks()]


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0, 520], {}, ["0", "100", "200", "300", "400", "500"]),
        ([0, 3], {}, ["0", "1", "2", "3"]),
        ([0.9, 1.5], {}, ["0.9", "1", "1.1", "1.2", "1.3", "1.4", "1.5"]),
        ([0.003, 0.03], {"is_log": True}, ["0.005", "0.01", "0.02"]),
        ([2.0, 4.0], {"is_log": True}, ["2", "2.5", "3", "3.5", "4"]),
        ([], {"names": ["blocks", "packed"]}, ["blocks", "packed"]),
    ],
)
def test_marks_are_round_and_few(values: list[float], options: dict, expected: list[str]) -> None:
    assert marks(axis(values, 0, 100, **options)) == expected


def test_a_logarithmic_scale_puts_equal_ratios_at_equal_distances() -> None:
    scale = axis([0.001, 0.1], 0, 100, is_log=True)
    assert [scale.place(value) for value in (0.001, 0.01, 0.1)] == [0, 50, 100]


def test_a_margin_keeps_points_off_the_frame() -> None:
    assert axis([0, 10], 0, 120, margin=0.1).place(0) == 10
    assert axis([1, 100], 0, 120, is_log=True, margin=0.1).place(100) == 110


def test_equal_values_still_give_an_axis() -> None:
    for value in (0.0, 5.0, -2.0):
        scale = axis([value], 0, 100)
        assert scale.place(value) == 50


def test_text_in_a_chart_is_never_markup() -> None:
    hostile = '<script>"&'
    line = Line(hostile, [(1.0, 2.0), (2.0, 3.0)], notes=[hostile, hostile])
    charts = [
        line_chart(hostile, hostile, hostile, [line], names=[hostile] * 3),
        bar_chart(hostile, hostile, [(hostile, 1.0, 0)]),
    ]
    for chart in charts:
        tree = ElementTree.fromstring(chart)
        assert not tree.findall(".//script")
        assert hostile in {element.text for element in tree.iter()}


def test_a_chart_of_nothing_is_empty() -> None:
    assert line_chart("t", "x", "y", [Line("none", [])]) == ""
    assert bar_chart("t", "x", []) == ""


def test_all_points_lie_inside_the_frame() -> None:
    points = [(float(step), 10 / step) for step in range(1, 21)]
    chart = line_chart("t", "x", "y", [Line("a", points)], is_log_y=True)
    for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart):
        assert 62 <= float(x) <= 548
        assert 34 <= float(y) <= 256
