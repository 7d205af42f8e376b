"""The command line: the same words as the library, with `--json` for machines.

Nothing heavy is imported before a command runs, so help and listings answer at once.
"""

import sys
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from actkit import __version__
from actkit.cli._output import AsJson, Source, make_folder, open_data, print_json, print_table
from actkit.cli.steer import steer_app
from actkit.cli.trace import trace
from actkit.core.errors import ActkitError, InputError

if TYPE_CHECKING:
    from actkit.catalog import Entry

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One instrument for the activations of neural networks.",
)
methods_app = typer.Typer(help="List the methods, or show one.", invoke_without_command=True)
app.add_typer(methods_app, name="methods")
app.add_typer(steer_app, name="steer")
app.command()(trace)

Data = Annotated[
    str | None,
    typer.Option(
        help="Your data: .txt, .jsonl, .csv, .parquet, images, a folder of them, or hf:NAME. "
        "Without it, bundled prose or photos."
    ),
]
Engine = Annotated[str, typer.Option(help="local, or ray: on the workers of a Ray cluster.")]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens of text to read at most.")]


def main() -> None:
    """Run the command line; an error of actkit's is one line and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a log file may not know bars and accents
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        app()
    except ActkitError as error:
        sys.stderr.write(f"actkit: {' '.join(str(error).split())}\n")
        sys.exit(2)


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Record, understand, trace, steer and economise a network's activations."""
    if version:
        typer.echo(__version__)
        raise typer.Exit


@app.command()
def scan(
    source: Source,
    data: Data = None,
    tokens: Tokens = 4096,
    against: Annotated[
        str | None, typer.Option(help="Another network or checkpoint to show beside it.")
    ] = None,
    control: Annotated[bool, typer.Option(help="Also scan an untrained copy.")] = True,
    question: Annotated[
        list[str] | None, typer.Option("--question", "-q", help="Ask only this; repeatable.")
    ] = None,
    engine: Engine = "local",
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    as_json: AsJson = False,
) -> None:
    """Ask a network the first questions: how big, how sparse, which units, dimensions, sinks."""
    import actkit as ak
    from actkit.scanning.scan import check_scan

    check_scan(question, engine)
    make_folder(out)
    samples = open_data(data)
    model = ak.open(source)
    other = None if against is None else ak.open(against)
    report = ak.scan(
        model, samples, tokens, against=other, control=control, questions=question, engine=engine
    )
    page = report.to_html(out / "index.html")
    text = report.to_json(out / "report.json")
    if as_json:
        typer.echo(text)
        return
    report.print()
    typer.echo(f"\nwrote {page} and {out / 'report.json'}")


@app.command(name="open")
def open_(
    source: Source,
    pattern: Annotated[
        str | None, typer.Argument(help="Sites, for example 'resid_post.*'.")
    ] = None,
    refused: Annotated[
        bool, typer.Option("--refused", help="Also show what is lacking, and why.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in a network: its sites, their shapes and where they are."""
    import actkit as ak

    model = ak.open(source)
    sites = model.sites(pattern, refused)
    if as_json:
        rows = [
            {"name": s.name, "shape": s.shape, "where": s.where, "refused": s.refused}
            for s in sites
        ]
        print_json({"model": model.name, "note": model.note, "sites": rows})
        return
    typer.echo(f"{model!r}\n{model.note}")
    table = [
        (s.name, ", ".join(map(str, s.shape or ())) or "-", s.refused or s.where) for s in sites
    ]
    print_table(table)


@app.command()
def record(
    source: Source,
    site: Annotated[list[str], typer.Option("--site", "-s", help="Site or pattern; repeatable.")],
    to: Annotated[Path, typer.Option(help="Folder of the store.")],
    data: Data = None,
    tokens: Tokens = 4096,
    dtype: Annotated[str, typer.Option(help="bfloat16, float32, ...")] = "bfloat16",
    as_json: AsJson = False,
) -> None:
    """Record sites over a corpus into a store on disk; goes on where it stopped."""
    import actkit as ak
    from actkit.scanning.feed import Feed
    from actkit.store import check_dtype

    check_dtype(dtype)
    make_folder(to.parent, "--to")
    samples = open_data(data)
    model = ak.open(source)
    feed = Feed(model, samples, tokens)
    store = model.harvest(feed, site, to, dtype=dtype)
    facts = {"path": str(to), "rows": len(store), "sites": list(store.sites), "data": str(feed)}
    if as_json:
        print_json(facts)
        return
    typer.echo(f"{len(store):,} rows of {', '.join(store.sites)} in {to}\n{feed}")


@app.command()
def compare(
    family: Annotated[str, typer.Argument(help="read, steer, ...")],
    source: Annotated[
        str | None, typer.Argument(help="The network; none where the protocol plants its data.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="One of the family's tasks.")] = None,
    method: Annotated[list[str] | None, typer.Option("--method", "-m", help="Repeatable.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many.")] = 3,
    engine: Engine = "local",
    out: Annotated[
        Path | None, typer.Option(help="Folder for table and plot; goes on where it stopped.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a family's methods fairly: one task, one budget, the same metrics for all."""
    import actkit as ak
    from actkit.comparison import planned

    planned(family, source is not None, task, method, engine)
    if out is not None:
        make_folder(out)
    model = None if source is None else ak.open(source)
    log = None if out is None else out / "runs.jsonl"
    board = ak.compare(
        family, model, task=task, methods=method, seeds=seeds, log=log, engine=engine
    )
    if out is not None:
        board.plot(out / "leaderboard.html")
        board.to_json(out / "leaderboard.json")
    if as_json:
        typer.echo(board.to_json())
    else:
        board.print()
    if all(run.error for run in board.runs):
        raise ActkitError(f"no method could be measured: {board.runs[0].error}")


@methods_app.callback()
def methods(
    context: typer.Context,
    family: Annotated[str | None, typer.Option(help="One family only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods, or show one."""
    context.obj = as_json
    if context.invoked_subcommand is not None:
        if family is not None:
            raise InputError(f"--family chooses what is listed, got {family!r} before `show`")
        return
    from actkit.catalog import methods as entries

    found = entries(family)
    if as_json:
        print_json([_card(e) for e in found])
        return
    print_table([(e.family, e.name, e.summary) for e in found])


@methods_app.command()
def show(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="As `actkit methods` lists it.")],
    as_json: AsJson = False,
) -> None:
    """Show one method: what it does, its source and how it is called."""
    from actkit.catalog import entry

    card = _card(entry(name))
    if as_json or context.obj:
        print_json(card)
        return
    print_table([(key, value) for key, value in card.items()])


@app.command()
def papers(
    question: Annotated[str, typer.Argument(help="For example: how do I stop a refusal?")],
    num: Annotated[int, typer.Option(min=1, help="How many answers at most.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Go from a question to the papers and methods that answer it, and whether they work here."""
    from actkit.papers import search

    answer = search(question, num)
    if as_json:
        print_json(answer.to_dict())
        return
    typer.echo(str(answer))


def _card(entry: "Entry") -> dict[str, Any]:
    return {
        "name": entry.name,
        "family": entry.family,
        "summary": entry.summary,
        "source": entry.source,
        "call": entry.signature,
    }
