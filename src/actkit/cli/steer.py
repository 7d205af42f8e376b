"""`actkit steer`: fit a method, talk to the steered model, save, show and export what steers."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from actkit.cli._output import AsJson, Source, print_json
from actkit.core.errors import InputError

if TYPE_CHECKING:
    from actkit.cli.chat import Chat
    from actkit.core.model import Model


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
MethodName = Annotated[str, typer.Option("--method", "-m", help="As `actkit methods` lists it.")]


@steer_app.command()
def chat(
    source: Source,
    task: TaskName = None,
    positive: Positive = None,
    negative: Negative = None,
    load: Annotated[
        Path | None, typer.Option(help="Saved edits, or a .gguf control vector, instead.")
    ] = None,
    method: MethodName = "caa",
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

    model = ak.open(source)
    session = (
        _loaded(model, load, strength)
        if load is not None
        else _fitted(model, method, _task(model, task, positive, negative), layer, strength)
    )
    session.max_new_tokens = tokens
    if save is not None:
        said = session.save(save, session.strength)
        typer.echo(said, err=as_json)
    if prompt is not None:
        session.comparing = True
        plain, steered = session.answers(prompt)
        facts: dict[str, Any] = {"prompt": prompt, "plain": plain, "steered": steered}
        facts |= {"method": session.title, "strength": session.strength}
        if as_json:
            print_json(facts)
        else:
            typer.echo(f"{session}\n\nplain:\n{plain}\n\nsteered:\n{steered}")
        return
    from rich.console import Console

    from actkit.cli.chat import talk

    talk(session, _lines(), Console(highlight=False))


@steer_app.command()
def tune(
    source: Source,
    task: TaskName = None,
    positive: Positive = None,
    negative: Negative = None,
    method: MethodName = "caa",
    kl: Annotated[float, typer.Option(help="Largest KL of the next token (nats).")] = 1.0,
    perplexity: Annotated[float, typer.Option(help="Largest perplexity ratio of text.")] = 2.0,
    out: Annotated[Path | None, typer.Option(help="Folder for plot, table and edits.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sweep layers and strengths; show the Pareto front and the chosen point."""
    import actkit as ak

    model = ak.open(source)
    budget = ak.steer.Budget(kl=kl, perplexity=perplexity)
    found = ak.steer.tune(model, method, _task(model, task, positive, negative), budget=budget)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
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
    from actkit.core.edit_file import edit_facts

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
    from dataclasses import replace

    import actkit as ak

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


def _task(model: "Model", name: str | None, positive: Path | None, negative: Path | None) -> Any:
    """Return a bundled task, or one of two files of texts."""
    import actkit as ak

    if name is not None and (positive or negative):
        raise InputError("give --task, or --positive and --negative, not both")
    if name is not None:
        return name
    if positive is None or negative is None:
        raise InputError("steering needs --task, or both --positive and --negative")
    return ak.steer.Task.from_texts(model, _texts(positive), _texts(negative), positive.stem)


def _texts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"texts are read from a file, {path}: {error.strerror}") from error
    return [line.strip() for line in lines if line.strip()]


def _fitted(
    model: "Model", method: str, task: Any, layer: int | None, strength: float | None
) -> "Chat":
    """Fit and, where layer or strength are not given, tune."""
    import actkit as ak
    from actkit.cli.chat import Chat

    if strength is None:
        layers = None if layer is None else [layer]
        found = ak.steer.tune(model, method, task, layers=layers)
        steerer, strength = found.steerer, found.chosen.strength
        where = "" if found.chosen.layer is None else f" at layer {found.chosen.layer}"
    else:
        task = ak.steer.as_task(task)
        steerer = ak.get(method)().fit(model, task.examples)
        steerer = steerer if layer is None else steerer.at(layer)
        where = "" if layer is None else f" at layer {layer}"

    def save(path: Path, own: float) -> str:
        effects = ak.steer.effects(model, steerer.edits(own), task)
        steerer.save(path, model, own, side_effects=effects.to_dict())
        return f"wrote {path} at strength {own:g}, side effects measured"

    can_move = hasattr(steerer, "layers")
    move: Any = (lambda n: steerer.at(n).edits) if can_move else None
    return Chat(model, steerer.edits, strength, f"{method}{where}", save, move)


def _loaded(model: "Model", path: Path, strength: float | None) -> "Chat":
    """Load edits; their strength is the file's own unless another is asked."""
    import actkit as ak
    from actkit.cli.chat import Chat
    from actkit.core.edit_file import edit_facts

    if path.suffix == ".gguf":
        edits, own = ak.steer.load_vectors(path), 1.0
    else:
        edits = ak.load_edits(path, model)
        own = float((edit_facts(path).get("settings") or {}).get("strength", 1.0)) or 1.0

    def at(number: Any) -> Sequence[ak.Edit]:
        return ak.steer.rescaled(edits, number / own)

    def save(to: Path, number: float) -> str:
        ak.save_edits(to, at(number), model, source=str(path), strength=number)
        return f"wrote {to} at strength {number:g}"

    return Chat(model, at, own if strength is None else strength, str(path), save)


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
