import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from actkit.core.errors import ModelError
from actkit.core.provenance import cache_dir, file_hash, stamp, weight_hash
from actkit.model import Model


class Bag(nn.Module):
    """Holds any tensors under any names."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def by_hand(module: nn.Module) -> str:
    """The definition, one tensor after the other, with Python's own bytes."""
    whole = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        raw = bytes(tensor.contiguous().untyped_storage().tolist()) if tensor.numel() else b""
        facts = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
        whole.update(facts + hashlib.sha256(raw).digest())
    return whole.hexdigest()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 5),
        torch.randn(4, 7).bfloat16(),
        torch.randn(2, 3).to(torch.float8_e4m3fn),
        torch.tensor(2.5),
        torch.zeros(0, 4),
        torch.tensor([True, False, True]),
        torch.randn(3, dtype=torch.complex64),
        torch.arange(6, dtype=torch.int8),
        torch.randn(4, 6).T,
    ],
    ids=lambda t: f"{t.dtype}-{tuple(t.shape)}",
)
def test_covers_every_kind_of_tensor(tensor: Tensor) -> None:
    module = Bag(b=tensor, a=torch.ones(2))
    assert weight_hash(module) == by_hand(module)


def base() -> dict[str, Tensor]:
    return {"first": torch.arange(12.0).reshape(3, 4) + 0.5, "second": torch.ones(5)}


def changed(how: str) -> Bag:
    tensors = base()
    if how == "bit":
        tensors["first"].view(torch.int32)[2, 1] ^= 1
    elif how == "sign of zero":
        return Bag(first=torch.tensor(-0.0))
    elif how == "name":
        tensors["third"] = tensors.pop("second")
    elif how == "shape":
        tensors["first"] = tensors["first"].reshape(4, 3)
    elif how == "dtype":
        tensors["first"] = tensors["first"].view(torch.int32)
    elif how == "swapped":
        tensors["first"] = tensors["first"][[1, 0, 2]]
    return Bag(**tensors)


@pytest.mark.parametrize("how", ["bit", "name", "shape", "dtype", "swapped"])
def test_any_change_changes_it(how: str) -> None:
    assert weight_hash(changed(how)) != weight_hash(Bag(**base()))


def test_signed_zeros_differ() -> None:
    assert weight_hash(changed("sign of zero")) != weight_hash(Bag(first=torch.tensor(0.0)))


def test_order_strides_and_tying_do_not_matter() -> None:
    tensors = base()
    turned = Bag(second=tensors["second"], first=tensors["first"].T.contiguous().T)
    assert weight_hash(turned) == weight_hash(Bag(**tensors))
    shared = torch.randn(3, 3)
    tied, apart = Bag(a=shared, b=shared), Bag(a=shared.clone(), b=shared.clone())
    assert weight_hash(tied) == weight_hash(apart)
    view = Bag(a=shared, b=shared.T)  # one storage, two tensors
    assert weight_hash(view) == by_hand(Bag(a=shared, b=shared.T.clone()))


def test_conjugate_and_negative_views_count_as_their_values() -> None:
    value = torch.randn(3, dtype=torch.complex64)
    assert weight_hash(Bag(a=value.conj())) == weight_hash(Bag(a=value.conj().resolve_conj()))
    assert weight_hash(Bag(a=value.conj())) != weight_hash(Bag(a=value))


def test_leaves_the_network_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weight_hash(module)
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 2, device="meta"), r"bias \(2,\) is on meta"),
        (nn.LazyLinear(2), r"materialised.*is not: run it once"),
        (Bag(a=torch.eye(3).to_sparse()), r"plain tensors.*a is torch.float32 \(3, 3\)"),
    ],
)
def test_weights_without_bytes_are_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        weight_hash(module)


def test_extra_state_is_left_out() -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"calls": 3}

    extra, plain = Extra(2, 2), nn.Linear(2, 2)
    plain.load_state_dict({k: v for k, v in extra.state_dict().items() if "_extra" not in k})
    assert weight_hash(extra) == weight_hash(plain)


def test_cache_dir_asks_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACTKIT_CACHE", "/a/b")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/a/b")
    monkeypatch.setenv("ACTKIT_CACHE", "")
    assert cache_dir() == Path("/x/actkit")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/h")
    assert cache_dir() == Path("/h/.cache/actkit")
    monkeypatch.setenv("ACTKIT_CACHE", "~/own")
    assert cache_dir() == Path("/h/own")


def test_file_hash_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert file_hash(tmp_path / "f").startswith("ba7816bf8f01cfea414140de5dae2223b00361a3")


def test_stamp_is_plain_json() -> None:
    net = nn.Linear(3, 2)
    mark: dict[str, Any] = stamp(
        Model(net, name="mine"), seed=3, dtype=torch.bfloat16, path=Path("a/b"), sizes=(1, 2)
    )
    assert json.loads(json.dumps(mark)) == mark
    assert mark["model"] == "mine" and mark["weights"] == weight_hash(net) and mark["seed"] == 3
    assert mark["settings"] == {"dtype": "torch.bfloat16", "path": "a/b", "sizes": [1, 2]}
    assert mark["torch"] == torch.__version__ and mark["actkit"]
