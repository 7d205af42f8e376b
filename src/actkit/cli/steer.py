"""`actkit steer`: fit a method, talk to the steered model, save, show and export what steers."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from actkit.cli._output import AsJson, Source, make_folder, print_json
from actkit.core.errors import InputError

if TYPE_CHECKING:
    import actkit as ak
    from actkit.cli.steering import Steering
    from actkit.model import Model


class _ChatByDefault(TyperGroup):
    """Takes `steer smollm2 ...` for `steer chat smollm2 ...`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["chat", *args]
        return super().parse_args(ctx, args)


steer_app = typer.Typer(
    cls=_ChatByDefault,
    no_args_is_help=True,
    help="Steer a model: `actkit steer SOURCE --task sentiment` fits and talks.",
)

TaskName = Annotated[
    str | None,
    typer.Option(help="A bundled task: sentiment, refusal, formality, weddings, truth."),
]
Positive = Annotated[
    Path | None, typer.Option(help="A file of texts that show the concept, one a line.")
]
Negative = Annotated[Path | None, typer.Option(help="A file of texts that do not.")]
MethodName = Annotated[
    str | None,
    typer.Option("--method", "-m", help="As `actkit methods` lists it; caa if not given."),
]


@steer_app.command()
def chat(
    source: Source,
    task: TaskName = None,
    positive: Positive = None,
    negative: Negative = None,
    load: Annotated[
        Path | None, typer.Option(help="Saved edits, or a .gguf control vector, instead.")
    ] = None,
    method: MethodName = None,
    layer: Annotated[int | None, typer.Option(help="Where to act; tuned if not given.")] = None,
    strength: Annotated[float | None, typer.Option(help="How much; tuned if not given.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Answer this, plain and steered, and leave.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Length of an answer at most.")] = 120,
    save: Annotated[
        Path | None, typer.Option(help="Write the edits, with their measured side effects.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a method, or load edits, and talk to the steered model."""
    import actkit as ak
    from actkit.cli import steering
    from actkit.cli.chat import Chat, talk

    if load is not None:
        _check_alone(task=task, positive=positive, negative=negative, method=method, layer=layer)
        start: Callable[[Model], tuple[Steering, float]] = steering.load(load, strength)
    else:
        made = steering.method_of(method, needs_layers=layer is not None)
        start = partial(steering.fit, made, _task(task, positive, negative), layer, strength)
    if save is not None:
        make_folder(save.parent, "--save")
    model = ak.open(source)
    steers, strength = start(model)
    session = Chat(model, steers, strength, tokens)
    if save is not None:
        said = steers.save(save, strength)
        typer.echo(said, err=as_json)
    if prompt is not None:
        session.comparing = True
        plain, steered = session.answers(prompt)
        facts: dict[str, Any] = {"prompt": prompt, "plain": plain, "steered": steered}
        facts |= {"method": str(session.steering), "strength": session.strength}
        if as_json:
            print_json(facts)
        else:
            typer.echo(f"{session}\n\nplain:\n{plain}\n\nsteered:\n{steered}")
        return
    from rich.console import Console

    talk(session, _lines(), Console(highlight=False))


@steer_app.command()
def tune(
    source: Source,
    task: TaskName = None,
    positive: Positive = None,
    negative: Negative = None,
    method: MethodName = None,
    kl: Annotated[float, typer.Option(help="Largest KL of the next token (nats).")] = 1.0,
    perplexity: Annotated[float, typer.Option(help="Largest perplexity ratio of text.")] = 2.0,
    out: Annotated[Path | None, typer.Option(help="Folder for plot, table and edits.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sweep layers and strengths; show the Pareto front and the chosen point."""
    import actkit as ak
    from actkit.cli.steering import method_of

    budget = ak.steer.Budget(kl=kl, perplexity=perplexity)
    made, make_task = method_of(method), _task(task, positive, negative)
    if out is not None:
        make_folder(out)
    model = ak.open(source)
    found = ak.steer.tune(model, made(), make_task(model), budget=budget)
    if out is not None:
        found.plot(out / "tuning.html")
        found.to_json(out / "tuning.json")
        found.steerer.save(out / "edits.safetensors", model, found.chosen.strength)
    if as_json:
        typer.echo(found.to_json())
        return
    typer.echo(f"{found.table()}\n\n* chosen")
    if found.random:
        mean, top = sum(found.random) / len(found.random), max(found.random)
        typer.echo(
            f"{len(found.random)} random vectors of its length: {mean:+.2f} nats on average, "
            f"{top:+.2f} at most"
        )


@steer_app.command()
def show(
    path: Annotated[Path, typer.Argument(help="A file of saved edits.")],
    as_json: AsJson = False,
) -> None:
    """Say what a file of edits was fitted on, what it does, and what it costs."""
    from actkit.core.edits.files import edit_facts

    facts = edit_facts(path)
    if as_json:
        print_json(facts)
        return
    settings = dict(facts.get("settings") or {})
    effects = settings.pop("side_effects", None)
    typer.echo(f"{path}: {len(facts['edits'])} edit(s), written by actkit {facts['actkit']}")
    typer.echo(f"fitted on    {facts.get('model') or 'nothing said'}")
    if facts.get("weights"):
        typer.echo(f"weights      {facts['weights']}")
    for name, value in settings.items():
        plain = (
            ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        )
        typer.echo(f"{name:<12} {plain}")
    for line in facts["edits"]:
        typer.echo(f"edit         {line}")
    if effects is None:
        typer.echo("side effects not measured: `actkit steer ... --save` measures them")
        return
    typer.echo("side effects, measured on held-out prompts:")
    for name, value in effects.items():
        typer.echo(f"  {name:<18} {value:.4g}")


@steer_app.command()
def export(
    path: Annotated[Path, typer.Argument(help="A file of saved edits.")],
    source: Source,
    to: Annotated[
        Path,
        typer.Option(help="NAME.gguf for llama.cpp; a folder for a PEFT adapter or a baked model."),
    ],
    bake: Annotated[
        bool, typer.Option("--bake", help="Write the whole network with the edits in its weights.")
    ] = False,
    all_tokens: Annotated[
        bool, typer.Option("--all-tokens", help="Let edits that choose tokens act on all.")
    ] = False,
) -> None:
    """Write edits for llama.cpp, for PEFT, or into the network's weights."""
    import actkit as ak
    from actkit.core.edits.files import edit_facts

    if bake and to.suffix == ".gguf":
        raise InputError(f"--bake writes a folder with the whole network, got {to}")
    edit_facts(path)  # a file that is none is refused before the network is opened
    make_folder(to.parent, "--to")
    model = ak.open(source)
    edits = ak.load_edits(path, model)
    if to.suffix == ".gguf":
        ak.steer.save_gguf(to, model, edits, all_tokens)
    else:
        edits = [replace(e, where=ak.Where()) for e in edits] if all_tokens else edits
        if bake:
            module: Any = ak.steer.bake(model, edits).module
            module.save_pretrained(to)
            model.tokenizer.save_pretrained(to)
        else:
            ak.steer.save_peft(to, model, edits)
    typer.echo(f"wrote {to}")


def _task(
    name: str | None, positive: Path | None, negative: Path | None
) -> "Callable[[Model], ak.steer.Task]":
    """Return what makes the task on a network: a bundled one, or one of two files of texts."""
    import actkit as ak

    if name is not None and (positive or negative):
        raise InputError("give --task, or --positive and --negative, not both")
    if name is not None:
        task = ak.steer.as_task(name)
        return lambda model: task
    if positive is None or negative is None:
        raise InputError("steering needs --task, or both --positive and --negative")
    sides = _texts(positive), _texts(negative)
    return lambda model: ak.steer.Task.from_texts(model, *sides, positive.stem)


def _check_alone(**others: Any) -> None:
    """Refuse what says how to fit beside edits that are fitted already."""
    if given := [f"--{name}" for name, value in others.items() if value is not None]:
        raise InputError(f"--load takes edits as they are, got {', '.join(given)} beside it")


def _texts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"texts are read from a file, {path}: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]


def _lines() -> Iterator[str]:
    """Yield what is typed, with history and editing where there is a terminal."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  gives `input` its history
    ask: Callable[[], str] = partial(input, "> ")
    while True:
        try:
            yield ask()
        except (EOFError, KeyboardInterrupt):
            typer.echo()
            return
