"""`actkit trace`: score the parts of a network by how much they matter for a task."""

import inspect
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from actkit.cli._output import AsJson, Source, print_table
from actkit.core.errors import InputError

PAIRS = 4
"""Of a bundled task, where not told how many."""


def trace(
    source: Source,
    task: Annotated[
        str | None,
        typer.Argument(
            help="A bundled task: ioi, capitals, greater_than, arithmetic, colored_objects, "
            "gendered_pronouns, cause_effect, induction, symbolic_paths."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="As `actkit methods --family trace` lists it.")
    ] = "patch",
    parts: Annotated[
        str | None,
        typer.Option(
            help="heads, resid, attn, mlp, attns, mlps or neurons; else the method's own."
        ),
    ] = None,
    num: Annotated[
        int | None, typer.Option(min=1, help="Pairs of a bundled task at most; 4 if not given.")
    ] = None,
    clean: Annotated[str | None, typer.Option(help="Your own prompt, instead of a task.")] = None,
    corrupt: Annotated[
        str | None, typer.Option(help="The same in as many tokens, with another answer.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help='The next word of --clean, with its space: " Paris".')
    ] = None,
    wrong: Annotated[
        str | None, typer.Option(help="The word to compare with; without it log-probability.")
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many parts to print.")] = 10,
    html: Annotated[Path | None, typer.Option(help="Write a page with the picture.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score heads, layers or edges by how much they matter for a task."""
    import actkit as ak

    if html is not None and not html.parent.is_dir():
        raise InputError(f"--html needs a file in a folder that exists, got {html}")
    localizer = _localizer(method, parts)
    chosen = _task(task, num, {"clean": clean, "corrupt": corrupt, "answer": answer}, wrong)
    model = ak.open(source)
    with warnings.catch_warnings():  # the report says it, too
        warnings.simplefilter("ignore", ak.trace.TaskWarning)
        scores = localizer(model, chosen)
    if html is not None:
        scores.to_html(html)
    if as_json:
        typer.echo(scores.to_json())
        return
    typer.echo(f"{scores.report}\n{scores.method}, {scores.parts}, {scores.seconds:.1f} s\n")
    rows = [(name, f"{value:+.4f}") for name, value in scores.top(top)]
    print_table([("part", scores.unit), *rows])
    if html is not None:
        typer.echo(f"\nwrote {html}")


def _localizer(method: str, parts: str | None) -> Any:
    """Return a method that scores parts, with the parts asked for."""
    import actkit as ak
    from actkit.catalog import entry

    if entry(method).family != "trace":
        raise InputError(f"tracing needs a method of the family trace, got {method!r}")
    made: Any = ak.get(method)
    if not (isinstance(made, type) and issubclass(made, ak.trace.Localizer)):
        raise InputError(f"{method} gives no scores of parts; call it from Python")
    settings = inspect.signature(made).parameters
    needed = [n for n, s in settings.items() if s.default is inspect.Parameter.empty]
    if needed:
        raise InputError(f"{method} needs {', '.join(needed)}; call it from Python")
    if parts is not None and "parts" not in settings:
        raise InputError(f"{method} chooses its parts itself, got --parts {parts}")
    if parts is not None:
        ak.trace.as_parts(parts)
    asked: dict[str, Any] = {} if parts is None else {"parts": parts}
    return made(**asked)


def _task(name: str | None, num: int | None, own: dict[str, str | None], wrong: str | None) -> Any:
    """Return a bundled task, or the pair that was given."""
    import actkit as ak

    given = [*own.values(), wrong]
    if name is not None:
        if any(given):
            raise InputError("give a task, or a pair of your own, not both")
        return ak.trace.tasks.as_task(name)[: num or PAIRS]
    if num is not None:
        raise InputError(f"--num is of a bundled task, got {num} with a pair of your own")
    if not all(own.values()):
        raise InputError("tracing needs a task, or all of --clean, --corrupt and --answer")
    clean, corrupt, answer = ([text] for text in own.values() if text)
    if wrong is None:
        return ak.trace.Task(clean, corrupt, answer, metric="log probability", name="your pair")
    return ak.trace.Task(clean, corrupt, answer, [wrong], name="your pair")
