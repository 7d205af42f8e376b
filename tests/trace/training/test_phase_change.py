"""The phase change: planted in a training, against numpy's slopes and scikit-learn's components."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._in_context import repeated, token_losses
from actkit.trace.training.phase_change import phase_change
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace._induction_net import LENGTH, START, wired


@pytest.mark.paper("context-learning-induction-heads")
def test_a_planted_phase_change_is_found(evidence: Evidence) -> None:
    """The wired head falls into place at step 60; slope and components as numpy and sklearn say."""
    net = wired()
    size = net.config.n_embd
    query = net.transformer.h[1].attn.c_attn.weight.data[:, size // 2 : size]  # of head 1
    whole = query.clone()

    def steps() -> Iterator[tuple[int, Any]]:
        for step in range(0, 110, 10):
            query.copy_(whole * (step / 10000 + (step >= 60)))
            yield step, net

    tokens = repeated(Model(net), length=LENGTH, start=START)
    found = phase_change(ak.Checkpoints(steps), tokens, tokens, 2, 16)
    away = abs(found.step - 55)
    evidence("steps from where the head falls into place to the fall", measured=away, at_most=5)
    assert (found.prefix_S[:6] < 0.9).all()
    assert (found.prefix_S[6:] > 0.99).all()
    np.testing.assert_allclose(found.slope_S, np.gradient(found.icl_S, found.steps_S))
    losses = []
    for _, at in steps():
        losses.append(token_losses(Model(at), tokens).flatten().double())
    known = PCA(2, svd_solver="full").fit_transform(torch.stack(losses))
    np.testing.assert_allclose(found.path_S2.abs(), abs(known), atol=1e-6)


def test_bad_input_is_refused() -> None:
    m = tiny.model()
    tokens = repeated(m, length=4)
    with pytest.raises(InputError, match="at least 3 checkpoints, got 2"):
        phase_change(ak.Checkpoints([m, m]), tokens, tokens, 1, 4)
