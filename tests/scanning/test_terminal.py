import math
from io import StringIO

import pytest
from rich.console import Console

from actkit.scanning.report import Report
from actkit.scanning.terminal import BARS, bar_line, show
from tests.scanning import made


def printed(report: Report, width: int) -> str:
    """Return the report as a terminal of this width shows it."""
    stream = StringIO()
    show(report.title, report.about, report.pages, Console(file=stream, width=width))
    return stream.getvalue()


def test_bars_start_at_zero_and_share_one_scale() -> None:
    assert bar_line([0.0, 1.0, 7.0], [0.0, 7.0]) == BARS[0] + BARS[1] + BARS[7]
    assert bar_line([3.5], [7.0]) == BARS[4], "half of 7 steps, rounded"
    assert bar_line([6.0, 7.0], [6.0, 7.0]) == BARS[6] + BARS[7], "not blown up to the full range"
    assert bar_line([-7.0, 0.0], [-7.0, 7.0]) == BARS[0] + BARS[4]


def test_bars_on_a_logarithmic_scale_step_by_factors() -> None:
    values = [10.0**k for k in range(8)]
    assert bar_line(values, values, log=True) == BARS
    assert bar_line([0.0, -1.0, 1.0, 1e7], [0.0, 1.0, 1e7], log=True) == "  " + BARS[0] + BARS[7]


def test_what_has_no_value_has_no_bar() -> None:
    assert bar_line([math.nan, math.inf, 2.0], [math.nan, math.inf, 2.0]) == "  " + BARS[7]
    assert bar_line([math.nan], [math.nan]) == " "
    assert bar_line([0.0, 0.0], [0.0, 0.0]) == BARS[0] * 2


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = printed(made.report(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines), "nothing is cut off"


def test_what_is_printed_is_all_there() -> None:
    text = " ".join(printed(made.report(), 80).split())
    for page in made.report().pages:
        for part in (page.question, page.note, *page.findings):
            assert part in text
        for figure in page.figures:
            assert f"{figure.title} ({figure.y_title}), layer {figure.x[0]} to" in text
    assert f"A report of {made.HOSTILE}" in text
    assert "all 3 tokens of" in text


def test_a_line_says_where_it_is_lowest_and_highest() -> None:
    rows = printed(made.report(), 80).splitlines()
    mean = next(r for r in rows if r.strip().startswith("mean"))
    assert mean.split() == ["mean", f"{BARS[1]}{BARS[7]}{BARS[1]}", "1.5", "@", "0", "20", "@", "1"]
    low = next(r for r in rows if r.strip().startswith("low "))
    assert low.split()[-6:] == ["0", "@", "0", "0.25", "@", "2"]


def test_a_map_is_its_mean_over_rows() -> None:
    rows = printed(made.report(), 80).splitlines()
    mean = [r for r in rows if r.strip().startswith("mean")][-1]
    assert mean.split()[-6:] == ["20%", "@", "0", "60%", "@", "1"]
    assert mean.split()[1] == f"{BARS[2]}{BARS[7]}{BARS[7]}"


def test_more_layers_than_columns_are_thinned_and_said_to_be() -> None:
    text = printed(made.report(), 80)
    assert "layer stage.0 to stage.89, every 3rd" in text
    row = next(r for r in text.splitlines() if r.strip().startswith("zero "))
    assert len([c for c in row if c in BARS]) == 30
    assert row.split()[-7:] == ["0%", "@", "stage.0", "<", "0.01%", "@", "stage.89"]
    wide = printed(made.report(), 200)
    assert "layer stage.0 to stage.89\n" in wide
    row = next(r for r in wide.splitlines() if r.strip().startswith("zero "))
    assert len([c for c in row if c in BARS]) == 90


def test_the_answer_is_printed_with_what_it_is_held_against() -> None:
    text = " ".join(printed(made.report(), 120).split())
    assert f"length: 2.5 ({made.HOSTILE}: -; that: 1,000,000)" in text
