"""A conversation, turn by turn, against the network run by hand with the same history."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import actkit as ak
from actkit.cli.chat import Chat, talk
from actkit.cli.steering import Fitted, LoadedEdits
from actkit.core.edits.files import edit_facts
from actkit.core.errors import InputError
from actkit.data import Opening
from actkit.model import Model
from tests.core import tiny

PAIRS = [("w1 w7 w3", "w1 w8 w3"), ("w2 w7", "w2 w8"), ("w5 w9 w7", "w5 w9 w8")]
LENGTH = 5


@dataclass
class Session:
    """A chat with a tiny network, and what the network says by itself."""

    model: Model
    chat: Chat

    def said(self, turns: Sequence[str], strength: float, layer: int = 1) -> str:
        """Return what follows a conversation that is run alone."""
        edits = ak.get("caa")(layers=layer).fit(self.model, PAIRS).edits(strength)
        return self.model.generate("\n".join(turns), edits=edits, max_new_tokens=LENGTH)[0]

    def lines(self, *typed: str) -> str:
        """Return what a terminal shows of a session."""
        console = Console(width=200, record=True, force_terminal=False)
        talk(self.chat, iter(typed), console)
        return console.export_text()


@pytest.fixture
def session() -> Session:
    model = tiny.model()
    task = ak.steer.Task("toy", PAIRS, [Opening("w3 w4", ("w7",), ("w8",))])
    steerer = ak.get("caa")(layers=1).fit(model, task.examples)
    return Session(model, Chat(model, Fitted(model, steerer, task), 3.0, LENGTH))


def test_what_is_saved_is_what_was_played(session: Session, tmp_path: Path) -> None:
    path = tmp_path / "new" / "e.safetensors"
    assert session.chat.command("/layer 2") == "caa at layer 2, strength 3"
    (answer,) = session.chat.answers("w3 w4")
    assert answer == session.said(["w3 w4"], 3.0, layer=2).strip()
    assert "caa at layer 2" in session.chat.command(f"/save {path}")
    facts = edit_facts(path)
    assert [line.split(" where")[0] for line in facts["edits"]] == ["add at resid_post.2"]
    assert facts["settings"]["settings"]["layers"] == 2 and facts["settings"]["strength"] == 3.0
    edits = ak.load_edits(path, session.model)
    found = session.model.generate("w3 w4", edits=edits, max_new_tokens=LENGTH)[0]
    assert found.strip() == answer


def test_side_effects_are_saved_without_the_speed(session: Session, tmp_path: Path) -> None:
    session.chat.command(f"/save {tmp_path / 'e.safetensors'}")
    effects = edit_facts(tmp_path / "e.safetensors")["settings"]["side_effects"]
    assert "kl" in effects and "tokens_per_second" not in effects


def test_an_unknown_layer_leaves_everything_as_it_was(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layers must be among"):
        session.chat.command("/layer 77")
    assert str(session.chat) == "caa at layer 1, strength 3"
    session.chat.command(f"/save {tmp_path / 'e.safetensors'}")
    assert "resid_post.1" in edit_facts(tmp_path / "e.safetensors")["edits"][0]


def test_the_plain_side_has_a_history_of_its_own(session: Session) -> None:
    (first,) = session.chat.answers("w3 w4")
    assert first == session.said(["w3 w4"], 3.0).strip()
    session.chat.command("/compare")
    plain, steered = session.chat.answers("w6 w2")
    before = session.said(["w3 w4"], 0.0)
    assert before.strip() != first, "steering must change what is said"
    assert plain == session.said(["w3 w4", before, "w6 w2"], 0.0).strip()
    mine = session.said(["w3 w4"], 3.0)
    assert steered == session.said(["w3 w4", mine, "w6 w2"], 3.0).strip()
    plain_again, _ = session.chat.answers("w5")
    turns = ["w3 w4", before, "w6 w2", session.said(["w3 w4", before, "w6 w2"], 0.0), "w5"]
    assert plain_again == session.said(turns, 0.0).strip()


def test_the_plain_side_catches_up_after_a_pause(session: Session) -> None:
    session.chat.command("/compare")
    session.chat.answers("w3 w4")
    session.chat.command("/compare")
    session.chat.answers("w6 w2")
    assert len(session.chat.history) == 4 and len(session.chat.plain) == 2
    session.chat.command("/compare")
    session.chat.answers("w5")
    asked = [turn["content"] for turn in session.chat.plain[::2]]
    assert asked == ["w3 w4", "w6 w2", "w5"]
    assert len(session.chat.plain) == len(session.chat.history) == 6


def test_a_failure_keeps_both_histories(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    session.chat.answers("w3 w4")
    session.chat.command("/compare")

    def fail(*args: Any, **settings: Any) -> list[str]:
        raise InputError("too long")

    monkeypatch.setattr(Model, "generate", fail)
    with pytest.raises(InputError, match="too long"):
        session.chat.answers("w6")
    assert len(session.chat.history) == 2 and session.chat.plain == []


def test_clear_forgets_both_sides(session: Session) -> None:
    session.chat.command("/compare")
    session.chat.answers("w3 w4")
    session.chat.command("/clear")
    assert session.chat.history == [] and session.chat.plain == []


def test_every_setting_changes_what_is_said_shown_and_saved(
    session: Session, tmp_path: Path
) -> None:
    path = tmp_path / "e.safetensors"
    typed = (
        "/layer 0",
        "/strength 5",
        "/show",
        "w3 w4",
        f"/save {path}",
        "/off",
        "/clear",
        "w3 w4",
    )
    shown = session.lines(*typed)
    assert "caa at layer 0, strength 5" in shown
    assert session.said(["w3 w4"], 5.0, layer=0).strip() in shown
    assert session.said(["w3 w4"], 0.0).strip() in shown
    facts = edit_facts(path)
    assert "resid_post.0" in facts["edits"][0] and facts["settings"]["strength"] == 5.0


def test_loaded_edits_keep_their_layer_and_save_another_strength(
    session: Session, tmp_path: Path
) -> None:
    edits = ak.get("caa")(layers=1).fit(session.model, PAIRS).edits(3.0)
    chat = Chat(session.model, LoadedEdits(session.model, Path("mine"), edits, 3.0), 3.0, LENGTH)
    with pytest.raises(InputError, match="chooses its layers itself"):
        chat.command("/layer 2")
    chat.command("/strength 6")
    chat.command(f"/save {tmp_path / 'e.safetensors'}")
    saved = ak.load_edits(tmp_path / "e.safetensors", session.model)
    found = session.model.generate("w3 w4", edits=saved, max_new_tokens=LENGTH)[0]
    assert found == session.said(["w3 w4"], 6.0)
