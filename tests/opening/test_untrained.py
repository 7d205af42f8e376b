"""The untrained copy: same shapes, other weights, seeded, nothing else touched."""

import pytest
import torch
from torch import nn

from actkit.core.errors import ModelError
from actkit.model import Model
from actkit.opening.untrained import untrained
from tests.core import tiny


def test_a_copy_of_a_decoder_runs_and_knows_nothing() -> None:
    model = tiny.model()
    model.module.get_parameter("model.embed_tokens.weight").data.mul_(3)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    state = torch.get_rng_state()
    fresh = untrained(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items())
    own = fresh.module.state_dict()
    assert {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in before.items()}
    assert not torch.equal(own["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert [s.name for s in fresh.sites()] == [s.name for s in model.sites()]
    assert fresh.run(["w1 w2"], record="resid_post.0")["resid_post.0"].isfinite().all()
    assert not fresh.module.training and fresh.name == f"untrained {model.name}"


def test_the_seed_decides() -> None:
    model = tiny.model()
    one, same, other = (untrained(model, seed).module.state_dict() for seed in (1, 1, 2))
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


def test_plain_modules_and_their_dtype() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MultiheadAttention(4, 2))
    net[1].register_buffer("running_mean", torch.full((4,), 7.0))
    net = net.to(torch.bfloat16)
    fresh = untrained(Model(net)).module
    assert fresh.get_parameter("0.weight").dtype == torch.bfloat16
    assert not torch.equal(fresh.get_parameter("0.weight"), net.get_parameter("0.weight"))
    assert fresh.get_buffer("1.running_mean").abs().max() == 0
    assert net.get_buffer("1.running_mean").min() == 7


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))


def test_what_cannot_begin_again_is_refused() -> None:
    with pytest.raises(ModelError, match=r"begin: 1\.scale"):
        untrained(Model(nn.Sequential(nn.Linear(2, 2), Own())))
