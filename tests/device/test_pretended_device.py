"""What CUDA's documentation and kernels say of devices, held by the pretended one."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.core.tiny import uneven
from tests.pretended_device import DEVICE, Pretended, pretended_device

CPU = torch.device("cpu")
ALIKE = r"Expected all tensors to be on the same device.*lazy:0 and cpu"

torchs_own_warning = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
"""Forward derivatives load what warns."""


def on_device(*shape: int) -> Tensor:
    return uneven(*shape).to(DEVICE)


STAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "arithmetic": lambda x: 2 * x + x.sum() - 1,
    "a CPU scalar": lambda x: x * torch.tensor(2.0) + torch.tensor(1.0),
    "where with a CPU scalar": lambda x: torch.where(x > 0, x, torch.tensor(0.0)),
    "a scalar of the device and a CPU scalar": lambda x: x.sum() + torch.tensor(1.0),
    "product": lambda x: x @ x.mT,
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x),
    "softmax": lambda x: x.softmax(-1),
    "a CPU index": lambda x: x[torch.tensor([2, 0])],
    "a CPU mask": lambda x: x[torch.tensor([True, False, True])],
    "a list": lambda x: x[[2, 0], [1, 1]],
    "an index of the device": lambda x: x[torch.tensor([2, 0], device=x.device)],
    "views": lambda x: x[:, 1:].T.unsqueeze(0).expand(2, -1, -1),
    "new and like": lambda x: x.new_zeros(4) + torch.ones_like(x[0]),
    "to a tensor": lambda x: torch.ones(4).to(x),
    "to": lambda x: x.to(torch.float64),
    "sort": lambda x: x.sort(-1).values,
    "quantile": lambda x: x.quantile(0.3, -1),
    "svd": lambda x: torch.linalg.svd(x).S,
    "vmap": lambda x: torch.func.vmap(lambda row: row.norm())(x),
    "jvp": lambda x: torch.func.jvp(torch.tanh, (x,), (x,))[1],
    "jacrev": lambda x: torch.func.jacrev(lambda r: r.tanh().sum())(x),
    "zeros": lambda x: torch.zeros(3, device=x.device),
    "the type alone": lambda x: torch.arange(3, device="lazy"),
    "tensor": lambda x: torch.tensor([1.0, 2.0], device=x.device),
    "as_tensor of numbers": lambda x: torch.as_tensor([1.0, 2.0], device=x.device),
    "as_tensor of an array": lambda x: torch.as_tensor(np.ones(3), device=x.device),
    "randn": lambda x: torch.randn(3, device=x.device),
    "deep copy": copy.deepcopy,
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "attention": lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
    "dropout": lambda x: nn.functional.dropout(x),
    "lift": lambda x: torch.as_tensor(x),
}
"""What works, and gives a tensor of the device."""

RAISES: dict[str, Callable[[Tensor], Any]] = {
    "a CPU vector": lambda x: x + torch.ones(4),
    "a CPU vector and a scalar of the device": lambda x: torch.ones(4) * x.sum(),
    "a CPU matrix": lambda x: x @ torch.ones(4, 2),
    "cat": lambda x: torch.cat([x, x.cpu()]),
    "stack, even of scalars": lambda x: torch.stack([x.sum(), torch.tensor(1.0)]),
    "where": lambda x: torch.where(x.cpu() > 0, x, 0.0),
    "masked_fill": lambda x: x.masked_fill(x.cpu() > 0, 0.0),
    "gather": lambda x: x.gather(1, torch.zeros(3, 1, dtype=torch.long)),
    "index_select": lambda x: x.index_select(0, torch.tensor([1])),
    "embedding": lambda x: nn.functional.embedding(torch.tensor([1]), x),
    "isin": lambda x: torch.isin(x, torch.ones(2)),
    "equal": lambda x: torch.equal(x, x.cpu()),
    "what is put at an index": lambda x: x.index_put_((torch.tensor([0]),), torch.ones(4)),
    "what is written to in place": lambda x: x.cpu().add_(x),
    "a CPU scalar written to": lambda x: torch.tensor(1.0).add_(x.sum()),
    "linear": lambda x: nn.Linear(4, 2)(x),
    "einsum": lambda x: torch.einsum("ij,kj->ik", x, x.cpu()),
}
"""What raises as CUDA does."""


@torchs_own_warning
@pytest.mark.parametrize("name", STAYS)
def test_stays_on_the_device(name: str) -> None:
    found = STAYS[name](on_device(3, 4))
    assert found.device == DEVICE and isinstance(found, Pretended)


@torchs_own_warning
@pytest.mark.parametrize("name", [n for n in STAYS if n not in ("randn", "dropout")])
def test_numbers_are_those_of_the_cpu(name: str) -> None:
    x = uneven(3, 4)
    here = STAYS[name](x)
    torch.testing.assert_close(STAYS[name](x.to(DEVICE)).cpu(), here.cpu(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RAISES)
def test_two_devices_do_not_meet(name: str) -> None:
    with pytest.raises(RuntimeError, match=ALIKE):
        RAISES[name](on_device(3, 4))


def test_an_index_of_the_device_does_not_index_a_cpu_tensor() -> None:
    index = torch.tensor([0, 1], device=DEVICE)
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        uneven(3, 4)[index]
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        uneven(3, 4)[index] = 0.0


def test_copies_go_across() -> None:
    x, y = uneven(3, 4), on_device(3, 4)
    assert x.copy_(y + 1).device == CPU and y.copy_(x + 1).device == DEVICE
    y[:, 0] = torch.ones(3)  # a copy into a view
    y[torch.tensor([1])] = torch.tensor(7.0)
    expected = x + 1
    expected[:, 0], expected[1] = 1, 7
    torch.testing.assert_close(y.cpu(), expected)
    assert y.to("cpu").device == y.to(x).device == y.cpu().device == CPU
    assert not isinstance(y.cpu(), Pretended)


def test_numbers_come_off_only_by_name() -> None:
    x = on_device(3, 4)
    arrays: list[Callable[[], Any]] = [x.numpy, lambda: np.asarray(x)]
    for array in arrays:
        with pytest.raises(TypeError, match="can't convert lazy:0 device type"):
            array()
    assert x.tolist() == x.cpu().tolist()
    assert x[0, 1].item() == float(x[0, 1]) == x.cpu()[0, 1].item()
    assert torch.tensor([x[0, 0], x[1, 1]]).device == CPU
    assert f"{x[0, 0]:.3f}" == f"{x.cpu()[0, 0]:.3f}"
    assert "lazy" in repr(x)


def test_a_cpu_generator_draws_on_the_cpu_alone() -> None:
    gen = torch.Generator().manual_seed(0)
    draws: list[Callable[[], Tensor]] = [
        lambda: torch.randn(3, generator=gen, device=DEVICE),
        lambda: torch.randperm(3, generator=gen, device=DEVICE),
        lambda: on_device(3).uniform_(generator=gen),
        lambda: torch.bernoulli(torch.ones(3, device=DEVICE), generator=gen),
    ]
    for draw in draws:
        with pytest.raises(RuntimeError, match="Expected a 'lazy' device type for generator"):
            draw()
    assert torch.randn(3, generator=gen).device == CPU


def test_gradients_are_those_of_the_cpu() -> None:
    """Through views, writes in place, a move from the CPU and a module."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))
    other = copy.deepcopy(net).to(DEVICE)
    grads = []
    for module, device in ((net, CPU), (other, DEVICE)):
        x = uneven(6, 4).requires_grad_()
        y = x.to(device) * 2
        y[:, 1] = y[:, 0] * 3
        y.add_(1)
        module(y).square().mean().backward()
        assert x.grad is not None and x.grad.device == CPU
        own: list[Any] = [p.grad for p in module.parameters()]
        assert all(grad.device == device for grad in own)
        grads.append([x.grad, *(grad.cpu() for grad in own)])
    torch.testing.assert_close(grads[1], grads[0])


