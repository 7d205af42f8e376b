"""Small networks that are wired by hand to compute a program, their other heads small noise."""

import torch

from actkit.model import Model
from actkit.trace._known_circuit import KnownCircuit
from actkit.trace._parts import Part
from actkit.worlds.causal import Causal
from actkit.worlds.programs import duplicate, fraction, pointer, vote
from actkit.worlds.wiring import Wiring, blank

SHARP = 6.0
"""Attention logit of what a wired head looks for; larger ones leave no gradient."""


def wired_pointer(
    seed: int = 0, hops: int = 2, heads: int = 4, noise: float = 0.05
) -> KnownCircuit:
    """Each layer's head looks up the place that the hop before has found (queries compose)."""
    program = pointer(5, hops)
    size, found = program.vocabulary, list(program.nodes)
    wires = blank(size, program.length, hops, heads, seed, noise, **dict.fromkeys(found[:-1], size))
    eye, at = torch.eye(size), torch.eye(size + 1)[:, :size]
    for layer, (name, before) in enumerate(zip(found, ["token", *found], strict=False)):
        q, k = wires.map(**{before: SHARP * eye}), wires.map(position=at)
        to = "out" if name == "answer" else name
        wires.head(name, layer, q, k, wires.map(token=eye), (to, eye))
    return _known(program, wires)


def wired_duplicate(seed: int = 0, heads: int = 4, noise: float = 0.05) -> KnownCircuit:
    """One head marks the letter that was seen before, one finds the mark (keys compose)."""
    program = duplicate()
    words, places = program.vocabulary, program.length
    wires = blank(words, places, 2, heads, seed, noise, flag=1)
    start = torch.eye(words)[:, -2:-1]
    letters = torch.cat([torch.eye(words), torch.zeros(words, places), start], 1)
    itself = torch.eye(words + places + 1)[words : words + places]
    default = 0.5 * torch.eye(words + places + 1)[-1:].expand(places, -1)
    # the same letter counts 1, itself -2, and the start token a half where nothing was seen
    q = wires.map(token=SHARP * letters, position=SHARP * (default - 2 * itself))
    k = wires.map(token=letters, position=itself)
    wires.head("seen again", 0, q, k, wires.map(token=1 - start), ("flag", torch.ones(1, 1)))
    q, k = wires.map(position=torch.full((places, 1), SHARP)), wires.map(flag=torch.ones(1, 1))
    wires.head("answer", 1, q, k, wires.map(token=torch.eye(words)), ("out", torch.eye(words)))
    return _known(program, wires)


def wired_fraction(seed: int = 0, heads: int = 4, noise: float = 0.05) -> KnownCircuit:
    """One head marks each x at its own place, one takes the mean of the marks (values compose)."""
    program = fraction()
    words, places = program.vocabulary, program.length
    wires = blank(words, places, 2, heads, seed, noise, flag=1)
    at = torch.eye(places)
    is_x = torch.eye(words)[:, :1]
    q, k = wires.map(position=SHARP * at), wires.map(position=at)
    wires.head("is x", 0, q, k, wires.map(token=is_x), ("flag", torch.ones(1, 1)))
    yes_no = torch.eye(words)[words - 2] - torch.eye(words)[words - 3]
    mean, half = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    v = wires.map(flag=mean, position=half.expand(places, 2))
    to = torch.stack([yes_no * places, -yes_no * (places - 1) / 2])
    wires.head("answer", 1, 0 * q, k, v, ("out", to))
    return _known(program, wires)


def wired_vote(seed: int = 0, heads: int = 4, noise: float = 0.05) -> KnownCircuit:
    """Three heads of two layers each say what stands at one place (none composes)."""
    program = vote()
    wires = blank(program.vocabulary, program.length, 2, heads, seed, noise)
    eye = torch.eye(program.vocabulary)
    everywhere = torch.full((program.length, 1), SHARP)
    for place, layer in enumerate((0, 0, 1)):
        k = wires.map(position=torch.eye(program.length)[:, place : place + 1])
        q = wires.map(position=everywhere)
        wires.head(f"vote {place}", layer, q, k, wires.map(token=eye), ("out", eye))
    return _known(program, wires)


def _known(program: Causal, wires: Wiring) -> KnownCircuit:
    places = {
        name: [Part(f"z.{layer}", head=head) for layer, head in heads]
        for name, heads in wires.places.items()
    }
    return KnownCircuit(Model(wires.net, name=program.name), program, places)
