"""The weight that is read of a map is the one with which it computes."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from actkit.anatomy.linear_map import bias_of, is_linear, is_turned, weight_of
from actkit.core.errors import InputError

WIDTHS = (3, 5)


def a_map(kind: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    inputs, outputs = WIDTHS
    if kind == "Linear":
        return nn.Linear(inputs, outputs).to(dtype)
    turned: Any = Conv1D
    return turned(outputs, inputs).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_it_makes_of_each_unit_vector_what_the_map_does(kind: str, dtype: torch.dtype) -> None:
    module = a_map(kind, dtype)
    nn.init.zeros_(module.bias)
    weight_DI = weight_of(module)
    assert (weight_DI.shape, weight_DI.dtype) == (WIDTHS[::-1], dtype)
    with torch.no_grad():
        made_ID = module(torch.eye(WIDTHS[0], dtype=dtype))
    assert torch.equal(made_ID, weight_DI.mT)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_with_the_bias_it_is_all_that_the_map_does(kind: str) -> None:
    module = a_map(kind, torch.float64)
    nn.init.normal_(module.bias)
    x_NI = torch.randn(7, WIDTHS[0], dtype=torch.float64)
    bias_D = bias_of(module)
    assert bias_D is not None
    made_ND = torch.einsum("ni,di->nd", x_NI, weight_of(module)) + bias_D
    torch.testing.assert_close(made_ND, module(x_NI), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_what_is_written_into_it_changes_the_map(kind: str) -> None:
    module = a_map(kind, torch.float64)
    x_I = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    before_D = module(x_I)[0].detach()
    weight_of(module)[4, 0] += 2
    expected_D = torch.tensor([0, 0, 0, 0, 2], dtype=torch.float64)
    torch.testing.assert_close(module(x_I)[0].detach() - before_D, expected_D)
    assert not weight_of(module).requires_grad


def test_maps_without_a_bias() -> None:
    assert bias_of(nn.Linear(2, 2, bias=False)) is None


def test_which_are_maps() -> None:
    turned, plain = a_map("Conv1D", torch.float32), a_map("Linear", torch.float32)
    assert (is_turned(turned), is_turned(plain)) == (True, False)
    assert is_linear(turned)
    assert is_linear(plain)


@pytest.mark.parametrize(
    "module", [nn.Conv1d(1, 1, 1), nn.Embedding(2, 2), nn.Bilinear(1, 1, 1), nn.Identity()]
)
def test_what_is_no_linear_map_is_refused(module: nn.Module) -> None:
    assert not is_linear(module)
    with pytest.raises(InputError, match=f"plain linear map .*got a {type(module).__name__}$"):
        weight_of(module)
