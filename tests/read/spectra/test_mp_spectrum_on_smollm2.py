"""Correlations between SmolLM2's units against the same activations shuffled unit by unit.

Shapes: N tokens, D width.
"""

from itertools import islice

import pytest
import torch

from actkit.data import chunks, text
from actkit.model import Model
from actkit.read.spectra.mp_spectrum import MPSpectrum, mp_spectrum
from tests._evidence import Evidence

SITE = "resid_post.5"


def spectra(model: Model, blocks: list[list[int]], site: str) -> tuple[MPSpectrum, MPSpectrum]:
    """Return the spectrum of a stream, and of the same with each unit shuffled over tokens."""
    acts_ND, rows = model.run(torch.tensor(blocks), record=site).flat(site)
    acts_ND = acts_ND[rows.position > 0].double()  # the first token's activations are massive
    acts_ND = (acts_ND - acts_ND.mean(0)) / acts_ND.std(0)
    gen = torch.Generator().manual_seed(0)
    order = [torch.randperm(len(acts_ND), generator=gen) for _ in acts_ND.T]
    shuffled_ND = torch.stack([unit_N[i] for unit_N, i in zip(acts_ND.T, order, strict=True)], 1)
    return mp_spectrum(acts_ND), mp_spectrum(shuffled_ND)


@pytest.mark.paper("structure-redundancy-large-language")
def test_structure_of_a_real_stream_stands_out_from_noise(
    smollm2: Model, evidence: Evidence
) -> None:
    blocks = list(islice(chunks(text("austen", 60), smollm2.tokenizer, 128), 16))
    real, shuffled = spectra(smollm2, blocks, SITE)
    evidence("outliers at SmolLM2's block 5", measured=real.num_outliers, at_least=50)
    evidence("their share of the variance", measured=real.share_outliers, at_least=0.5)
    evidence("KL to the fitted law (nats)", measured=real.kl, at_least=0.3)
    evidence("outliers, units shuffled", measured=shuffled.num_outliers, at_most=1)
    evidence("KL, units shuffled (nats)", measured=shuffled.kl, at_most=0.01)
