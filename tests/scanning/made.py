"""Reports made by hand, with all that is awkward: gaps, zeros, many layers, hostile names."""

import math

from actkit.scanning.answer import Answer, Figure, Page
from actkit.scanning.report import Report

HOSTILE = "</script><b id='hostile'>&\"'"


def lines(**settings: object) -> Figure:
    """Three layers, two series; the second has a gap and a zero."""
    given = {
        "kind": "lines", "title": "Length", "x": ("0", "1", "2"), "x_title": "layer",
        "y_title": "L2 norm", "series": {"mean": (1.5, 20.0, 3.0), "low": (0.0, math.nan, 0.25)},
    } | settings  # fmt: skip
    return Figure(**given)  # type: ignore[arg-type]


def grid() -> Figure:
    """Two heads in three layers, one without a value."""
    series = {"head 0": (0.1, 0.6, 0.2), "head 1": (0.3, math.nan, 1.0)}
    return lines(kind="map", title="Attention", y_title="share", series=series, percent=True)


def report() -> Report:
    """Three pages of six figures."""
    many = tuple(f"stage.{i}" for i in range(90))
    shares = {"zero": tuple(i * 1e-9 for i in range(90)), "none": (0.0,) * 90}
    pages = (
        Page(
            "first", f"How {HOSTILE}?", (f"It is {HOSTILE}.", "A second one."),
            (lines(), lines(log=True), lines(log=True, series={"zeros": (0.0, 0.0, 0.0)})),
            {"site.0": {"mean": 1.5, "count": 3}, "site.1": {"mean": math.inf, "low": math.nan}},
            note=f"As {HOSTILE} says.",
            answer=Answer("length", {"this": 2.5, HOSTILE: math.nan}, {"that": 1e6}),
        ),
        Page("second", "How many?", ("Many.",), (lines(x=many, series=shares, percent=True),), {}),
        Page("third", "Where?", ("Here.",), (grid(), lines(series={HOSTILE: (math.nan,) * 3})), {}),
    )  # fmt: skip
    about = {"data": f"all 3 tokens of {HOSTILE}", "seed": None, "settings": {"num_tokens": 3}}
    return Report(f"A report of {HOSTILE}", about, pages)
