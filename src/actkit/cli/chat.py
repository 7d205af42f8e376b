"""A conversation with a steered model whose strength can be changed while talking."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from actkit.core.errors import ActkitError, InputError

if TYPE_CHECKING:
    from actkit.core.edit import Edit
    from actkit.core.model import Model

HELP = """/strength 4   steer harder, softer, or (negative) the other way
/off          stop steering; /on goes on
/compare      show the plain and the steered answer side by side; again to stop
/layer 18     act at another layer, where the method lets you choose
/clear        forget the conversation
/save FILE    write the edits to a file that `ak.load_edits` reads
/show         say what steers
/quit         leave (or Ctrl-D)"""


@dataclass
class Chat:
    """The state of a conversation.

    Attributes:
        model: The network.
        edits: Gives the edits of a strength: a number, or one for each of two rows.
        strength: Where it starts.
        title: What steers, in words.
        save: Writes the edits of a strength to a path; returns what to say about it.
        move: Makes the edits act at another layer; None where that cannot be chosen.
        max_new_tokens: Length of an answer at most.
    """

    model: "Model"
    edits: "Callable[[Any], Sequence[Edit]]"
    strength: float
    title: str
    save: Callable[[Path, float], str]
    move: "Callable[[int], Callable[[Any], Sequence[Edit]]] | None" = None
    max_new_tokens: int = 120
    on: bool = True
    comparing: bool = False
    history: list[dict[str, str]] = field(default_factory=list)

    def answers(self, text: str) -> list[str]:
        """Return the plain and the steered answer if they are compared, else the only one."""
        self.history.append({"role": "user", "content": text})
        strengths = [0.0, self._now] if self.comparing else [self._now]
        prompt: Any = list(self.history)
        if getattr(self.model.tokenizer, "chat_template", None) is None:
            prompt = "\n".join(turn["content"] for turn in self.history)
        edits = self.edits(torch.tensor(strengths)) if any(strengths) else []
        try:
            found = self.model.generate(
                [prompt] * len(strengths), edits=edits, max_new_tokens=self.max_new_tokens
            )
        except ActkitError:
            self.history.pop()
            raise
        self.history.append({"role": "assistant", "content": found[-1]})
        return [text.strip() for text in found]

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; return what to say about it.

        Raises:
            InputError: The command is unknown, or its argument is.
        """
        name, _, argument = line[1:].strip().partition(" ")
        known: dict[str, Callable[[str], str]] = {
            "strength": self._strength,
            "off": lambda _: self._switch(on=False),
            "on": lambda _: self._switch(on=True),
            "compare": self._compare,
            "layer": self._layer,
            "clear": self._clear,
            "save": lambda path: self.save(Path(_given(path, "a file")), self.strength),
            "show": lambda _: str(self),
            "help": lambda _: HELP,
        }
        if name not in known:
            raise InputError(f"commands are /{', /'.join(known)} and /quit, got /{name}")
        return known[name](argument.strip())

    def __str__(self) -> str:
        """Say what steers, and how much."""
        how = f"strength {self.strength:g}" if self.on else f"off (strength was {self.strength:g})"
        return f"{self.title}, {how}"

    @property
    def _now(self) -> float:
        return self.strength if self.on else 0.0

    def _strength(self, argument: str) -> str:
        number = _number(argument, float)
        self.edits(number)  # refuses what is no strength before anything changes
        self.strength, self.on = number, True
        return str(self)

    def _switch(self, on: bool) -> str:
        self.on = on
        return str(self)

    def _compare(self, _: str) -> str:
        self.comparing = not self.comparing
        return "plain and steered, side by side" if self.comparing else "one answer"

    def _layer(self, argument: str) -> str:
        if self.move is None:
            raise InputError("what steers here chooses its layers itself")
        moved = self.move(int(_number(argument, int)))
        moved(self.strength)  # refuses an unknown layer before anything changes
        self.edits = moved
        return f"layer {argument}"

    def _clear(self, _: str) -> str:
        self.history.clear()
        return "a new conversation"


def talk(chat: Chat, lines: Iterator[str], console: Console) -> None:
    """Answer lines until they end or one says /quit; an error is said and nothing is lost."""
    console.print(f"[bold]{chat}[/bold]\n[dim]/help lists the commands, /quit leaves[/dim]")
    for line in lines:
        if not line.strip():
            continue
        if line.strip() in ("/quit", "/exit"):
            return
        try:
            if line.startswith("/"):
                console.print(chat.command(line), style="dim", markup=False)
            else:
                _show(chat, line, console)
        except ActkitError as error:
            console.print(f"{error}", style="red", markup=False)


def _show(chat: Chat, line: str, console: Console) -> None:
    with console.status("writing"):
        found = chat.answers(line)
    if len(found) == 1:
        console.print(found[0], markup=False)
        return
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    titles = ("plain", f"steered, {chat.strength:g}" if chat.on else "steered, off")
    styles = ("dim", "cyan")
    table.add_row(
        *(Panel(Text(t), title=h, border_style=s)
          for t, h, s in zip(found, titles, styles, strict=True))
    )  # fmt: skip
    console.print(table)


def _number(argument: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(_given(argument, "a number"))
    except ValueError as error:
        raise InputError(f"the command needs a number after it, got {argument!r}") from error


def _given(argument: str, what: str) -> str:
    if not argument:
        raise InputError(f"the command needs {what} after it")
    return argument
