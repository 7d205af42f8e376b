import pytest
import torch
from torch import nn

from actkit.core.errors import InputError
from actkit.nn.gates.top_k_mlp import TopKMLP


def made(k: int, activation: nn.Module | None = None) -> TopKMLP:
    torch.manual_seed(0)
    return TopKMLP(width=5, hidden=23, k=k, activation=activation).double()


def tokens() -> torch.Tensor:
    gen = torch.Generator().manual_seed(1)
    return torch.randn(3, 7, 5, generator=gen, dtype=torch.float64) * 2 + 0.7


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()], ids=["relu", "gelu"])
def test_output_equals_a_loop_over_tokens(activation: nn.Module) -> None:
    mlp, x_BTD = made(4, activation), tokens()
    out_BTD = mlp(x_BTD).detach()
    for b in range(3):
        for t in range(7):
            values = activation(mlp.up(x_BTD[b, t])).tolist()
            largest = sorted(range(23), key=lambda i: values[i])[-4:]
            alone = sum(values[i] * mlp.down.weight[:, i] for i in largest) + mlp.down.bias
            torch.testing.assert_close(out_BTD[b, t], torch.as_tensor(alone).detach())


def test_exactly_k_are_left_and_fewer_where_fewer_are_positive() -> None:
    mlp = made(4)
    left_BT = mlp.kept(torch.rand(3, 7, 23) + 0.1).count_nonzero(-1)
    assert left_BT.eq(4).all()
    assert mlp.kept(torch.ones(2, 23)).count_nonzero(-1).tolist() == [4, 4]  # ties too
    two = torch.zeros(1, 23)
    two[0, [3, 9]] = 1
    assert mlp.kept(two).count_nonzero() == 2


def test_all_units_are_the_plain_mlp() -> None:
    mlp, x_BTD = made(23, nn.GELU()), tokens()
    torch.testing.assert_close(mlp(x_BTD), mlp.down(mlp.activation(mlp.up(x_BTD))))


def test_gradients_flow_through_the_kept_units_alone() -> None:
    mlp = made(4)
    hidden = (torch.rand(6, 23) + 0.1).requires_grad_()
    kept = mlp.kept(hidden)
    (grad,) = torch.autograd.grad(kept.sum(), hidden)
    assert grad.equal((kept != 0).float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_shape_and_dtype_stay(dtype: torch.dtype) -> None:
    x_BTD = tokens().to(dtype)
    out_BTD = made(4).to(dtype)(x_BTD)
    assert (out_BTD.shape, out_BTD.dtype) == (x_BTD.shape, dtype)


@pytest.mark.parametrize(("width", "k"), [(0, 1), (5, 0), (5, 24)])
def test_sizes_that_do_not_fit_are_refused(width: int, k: int) -> None:
    with pytest.raises(InputError, match=f"width={width}, hidden=23, k={k}"):
        TopKMLP(width=width, hidden=23, k=k)
