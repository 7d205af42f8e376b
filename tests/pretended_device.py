"""A second device that no machine needs: what is put there refuses to meet CPU tensors, as CUDA's.

Inside `pretended_device()` the device `lazy:0` works. Of torch's device types it is the one that
every build knows a guard for (autograd asks for it) and that nothing computes on. A tensor there is
a wrapper around a CPU tensor; each operation of ATen that touches one is checked by CUDA's rules,
run on the CPU tensors inside, and wrapped again. So autograd, views, in-place writes, forward
derivatives, `torch.func` and modules are torch's own.

The rules, as `torchgen` generates them for CUDA and `TensorIterator` checks them:

- An operation marked `device_check: NoCheck` in `native_functions.yaml` (elementwise ones) takes
  CPU tensors of no dimension beside the device's, but never writes to one. Every other operation
  takes no CPU tensor at all.
- A CPU index may index a tensor of the device, never the reverse. `copy_` copies across.
- A generator of the CPU cannot draw on the device.
- `.numpy()` and `np.asarray` raise TypeError, `.item()`, `.tolist()`, `.cpu()` and `.to()` move.

Not covered: other numbers than the CPU's (kernels, half precision, nondeterminism), streams and
asynchrony, memory, the thread that CUDA runs `backward` in, several devices, `torch.Generator` of
the device, `torch.compile`, branches on `is_cuda`, `torch.load(map_location=)`, storages (they are
the CPU's), threads (a mode belongs to its thread),
nested tensors, and forward derivatives that begin on the CPU and go on here.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import optimizer
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("lazy", 0)
_CPU = torch.device("cpu")
_INDEXING = {"index", "index_put", "index_put_", "_unsafe_index", "_unsafe_index_put"}
_TAKES_CPU = {"_pack_padded_sequence", "_pad_packed_sequence"}
"""Lengths and batch sizes are on the CPU always."""
_COMPARES = {"equal"}
"""Not checked by the generated code; the kernel itself refuses two devices, whatever the shapes."""


class Pretended(Tensor):
    """A tensor that says it is on `DEVICE` and keeps its numbers in a CPU tensor."""

    _inner: Tensor

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type["Pretended"], inner: Tensor) -> "Pretended":
        """Wrap a plain CPU tensor; it is not copied."""
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        made._inner = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    @property
    def data(self) -> Any:
        """What `Tensor.data` is; setting it exchanges the tensor inside too."""
        return _DATA.__get__(self)

    @data.setter
    def data(self, other: Any) -> None:
        _DATA.__set__(self, other)
        self._inner = other._inner

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() to copy "
                "the tensor to host memory first."
            )
        return self.detach().cpu().numpy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self._inner.tolist()

    def data_ptr(self) -> int:
        return self._inner.data_ptr()

    def untyped_storage(self) -> Any:
        return self._inner.untyped_storage()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"{self._inner!r} on {DEVICE}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    def __reduce_ex__(self, _: Any) -> Any:
        return _rebuild, (self._inner, self.requires_grad, getattr(self, "_is_param", False))


_DATA: Any = Tensor.data


def _rebuild(inner: Tensor, requires_grad: bool, is_param: bool) -> Pretended:
    made = Pretended(inner).requires_grad_(requires_grad)
    if is_param:
        made._is_param = True
    return cast(Pretended, made)


class _Factories(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Serve `device=DEVICE`, which no argument's type would tell."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Let `lazy:0` be a device of this thread, and give it."""
    _register()
    lifted = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(device=) is seen by the mode
    try:
        with _known_by_name(), _Factories():  # type: ignore[no-untyped-call]
            yield DEVICE
    finally:
        torch._C._set_only_lift_cpu_tensors(lifted)


@contextmanager
def _known_by_name() -> Iterator[None]:
    """Put the device where torch lists device types: those of autocast and fused optimizers."""
    autocast = torch.is_autocast_enabled
    fused = optimizer._get_fused_kernels_supported_devices  # type: ignore[attr-defined]
    with (
        patch.object(
            torch,
            "is_autocast_enabled",
            lambda *device: device[:1] != (DEVICE.type,) and autocast(*device),
        ),
        patch.object(
            optimizer,
            "_get_fused_kernels_supported_devices",
            lambda: [*fused(), DEVICE.type],
        ),
    ):
        yield