def test_modules_move_and_learn() -> None:
    net = nn.Linear(4, 2).to(DEVICE)
    assert isinstance(net.weight, nn.Parameter) and net.weight.device == DEVICE
    assert copy.deepcopy(net).weight.device == DEVICE
    adam = torch.optim.Adam(net.parameters(), 0.1)
    before = net.weight.detach().clone()
    net(on_device(3, 4)).sum().backward()
    adam.step()
    assert not torch.equal(net.weight, before)
    assert net.half().weight.dtype == torch.float16
    assert net(on_device(3, 4).half()).dtype == torch.float16
    assert net.to("cpu").weight.device == CPU


def test_files_hold_its_numbers(tmp_path: Path) -> None:
    x = on_device(3, 4)
    save_file({"x": x}, tmp_path / "x.safetensors")
    assert torch.equal(load_file(tmp_path / "x.safetensors")["x"], x.cpu())


def test_shapes_that_change_in_place() -> None:
    x = on_device(1, 4)
    y = x.squeeze_(0).unsqueeze_(1)
    assert y is x and x.shape == x.cpu().shape == (4, 1)
    assert (x + 1).shape == (4, 1)


def test_outside_nothing_is_left_behind() -> None:
    autocast = torch.is_autocast_enabled
    with pretended_device():
        pass
    assert torch.is_autocast_enabled is autocast
