"""A kernel that leaves a network's softcap out, as sdpa does, is shown as it computes."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

import actkit as ak
from actkit.model import Model
from tests.core.sites.architectures.test_decoders import network

IDS = [[5, 17, 3, 8, 29], [41, 2, 33, 9, 60]]


def without_cap(*given: Any, **settings: Any) -> Any:
    """Do what sdpa does of itself, until newer versions refuse a cap."""
    settings.pop("softcap", None)
    return sdpa_attention_forward(*given, **settings)


@pytest.fixture
def capless() -> Iterator[str]:
    """Register a kernel that leaves the cap out."""
    AttentionInterface.register("capless", without_cap)
    AttentionMaskInterface.register("capless", sdpa_mask)
    yield "capless"
    AttentionInterface._global_mapping.pop("capless")
    AttentionMaskInterface._global_mapping.pop("capless")


def test_a_cap_that_the_kernel_leaves_out_is_left_out_of_scores(capless: str) -> None:
    net: Any = network("gemma2")
    net.set_attn_implementation(capless)
    m = Model(net)
    logits = m.run(IDS, logits=True).logits
    assert torch.equal(logits, net(torch.tensor(IDS)).logits)
    rec = m.run(IDS, record=["z.1", "v.1", "attn_*.1"])
    assert rec["attn_scores.1"].abs()[..., 0].max() > 5  # the cap would hold them below
    v_BTHK = rec["v.1"].repeat_interleave(rec["z.1"].shape[2] // rec["v.1"].shape[2], 2)
    mixed: Tensor = torch.einsum("bhts,bshk->bthk", rec["attn_probs.1"], v_BTHK)
    torch.testing.assert_close(mixed, rec["z.1"])
    moved = m.run(IDS, edits=[ak.scale("attn_probs.1", 0.5)], record="z.1")["z.1"]
    torch.testing.assert_close(moved, 0.5 * rec["z.1"])
