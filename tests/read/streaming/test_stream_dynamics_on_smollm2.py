"""The claims of the paper on transformer dynamics, on SmolLM2-135M-Instruct."""

import pytest

from actkit import data
from actkit.model import Model
from actkit.opening.untrained import untrained
from actkit.read.network.stream_perturbation import PerturbationResult, perturbation_ratios
from actkit.read.streaming.stream_dynamics import StreamDynamics, StreamDynamicsResult
from tests._evidence import Evidence

PATH = ("resid_pre.0", "resid_post.*")
MASSIVE = 507
"""The unit whose activation at first tokens is massive, and large at others."""


@pytest.mark.paper("transformer-dynamics")
def test_units_go_on_and_speed_up(smollm2: Model, evidence: Evidence) -> None:
    text = " ".join(data.text(num_samples=12))
    tokens = smollm2.tokenizer(text)["input_ids"][:167]
    reading = StreamDynamics(leave_out=(MASSIVE,))
    found = smollm2.observe([tokens], {PATH: [reading]})[PATH][0].result()
    assert found.num_rows == 166
    evidence("correlation of a unit with itself at the next layer, mean of units and layers",
             measured=found.correlation_PD.nanmean(), at_least=0.8)  # fmt: skip
    evidence("the same with another unit", measured=found.control_PD.nanmean().abs(), at_most=0.05)
    evidence("the same with itself, from what enters the first block to its output",
             measured=found.correlation_PD[0].nanmean(), at_most=0.2)  # fmt: skip
    evidence("velocity of the last 7 steps / of the first 7", measured=acceleration(found),
             at_least=2)  # fmt: skip
    evidence("share of entries above 1: last layer less what enters the first", at_least=0.5,
             measured=found.density_S[-1] - found.density_S[0])  # fmt: skip
    turned_D = found.rotations_D[found.rotations_D.isfinite()]
    evidence("rotations of a unit over 30 layers, mean", measured=turned_D.mean(), at_least=0.5)

    control = untrained(smollm2).observe([tokens], {PATH: [reading]})[PATH][0].result()
    evidence("the same ratio of velocities in an untrained network", measured=acceleration(control),
             at_most=1.5)  # fmt: skip
    # That units go on needs no training: the residual connection alone gives it.
    evidence("the same correlation of units with themselves in an untrained network",
             measured=control.correlation_PD.nanmean(), at_least=0.5)  # fmt: skip


def acceleration(found: StreamDynamicsResult) -> float:
    return float(found.velocity_P[-7:].mean() / found.velocity_P[:7].mean())


def pushed(model: Model, sites: list[str]) -> PerturbationResult:
    texts = [" ".join(data.text()[n : n + 6])[:200] for n in (0, 20, 40, 60)]
    last_BD = model.run(texts, record="resid_post.1")["resid_post.1"][:, -1]
    delta_BD = last_BD.roll(1, 0) - last_BD
    return perturbation_ratios(model, texts, "resid_post.1", delta_BD, sites, num_random=2)


@pytest.mark.paper("transformer-dynamics")
def test_the_stream_outgrows_a_push(smollm2: Model, evidence: Evidence) -> None:
    """The last token of each text is moved to that of another text, after block 1."""
    found = pushed(smollm2, ["resid_post.9", "resid_post.28"])
    # The distance itself grows; the paper's paths come back in a reduced space of one scale.
    for site, ratio, growth in zip(found.sites, found.ratio_K, found.growth_K, strict=True):
        evidence(f"distance to the old path at {site} / at the push, as shares of the stream's "
                 "length", measured=ratio / growth, at_most=0.95)  # fmt: skip
    evidence("the same for random directions at resid_post.28",
             measured=(found.random_RK.mean(0) / found.growth_K)[-1], at_most=0.95)  # fmt: skip
