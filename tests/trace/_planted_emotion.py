"""A small network with a planted circuit: one head reads a concept, neurons turn it into a word."""

from typing import Any

import torch

from actkit.worlds.toy_transformer import set_head, toy

CONCEPTS, CONTEXTS, NEURONS = 4, 9, 3
HEAD = (1, 2)
END, NONE = 30, 31
"""Tokens: contexts are 10..18, concepts 0..3, their words 20..23; the end, and no concept."""


def neurons(concept: int) -> list[tuple[int, int]]:
    """The planted neurons of a concept."""
    return [(2, 5 * concept + i) for i in range(NEURONS)]


def prompt(context: int, concept: int | None) -> list[int]:
    """A context of two tokens, the concept, the end."""
    return [10 + context, 10 + (context + 3) % CONTEXTS, NONE if concept is None else concept, END]


@torch.no_grad()
def planted() -> Any:
    """All weights are noise, but for the head and the neurons that do the task."""
    net = toy(32, layers=3, heads=4, width=48, mlp=40)
    embedding, blocks = net.transformer.wte.weight, net.transformer.h
    for concept in range(CONCEPTS):
        embedding[concept, concept] = 1.0
    embedding[:CONCEPTS, 4] = embedding[NONE, 4] = 1.0
    embedding[END, 5] = 1.0
    q, k, v, o = torch.zeros(48, 1), torch.zeros(48, 1), torch.zeros(48, 4), torch.zeros(4, 48)
    q[5, 0], k[4, 0] = 12.0, 1.0
    for concept in range(CONCEPTS):
        v[concept, concept], o[concept, 8 + concept] = 1.0, 2.0
        for _, unit in neurons(concept):
            blocks[2].mlp.c_fc.weight[8 + concept, unit] = 1.5
            blocks[2].mlp.c_proj.weight[unit, 16 + concept] = 1.0
        net.lm_head.weight[20 + concept, 16 + concept] = 0.7
    set_head(net, *HEAD, q, k, v, o)
    return net
