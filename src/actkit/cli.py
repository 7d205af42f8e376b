"""The command line: the same words as the library, with `--json` for machines.

Nothing heavy is imported before a command runs, so help and listings answer at once.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from actkit import __version__
from actkit.core.errors import ActkitError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="One instrument for the activations of neural networks.",
)
methods_app = typer.Typer(help="The methods that actkit has.", invoke_without_command=True)
app.add_typer(methods_app, name="methods")

Source = Annotated[
    str,
    typer.Argument(
        help="smollm2, minilm, efficientnet-lite0, a Hub id, a folder, or a .gguf file."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Data = Annotated[
    str | None,
    typer.Option(help="Your data: .txt, .jsonl, .csv, .parquet, a folder, or hf:NAME."),
]
Tokens = Annotated[int, typer.Option(help="Tokens of text to use at most.")]


def main() -> None:
    """Run the command line; an error of actkit's is one line and exit code 2."""
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
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("report"),
    as_json: AsJson = False,
) -> None:
    """Ask a network the first questions: how big, how sparse, which units, dimensions, sinks."""
    import actkit as ak

    model = ak.open(source)
    samples = None if data is None else ak.data.load(data)
    report = ak.scan(model, samples, num_tokens=tokens)
    report.to_json(out / "report.json")
    page = report.to_html(out / "index.html")
    if as_json:
        typer.echo(report.to_json())
        return
    report.print()
    typer.echo(f"\nwrote {page} and {out / 'report.json'}")


@app.command(name="open")
def open_(
    source: Source,
    pattern: Annotated[
        str | None, typer.Argument(help="Sites, for example 'resid_post.*'.")
    ] = None,
    refused: Annotated[bool, typer.Option(help="Also show what is lacking, and why.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is in a network: its sites, their shapes and where they are."""
    import actkit as ak

    model = ak.open(source)
    sites = model.sites(pattern, refused)
    rows = [
        {"name": s.name, "shape": s.shape, "where": s.where, "refused": s.refused} for s in sites
    ]
    if as_json:
        _print_json({"model": model.name, "note": model.note, "sites": rows})
        return
    typer.echo(f"{model!r}\n{model.note}\n")
    for site in sites:
        shape = "x".join(map(str, site.shape)) if site.shape else "as the run tells"
        typer.echo(f"{site.name:24} {site.refused or f'{shape:28} {site.where}'}")


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
    """Record sites over a corpus into a store on disk; resumes where it stopped."""
    import actkit as ak
    from actkit.report.scan import samples

    model = ak.open(source)
    texts = None if data is None else ak.data.load(data)
    store = model.harvest(samples(model, texts, tokens), site, to, dtype=dtype)
    facts: dict[str, Any] = {"path": str(to), "rows": len(store), "sites": list(store.sites)}
    if as_json:
        _print_json(facts)
        return
    typer.echo(f"{facts['rows']:,} rows of {', '.join(facts['sites'])} in {to}")


@methods_app.callback()
def methods(
    context: typer.Context,
    family: Annotated[str | None, typer.Option(help="One family only.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods."""
    if context.invoked_subcommand is not None:
        return
    from actkit.catalog import methods as entries

    found = entries(family)
    if as_json:
        _print_json([_card(e) for e in found])
        return
    for entry in found:
        typer.echo(f"{entry.family:8} {entry.name:20} {entry.summary}")


@methods_app.command()
def show(name: str, as_json: AsJson = False) -> None:
    """Show one method: what it does, its source and how it is called."""
    from actkit.catalog import entry

    card = _card(entry(name))
    if as_json:
        _print_json(card)
        return
    for key, value in card.items():
        typer.echo(f"{key:10} {value}")


@app.command()
def papers(
    question: Annotated[str, typer.Argument(help="For example: how do I stop a refusal?")],
    num: Annotated[int, typer.Option(help="How many answers.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Go from a question to the papers and methods that answer it, and whether they work here."""
    from actkit.papers import search

    answer = search(question, num)
    if as_json:
        _print_json(answer.to_dict())
        return
    typer.echo(str(answer))


def _card(entry: Any) -> dict[str, Any]:
    return {
        "name": entry.name,
        "family": entry.family,
        "summary": entry.summary,
        "source": entry.source,
        "signature": entry.signature,
    }


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