@cache
def _register() -> torch.library.Library:
    """Let `torch.tensor([x, y])` read its numbers, which it does below any mode."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl(  # type: ignore[no-untyped-call]
        "_local_scalar_dense", lambda x: x._inner.item(), "Lazy"
    )
    return library


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operation of ATen by the rules of the device."""
    tensors = [x for x in _leaves(args, kwargs) if isinstance(x, Tensor)]
    ours = [x for x in tensors if isinstance(x, Pretended)]
    asked = kwargs.get("device")
    if not ours and (asked is None or asked.type != DEVICE.type):
        return func(*args, **kwargs)

    name = func.overloadpacket.__name__
    others = [x for x in tensors if not isinstance(x, Pretended)]
    _check_generator(kwargs, args)
    if ours and others:
        _check_devices(func, name, args, kwargs)
    if asked is not None and asked.type == DEVICE.type:
        kwargs = {**kwargs, "device": _CPU}
    if name == "_efficientzerotensor":  # a tangent of no memory, which no kernel could read
        func = torch.ops.aten.zeros.default
    inside = {k: _each(_unwrap, v) for k, v in kwargs.items()}
    made = func(*(_each(_unwrap, x) for x in args), **inside)
    _follow(ours)

    if asked is not None and asked.type != DEVICE.type:
        return made
    known = {id(x._inner): x for x in ours} | {id(x): x for x in others}
    if name == "_pack_padded_sequence":
        return _wrap(made[0], known), made[1]
    return _each(lambda x: _wrap(x, known), made)


def _leaves(args: Any, kwargs: Any) -> Iterator[Any]:
    """Yield the arguments of an operation, and what its lists hold; ATen nests no deeper."""
    for x in (*args, *kwargs.values()):
        if isinstance(x, list | tuple):
            yield from x
        else:
            yield x


def _each(change: Callable[[Any], Any], x: Any) -> Any:
    return type(x)(map(change, x)) if isinstance(x, list | tuple) else change(x)


def _unwrap(x: Any) -> Any:
    return x._inner if isinstance(x, Pretended) else x


def _wrap(x: Any, known: dict[int, Tensor]) -> Any:
    """Return what was written to in place itself, and any other tensor on the device."""
    if not isinstance(x, Tensor):
        return x
    return known[id(x)] if id(x) in known else Pretended(x)


def _check_generator(kwargs: Any, args: Any) -> None:
    """A generator draws on its own device alone."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Generator):
            raise RuntimeError(
                f"Expected a '{DEVICE.type}' device type for generator but found "
                f"'{value.device.type}'"
            )


def _check_devices(func: Any, name: str, args: Any, kwargs: Any) -> None:
    """Raise where CUDA's kernels would, given tensors of both devices."""
    if name in _TAKES_CPU or name == "copy_":
        return
    if name in _INDEXING:
        _check_index(name, *args, **kwargs)
        return
    written = [
        value
        for argument, value in _named(func, args, kwargs)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    scalars = str(func._schema.name) in _elementwise() and name not in _COMPARES
    for x in _leaves(args, kwargs):
        if not isinstance(x, Tensor) or isinstance(x, Pretended):
            continue
        if x.dim() or not scalars or any(x is y for y in written):
            raise RuntimeError(_two_devices(func))


def _check_index(name: str, x: Tensor, indices: Any, values: Any = None, *_: Any) -> None:
    """The index may be on the CPU, or with the indexed tensor; what is put there, with it."""
    on = x.device
    if any(i is not None and i.device not in (_CPU, on) for i in indices):
        raise RuntimeError(
            f"indices should be either on cpu or on the same device as the indexed tensor ({on})"
        )
    if values is not None and values.device != on and values.dim():
        raise RuntimeError(f"{name}: {_two_devices(name)}")


def _named(func: Any, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """Pair the arguments of an operation with what its schema says of them."""
    schema = func._schema.arguments
    pairs = list(zip(schema, args, strict=False))
    return pairs + [(a, kwargs[a.name]) for a in schema[len(args) :] if a.name in kwargs]


def _two_devices(func: Any) -> str:
    return (
        "Expected all tensors to be on the same device, but found at least two devices, "
        f"{DEVICE} and cpu! (when checking arguments of {func})"
    )


def _follow(ours: list[Pretended]) -> None:
    """Give wrappers the shapes of tensors that were reshaped in place."""
    for x in ours:
        if x.shape != x._inner.shape or x.stride() != x._inner.stride():
            with no_dispatch():
                _DATA.__set__(x, Pretended(x._inner))


@cache
def _elementwise() -> frozenset[str]:
    """Return the operations whose devices only their kernel checks, of torch's own list."""
    listed = resources.files("torchgen") / "packaged/ATen/native/native_functions.yaml"
    found, name = set(), ""
    for line in listed.read_text().splitlines():
        if began := re.match(r"- func: (\w+)", line):
            name = f"aten::{began[1]}"
        elif re.match(r"  device_check: NoCheck", line):
            found.add(name)
    return frozenset(found)
