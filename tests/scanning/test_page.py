import html
import json
import re
from html.parser import HTMLParser

import pytest
from plotly.offline import get_plotlyjs

from actkit.scanning.answer import Page
from actkit.scanning.report import Report
from actkit.scanning.report_page import render
from actkit.show.style import COLOURS, INK, PAPER, QUIET
from tests.scanning import made

ESCAPED = html.escape(made.HOSTILE)


def rendered(report: Report) -> str:
    return render(report.title, report.about, report.pages)


@pytest.fixture(scope="module")
def page() -> str:
    """The page without plotly's own code, which is checked to be inside."""
    whole = rendered(made.report())
    code = get_plotlyjs()
    assert whole.count(code) == 1
    return whole.replace(code, "")


class Elements(HTMLParser):
    """Collects every element with its attributes, and the text outside of scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


def test_the_page_asks_the_network_for_nothing(page: str) -> None:
    for tag, attributes in Elements(page).found:
        assert tag not in ("iframe", "object", "embed", "form", "base"), tag
        for name in ("src", "href", "action", "srcset", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, value)
    assert "http://" not in page and "https://" not in page
    assert "@import" not in page and "url(" not in page


def test_no_button_sends_the_figure_away(page: str) -> None:
    configs = re.findall(r"s\[1\], (\{.*?\})\);", page)
    assert len(configs) == 6
    for config in map(json.loads, configs):
        assert config["modeBarButtons"] == [["zoom2d", "pan2d", "resetScale2d", "toImage"]]


def test_names_from_outside_are_text_and_never_markup(page: str) -> None:
    elements = Elements(page)
    assert not any(a.get("id") == "hostile" for _, a in elements.found)
    for part in (f"How {made.HOSTILE}?", f"It is {made.HOSTILE}.", f"As {made.HOSTILE} says."):
        assert part in elements.text
    assert page.count("<script>") == page.count("</script>") == 7


def test_links_lead_to_sections_and_figures_have_names(page: str) -> None:
    found = Elements(page).found
    ids = [a["id"] for _, a in found if "id" in a]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"])[1:] for tag, a in found if tag == "a"]
    assert targets == ["first", "second", "third"]
    assert {"first", "second", "third", "about"} <= set(ids)
    figures = [a for _, a in found if a.get("class") == "figure"]
    assert [f["id"] for f in figures] == [
        "figure-first-0", "figure-first-1", "figure-first-2", "figure-second-0",
        "figure-third-0", "figure-third-1",
    ]  # fmt: skip
    assert figures[0]["aria-label"] == "Length: L2 norm by layer; mean, low"
    assert ("html", {"lang": "en"}) in found


def test_figures_hold_the_values(page: str) -> None:
    specs = [json.loads(s) for s in re.findall(r"const s = (.*?);Plotly", page)]
    mean, low = specs[0][0]
    assert (mean["name"], mean["x"], mean["y"]) == ("mean", ["0", "1", "2"], [1.5, 20.0, 3.0])
    assert low["y"] == [0.0, None, 0.25]
    assert specs[1][1]["yaxis"]["type"] == "log"
    assert specs[4][0][0]["type"] == "heatmap"
    assert specs[4][0][0]["z"] == [[0.1, 0.6, 0.2], [0.3, None, 1.0]]
    assert specs[4][0][0]["y"] == ["head 0", "head 1"]


def test_axes_have_sane_ticks(page: str) -> None:
    axes = [json.loads(s)[1]["yaxis"] for s in re.findall(r"const s = (.*?);Plotly", page)]
    assert axes[0]["rangemode"] == "tozero"
    assert axes[1]["dtick"] == "D2", "0.25 to 20 is under two decades: 1, 2, 5 and so on"
    assert "type" not in axes[2], "zeros alone have no place on a logarithmic axis"
    assert axes[3]["range"] == [0, 0.01], "noise is not blown up to a landscape"
    wide = made.lines(log=True, series={"a": (0.01, 5000.0, 3.0)})
    one = Report("t", {}, (Page("k", "Q?", (), (wide,), {}),))
    assert '"dtick": 1,' in rendered(one).rpartition("const s = ")[2]


def test_every_number_is_in_the_table_and_a_missing_one_is_a_dash(page: str) -> None:
    table = page.split("<table>")[1].split("</table>")[0]
    rows = [re.findall(r"<t[dh].*?>(.*?)</t[dh]>", r) for r in table.split("<tr>")[1:]]
    assert rows == [
        ["site", "mean", "count", "low"], ["site.0", "1.5", "3", ""], ["site.1", "∞", "", "-"],
    ]  # fmt: skip


def test_provenance_is_on_the_page_flat_and_without_what_is_unknown(page: str) -> None:
    about = page.split('id="about"')[1]
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td></tr>", about) == [
        ("data", f"all 3 tokens of {ESCAPED}"), ("settings.num_tokens", "3"),
    ]  # fmt: skip


def luminance(colour: str) -> float:
    """Return the relative luminance of #rrggbb, as WCAG 2 defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_and_lines_stand_out_from_the_paper() -> None:
    for colour, ratio in [
        (INK, 7.0),
        (QUIET, 4.5),
        (COLOURS[1], 4.5),
        *((c, 2.5) for c in COLOURS),
    ]:
        assert (luminance(PAPER) + 0.05) / (luminance(colour) + 0.05) >= ratio, colour


def test_the_number_of_a_page_stands_large_beside_what_it_is_held_against(page: str) -> None:
    answer = page.split('class="answer"')[1].split("</div></div>")[0]
    assert "<b>2.5</b>" in page and "<span>length</span>" in answer
    assert page.count('class="answer"') == 1
    lines = re.findall(r"<li>(.*?)</li>", page.split('class="answer"')[1])[:2]
    assert lines == [f"{ESCAPED}: -", "that: 1,000,000"]


def test_another_network_is_drawn_dotted_and_quiet() -> None:
    figure = made.lines(beside=("low",))
    drawn = rendered(Report("t", {}, (Page("k", "Q?", (), (figure,), {}),)))
    mean, low = json.loads(drawn.rpartition("const s = ")[2].partition(";Plotly")[0])[0]
    assert (mean["line"]["dash"], low["line"]["dash"]) == ("solid", "dot")
    assert low["line"]["color"] == QUIET != mean["line"]["color"]
