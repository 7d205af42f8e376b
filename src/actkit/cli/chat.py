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

from actkit.cli.steering import Steering
from actkit.core.errors import ActkitError, InputError

if TYPE_CHECKING:
    from actkit.model import Model

HELP = """/strength 4   steer harder, softer, or (negative) the other way
/off          stop steering; /on goes on
/compare      show the plain and the steered answer side by side; again to stop
/layer 18     act at another layer, where the method lets you choose
/clear        forget the conversation
/save FILE    write the edits to a file that `ak.load_edits` reads
/show         say what steers
/quit         leave (or Ctrl-D)"""


Turns = list[dict[str, str]]
"""What was said, as chat templates take it."""


@dataclass
class Chat:
    """The state of a conversation.

    Attributes:
        model: The network.
        steering: What steers it.
        strength: Where it starts.
        max_new_tokens: Length of an answer at most.
        history: What was said; answers are those of the strength that was on.
        plain: The same questions with the answers of the plain network, as far as they were
            compared: an answer that was steered would steer what follows it.
    """

    model: "Model"
    steering: Steering
    strength: float
    max_new_tokens: int = 120
    on: bool = True
    comparing: bool = False
    history: Turns = field(default_factory=list)
    plain: Turns = field(default_factory=list)

    def answers(self, text: str) -> list[str]:
        """Return the plain and the steered answer if they are compared, else the only one."""
        asked = {"role": "user", "content": text}
        if not self.comparing:
            (answer,) = self._said([[*self.history, asked]], [self._now])
            self._keep(self.history, asked, answer)
            return [answer.strip()]
        self._catch_up()
        sides = [[*self.plain, asked], [*self.history, asked]]
        plain, steered = self._said(sides, [0.0, self._now])
        self._keep(self.plain, asked, plain)
        self._keep(self.history, asked, steered)
        return [plain.strip(), steered.strip()]

    def _catch_up(self) -> None:
        """Let the plain network answer what was asked while it was not compared."""
        for asked in self.history[len(self.plain) :: 2]:
            (answer,) = self._said([[*self.plain, asked]], [0.0])
            self._keep(self.plain, asked, answer)

    def _said(self, conversations: Sequence[Turns], strengths: Sequence[float]) -> list[str]:
        """Return what the network says next in each conversation, at a strength for each."""
        prompts: list[Any] = [list(turns) for turns in conversations]
        if getattr(self.model.tokenizer, "chat_template", None) is None:
            prompts = ["\n".join(turn["content"] for turn in turns) for turns in conversations]
        edits = self.steering.edits(torch.tensor(strengths)) if any(strengths) else []
        return self.model.generate(prompts, edits=edits, max_new_tokens=self.max_new_tokens)

    @staticmethod
    def _keep(turns: Turns, asked: dict[str, str], answer: str) -> None:
        turns += [asked, {"role": "assistant", "content": answer}]

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
            "save": lambda path: self.steering.save(Path(_given(path, "a file")), self.strength),
            "show": lambda _: str(self),
            "help": lambda _: HELP,
        }
        if name not in known:
            raise InputError(f"commands are /{', /'.join(known)} and /quit, got /{name}")
        return known[name](argument.strip())

    def __str__(self) -> str:
        """Say what steers, and how much."""
        how = f"strength {self.strength:g}" if self.on else f"off (strength was {self.strength:g})"
        return f"{self.steering}, {how}"

    @property
    def _now(self) -> float:
        return self.strength if self.on else 0.0

    def _strength(self, argument: str) -> str:
        number = _number(argument, float)
        self.steering.edits(number)  # refuses what is no strength before anything changes
        self.strength, self.on = number, True
        return str(self)

    def _switch(self, on: bool) -> str:
        self.on = on
        return str(self)

    def _compare(self, _: str) -> str:
        self.comparing = not self.comparing
        return "plain and steered, side by side" if self.comparing else "one answer"

    def _layer(self, argument: str) -> str:
        moved = self.steering.at(int(_number(argument, int)))
        moved.edits(self.strength)  # refuses an unknown layer before anything changes
        self.steering = moved
        return str(self)

    def _clear(self, _: str) -> str:
        self.history.clear()
        self.plain.clear()
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
