"""The page of a report in a real browser: drawn, readable, silent, and asking for nothing."""

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import actkit as ak
from actkit.scanning.report import Report
from tests.core import tiny
from tests.scanning import made

ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
BOXES = """() => [...document.querySelectorAll('.figure')].map(figure => {
  const box = element => {
    const {left, top, width, height} = element.getBoundingClientRect();
    return [left, top, width, height];
  };
  const marks = [...figure.querySelectorAll('.scatterlayer .points path, .heatmaplayer image')];
  return {id: figure.id, svg: box(figure.querySelector('svg.main-svg')), marks: marks.map(box)};
})"""


def missing(reason: str) -> None:
    """Skip, or fail where a browser is required."""
    if os.environ.get("BROWSER_REQUIRED") == "1":
        pytest.fail(f"BROWSER_REQUIRED is set, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium of this machine."""
    path = shutil.which("chromium") or "/usr/bin/chromium"
    if not os.path.exists(path):
        missing("there is no chromium on this machine")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed")
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()


def scanned() -> Report:
    """Return a scan of a tiny language model."""
    texts = [" ".join(f"w{(7 * i + j * j) % 88 + 1}" for j in range(23 + i)) for i in range(20)]
    return ak.scan(tiny.model(), texts, questions=ASKED)


ASKED = [
    "size", "sparsity", "massive", "spectrum", "sinks",
    "first_token", "voids", "dynamics", "neurons", "needed",
]  # fmt: skip
"""The questions whose points are counted."""
REPORTS = {"scan": scanned, "made": made.report}
POINTS = {
    # three layers times the lines of each figure, those of the untrained copy too; 1 is a map
    "scan": [12, 9, 9, 12, 9, 1, 6, 6, 6, 9, 3, 9, 15, 3],
    "made": [5, 4, 3, 180, 1, 0],  # gaps, and zeros on a logarithmic axis, have no point
}


@pytest.fixture(scope="module", params=REPORTS)
def page(request: pytest.FixtureRequest, browser: Any, tmp_path_factory: Any) -> Iterator[Any]:
    """A page opened from disk without a network; errors and requests are gathered on it."""
    folder: Path = tmp_path_factory.mktemp("page")
    path = REPORTS[request.param]().to_html(folder / "index.html")
    context = browser.new_context(viewport={"width": 1100, "height": 800}, offline=True)
    opened = context.new_page()
    opened.kind, opened.errors, opened.requests = request.param, [], []
    opened.on("console", lambda m: opened.errors.append((m.type, m.text)))
    opened.on("pageerror", lambda error: opened.errors.append(("page", str(error))))
    opened.on("request", lambda asked: opened.requests.append(asked.url))
    opened.goto(path.as_uri())
    yield opened
    context.close()


def drawn(page: Any, width: int) -> list[dict[str, Any]]:
    """Return the boxes of all figures and of what is drawn in them, at a width of the window."""
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_timeout(300)  # plotly draws anew a moment after the window has changed
    found: list[dict[str, Any]] = page.evaluate(BOXES)
    return found


@pytest.mark.parametrize("width", [1100, 420])
def test_every_figure_is_drawn_inside_the_window(page: Any, width: int) -> None:
    figures = drawn(page, width)
    assert len(figures) == page.locator("figure").count() >= 5
    for figure in figures:
        left, top, across, down = figure["svg"]
        assert left >= 0 and left + across <= width, figure["id"]
        assert across >= min(380, 0.85 * width) and down >= 300, figure["id"]
        for x, y, w, h in figure["marks"]:
            assert w > 0 and h > 0
            assert left - 5 <= x and x + w <= left + across + 5
            assert top - 5 <= y and y + h <= top + down + 5
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "the page does not scroll sideways"


def test_figures_show_as_many_points_as_there_are_values(page: Any) -> None:
    assert [len(f["marks"]) for f in drawn(page, 1100)] == POINTS[page.kind]


def test_labels_are_large_enough_to_read_and_do_not_overlap(page: Any) -> None:
    drawn(page, 420)
    ticks = page.evaluate(
        """() => [...document.querySelectorAll('.figure')].map(f =>
          ['.xtick text', '.ytick text'].map(kind => [...f.querySelectorAll(kind)].map(t => {
            const {left, right, top, bottom} = t.getBoundingClientRect();
            return {left, right, top, bottom, size: parseFloat(getComputedStyle(t).fontSize)};
          })))"""
    )
    for across, up in ticks:
        assert len(across) >= 2 and len(up) >= 2
        assert all(t["size"] >= 11 for t in (*across, *up))
        for one, other in pairwise(across):
            assert one["right"] <= other["left"] + 1
        for one, other in pairwise(up):
            assert one["top"] >= other["bottom"] - 1 or other["top"] >= one["bottom"] - 1


def test_links_jump_to_their_question_below_the_bar(page: Any) -> None:
    drawn(page, 1100)
    for link in page.locator("nav a").all():
        link.click()
        target = link.get_attribute("href")
        assert page.url.endswith(target)
        page.wait_for_timeout(50)
        top = page.locator(f"{target} h2").bounding_box()["y"]
        bar = page.locator("nav").bounding_box()
        end = page.evaluate("innerHeight + scrollY >= document.body.scrollHeight - 2")
        assert top >= bar["y"] + bar["height"], "the heading is not hidden under the bar"
        assert top <= 200 or end


def test_a_figure_answers_the_mouse(page: Any) -> None:
    figure = page.locator(".figure").first
    figure.evaluate("figure => figure.scrollIntoView({block: 'center'})")
    box = figure.bounding_box()
    for step in range(5):  # as a hand does, over half a second
        page.mouse.move(box["x"] + box["width"] / 2 + 3 * step, box["y"] + box["height"] / 2)
        page.wait_for_timeout(100)
    label = figure.locator(".hoverlayer .legend")
    label.wait_for(timeout=3000)
    assert "mean" in label.text_content()


def test_buttons_keep_the_figure_here(page: Any) -> None:
    names = (
        page.locator(".figure")
        .first.locator(".modebar-btn")
        .evaluate_all("buttons => buttons.map(b => b.getAttribute('data-title'))")
    )
    assert names == ["Zoom", "Pan", "Reset axes", "Download plot as a PNG"]


def test_numbers_open_in_a_table(page: Any) -> None:
    table = page.locator("details").first
    table.locator("summary").click()
    assert table.locator("tr").nth(1).is_visible()


def test_hostile_names_stay_text(page: Any) -> None:
    assert page.locator("#hostile").count() == 0


def test_nothing_went_wrong_and_nothing_was_asked_for(page: Any) -> None:
    page.wait_for_timeout(200)
    assert page.errors == []
    assert [url for url in page.requests if not url.startswith("data:")] == [
        page.url.partition("#")[0]
    ]


def test_a_missing_browser_fails_where_one_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROWSER_REQUIRED", "1")
    with pytest.raises(pytest.fail.Exception, match="BROWSER_REQUIRED is set, but gone"):
        missing("gone")
    monkeypatch.delenv("BROWSER_REQUIRED")
    with pytest.raises(pytest.skip.Exception, match="gone"):
        missing("gone")
