"""Compare a family's methods on SmolLM2: `python -m bench.leaderboard steer|trace [TASK ...]`.

Writes docs/steering-leaderboard.md or docs/tracing-leaderboard.md, and the Pareto plot of the
first task beside it. Finished runs are kept in build/leaderboard, so that it goes on where it
stopped.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import actkit as ak
from actkit.comparison import Leaderboard

DOCS = Path(__file__).parents[1] / "docs"
KEPT = Path(__file__).parents[1] / "build" / "leaderboard"
STEER = """# Steering leaderboard

All methods of the family that learn from examples and need no settings, on SmolLM2-135M-Instruct.
`python -m bench.leaderboard` writes this page.

Each of {seeds} seeds draws other examples to fit on and divides the questions anew. On one half of
them every method chooses its layer and strength: the largest rise of the concept's log-odds at the
next token that keeps the KL divergence from the unedited next token within 1 nat and the
perplexity of what is written within twice the network's own. The other half is what is measured.
Margins are 95 % intervals over seeds. Controls: no edit, 20 random directions as long as the mean
difference, and asking in words.

- **concept**: rise of log P(words of the concept) - log P(words of its opposite), next token.
- **perplexity**: of written text under the unedited network, as a ratio to that of its own text.
- **KL**: of the unedited next-token distribution from the steered one.
- **text loss**, **fact loss**: rise of the loss on prose, decoded token by token, and on capitals.
  Asking in words puts nothing before prose, so its text loss is 0.
- **distinct pairs**, **repetition**: of written tokens.
- **fit**: seconds, **speed**: tokens/s while steering, over the network's own just before. Both
  depend on what else the machine did; `bench/results.md` has the speeds that were measured alone.
"""

TRACE = """# Tracing leaderboard

All localizers that need no settings, on SmolLM2-135M-Instruct. `python -m bench.leaderboard trace`
writes this page.

A seed (number of seeds: {seeds}) divides a task's pairs, six in each half. On one half every method
scores the heads, and, where it can, MLPs and the stream by position; on the other half its
strongest heads must answer alone. With several seeds margins are 95 % intervals. The control has
random scores.

- **agreement**: Pearson's correlation with exact activation patching of the same pairs, of sizes
  where a method's scores have no sign. A method of another question (what ablation costs, what a
  head writes towards the answer) need not agree.
- **top heads shared**: of exact patching's ten strongest heads, whatever their sign.
- **faithfulness**: share of the gap between clean and corrupt prompts that is left when all heads
  but the strongest 2, 5, 10, 20 and 40 % hold what they have on the corrupt prompts; the mean.
- **AUC**: area under the ROC curve of the heads' scores on five networks whose circuits are known.
- **time**: seconds for all 270 heads; it depends on what else the machine did.
"""

PAGES = {"steer": ("steering", STEER, "sentiment", "concept and perplexity", 3),
         "trace": ("tracing", TRACE, "ioi", "agreement and time", 1)}  # fmt: skip
"""For each family its page's name and head, its first task, the plot's axes, and seeds."""


def main(family: str, tasks: Sequence[str]) -> None:
    """Run the comparison and write the page."""
    KEPT.mkdir(parents=True, exist_ok=True)
    model = ak.open("smollm2")
    name, head, first, front, seeds = PAGES[family]
    boards = {
        task: ak.compare(family, model, task=task, seeds=seeds, log=KEPT / f"{task}.jsonl")
        for task in tasks or [first]
    }
    parts = [head.format(seeds=seeds)]
    for task, board in boards.items():
        parts.append(f"## {task}\n\n{board.table()}\n\n\\* on the Pareto front of {front}")
    (DOCS / f"{name}-leaderboard.md").write_text("\n\n".join(parts) + "\n")
    picture(next(iter(boards.values())), DOCS / f"{name}.png")


def picture(board: Leaderboard, path: Path) -> None:
    """Write the Pareto plot as a PNG, drawn by Chromium."""
    from playwright.sync_api import sync_playwright

    page = KEPT / "plot.html"
    board.plot(page)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 900, "height": 560})
        tab.goto(page.as_uri())
        tab.wait_for_selector(".main-svg")
        tab.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "steer", sys.argv[2:])
