"""An attention-only network of two layers, wired by hand to look up what followed last time."""

from typing import Any

import torch

from actkit.worlds.toy_transformer import clear, set_head, toy

TOKENS, LENGTH, START = 13, 9, 12
"""Size of the vocabulary, tokens of one copy, and the token that stands first."""


def wired() -> Any:
    """A head of layer 0 writes the token before; head 1 of layer 1 looks for it, and copies."""
    positions = 2 * LENGTH + 1
    wide = 3 * TOKENS + positions  # tokens, positions, the token before, what is copied
    net = clear(toy(TOKENS, 2, 2, 2 * wide, positions))
    token, place = slice(0, TOKENS), slice(TOKENS, TOKENS + positions)
    before, copied = (slice(place.stop + i * TOKENS, place.stop + (i + 1) * TOKENS) for i in (0, 1))
    eye, steps = torch.eye(TOKENS), torch.eye(positions)
    net.transformer.wte.weight.data[:, token] = eye
    net.transformer.wpe.weight.data[:, place] = steps
    maps = {k: torch.zeros(2 * wide, positions) for k in "qkvo"}
    maps["q"][place], maps["k"][place] = 100 * steps, steps.roll(1, 1)
    maps["v"][token, :TOKENS], maps["o"][before, :TOKENS] = eye, eye
    set_head(net, 0, 0, maps["q"], maps["k"], maps["v"], maps["o"].mT)
    maps = {k: torch.zeros(2 * wide, TOKENS) for k in "qkvo"}
    maps["q"][token], maps["k"][before] = 100 * eye, eye
    maps["v"][token], maps["o"][copied] = eye, eye
    set_head(net, 1, 1, maps["q"], maps["k"], maps["v"], maps["o"].mT)
    net.lm_head.weight.data[:, copied] = 20 * eye
    return net
