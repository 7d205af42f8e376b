"""Spectra of SmolLM2's stream while a text falls into a loop, as language models do."""

from itertools import islice

import pytest
import torch
from sklearn.metrics import roc_auc_score

from actkit.data import chunks, text
from actkit.guard.monitors.eigen_track import EigenTrack
from actkit.model import Model
from actkit.read.spectra.mp_spectrum import mp_descriptors
from tests._evidence import Evidence

SITE, LENGTH, TURN, PERIOD, WINDOW = "resid_post.5", 72, 40, 8, 16


def aurocs(model: Model, blocks: list[list[int]], site: str) -> tuple[list[float], list[float]]:
    """Return how well loops are told at each step, and at those before the loop; 64 blocks.

    Every second block falls into a loop, and half of the blocks are learnt from.
    """
    tokens_BT = torch.tensor(blocks)
    loop = tokens_BT[1::2, TURN - PERIOD : TURN]
    tokens_BT[1::2, TURN:] = loop.repeat(1, (LENGTH - TURN) // PERIOD)
    runs = [model.run(part, record=site)[site] for part in torch.split(tokens_BT, 16)]
    steps = [mp_descriptors(x[1:], WINDOW, stride=2) for x in torch.cat(runs)]  # not token 0
    last_token = WINDOW + 2 * torch.arange(len(steps[0]))
    labels = [(last_token >= TURN).float() * (i % 2) for i in range(64)]

    probs = EigenTrack().fit(steps[:32], labels[:32]).score(steps[32:])
    loops = [i % 2 for i in range(32, 64)]
    auroc_W = [float(roc_auc_score(loops, scores_S)) for scores_S in torch.stack(probs, 1)]
    return auroc_W, [a for a, token in zip(auroc_W, last_token, strict=True) if token < TURN]


@pytest.mark.slow
@pytest.mark.paper("structure-redundancy-large-language")
def test_a_text_that_falls_into_a_loop_is_seen(smollm2: Model, evidence: Evidence) -> None:
    blocks = islice(chunks(text("austen", 160), smollm2.tokenizer, LENGTH), 64)
    auroc_W, early = aurocs(smollm2, list(blocks), SITE)
    evidence("AUROC at the last step: looping or not", measured=auroc_W[-1], at_least=0.95)
    evidence("control: mean AUROC of the steps before the loop", measured=sum(early) / len(early),
             at_most=0.65)  # fmt: skip
