"""The gain that is read of a norm is the one that it multiplies with."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from actkit.anatomy.norm import frozen_norm, is_row_norm, norm_gain
from actkit.core.sites.dry_run import is_norm

WIDTH = 8
GEMMA: Any = GemmaRMSNorm
LLAMA: Any = LlamaRMSNorm


def norms(dtype: torch.dtype) -> dict[str, tuple[Any, torch.Tensor]]:
    """Return norms with known gains, each with its gain."""
    gen = torch.Generator().manual_seed(0)
    gain_D = torch.randn(WIDTH, generator=gen, dtype=torch.float64).to(dtype)
    made = {
        "LayerNorm": nn.LayerNorm(WIDTH, eps=1e-6),
        "LayerNorm without a bias": nn.LayerNorm(WIDTH, eps=1e-6, bias=False),
        "Llama": LLAMA(WIDTH, eps=1e-6),
        "Gemma": GEMMA(WIDTH, eps=1e-6),
    }
    for name, norm in made.items():
        norm.to(dtype)
        norm.weight.data = gain_D - 1 if name == "Gemma" else gain_D.clone()
    nn.init.normal_(made["LayerNorm"].bias, generator=gen)
    return {name: (norm, gain_D) for name, norm in made.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["LayerNorm", "LayerNorm without a bias", "Llama", "Gemma"])
def test_it_is_the_gain_that_the_norm_was_given(name: str, dtype: torch.dtype) -> None:
    norm, gain_D = norms(dtype)[name]
    found_D = norm_gain(norm, WIDTH)
    assert found_D.dtype == dtype
    torch.testing.assert_close(found_D, gain_D, rtol=2e-6, atol=1e-6)
    frozen = frozen_norm(norm, torch.zeros(WIDTH, dtype=dtype))
    torch.testing.assert_close(frozen.gain_D, gain_D.float(), rtol=1e-5, atol=1e-6)
    assert frozen.centred == name.startswith("LayerNorm")


def test_the_epsilon_is_in_it_as_told() -> None:
    norm = nn.LayerNorm(WIDTH, eps=3.0, dtype=torch.float64)
    expected_D = torch.full((WIDTH,), 0.5, dtype=torch.float64)  # 1 / sqrt(1 + 3)
    torch.testing.assert_close(norm_gain(norm, WIDTH).detach(), expected_D)


def test_a_norm_is_asked_in_the_dtype_of_what_it_is_for() -> None:
    norm = nn.RMSNorm(WIDTH, elementwise_affine=False)
    assert norm_gain(norm, WIDTH).dtype == torch.float32
    assert norm_gain(norm, WIDTH, torch.empty(0, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.RMSNorm(4), LLAMA(4), GEMMA(4)])
def test_norms_of_rows(norm: nn.Module) -> None:
    assert is_row_norm(norm)
    assert is_norm(norm)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.GroupNorm(2, 4)])
def test_norms_of_something_else(norm: nn.Module) -> None:
    assert not is_row_norm(norm)
    assert is_norm(norm)


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Identity(), nn.Dropout()])
def test_what_is_no_norm(module: nn.Module) -> None:
    assert not is_row_norm(module)
    assert not is_norm(module)
