"""What a table must hold against hooks that are set by hand in plain torch.

`parity` compares points with what a network returns of itself; here the reference is a hook at the
module that the table names, and the embeddings that the network names.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.auto.configuration_auto import (  # type: ignore[attr-defined]
    CONFIG_MAPPING_NAMES,
)

import actkit as ak
from actkit.model import Model
from tests.core.sites.architectures import parity
from tests.core.sites.architectures.parity import close, tensors


def missing(model_type: str) -> str:
    """Return why a test of a type cannot run on this transformers; "" if it can."""
    if model_type in CONFIG_MAPPING_NAMES:
        return ""
    import transformers

    return f"transformers {transformers.__version__} has no {model_type}"


def uneven_vector(width: int) -> Tensor:
    """Return a vector whose mean is not zero."""
    return torch.linspace(-1.0, 2.0, width)


def add_hook(module: nn.Module, vector: Tensor, side: str = "out") -> Callable[[], None]:
    """Add a vector to what a module returns (or its first input); return how to remove it."""
    if side == "out":

        def after(_: nn.Module, args: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (output[0] + vector.to(output[0].dtype), *output[1:])
            return output + vector.to(output.dtype)

        return module.register_forward_hook(after).remove

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (args[0] + vector, *args[1:]), kwargs
        name = next(k for k, v in kwargs.items() if isinstance(v, Tensor))
        return args, {**kwargs, name: kwargs[name] + vector}

    return module.register_forward_pre_hook(before, with_kwargs=True).remove


def check_add_is_a_hook(m: Model, inputs: Any, name: str) -> None:
    """Hold that a vector added at a site is one added by a hook, bit for bit, and acts."""
    (site,) = m.sites(name)
    assert site.shape is not None and isinstance(site.shape[-1], int)
    vector = uneven_vector(site.shape[-1])
    plain = tensors(parity.reference(m.module, m, inputs))
    got = tensors(m.run(inputs, edits=[ak.add(name, vector)]).output)
    module = m.module.get_submodule(site.place.path)
    remove = add_hook(module, vector, site.place.side)
    try:
        wanted = tensors(parity.reference(m.module, m, inputs))
    finally:
        remove()
    assert len(got) == len(wanted)
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True)), name
    assert any(not torch.equal(a, b) for a, b in zip(got, plain, strict=True)), name


def check_embeddings(m: Model, stack: str = "") -> None:
    """Hold that `embeddings` is read where the network says that its token embeddings are."""
    (site,) = m.sites(f"{stack}.embeddings".lstrip("."))
    network: Any = m.module
    own, words = network.get_submodule(site.place.path), network.get_input_embeddings()
    assert own is words or own.weight is words.weight  # a network may have one table for two stacks


def check_moves(m: Model, inputs: Any, names: Sequence[str] = ()) -> None:
    """Hold that an edit at every site of a block moves the network's output.

    Units are scaled unequally, since a norm forgets what is done to all of them alike. In float64,
    which a network's output must keep, the bound is far above rounding.
    """
    wanted = tensors(parity.reference(m.module, m, inputs))[0]
    for name in names or [s.name for s in m.sites() if s.name.endswith(".1")]:
        got = tensors(m.run(inputs, edits=[ak.apply(name, _scaled)]).output)[0]
        assert (got - wanted).abs().max() > 1e-9, name


def _scaled(x: Tensor) -> Tensor:
    return x * torch.linspace(0.2, 1.7, x.shape[-1], dtype=x.dtype)


def check_generation(m: Model, inputs: Any, name: str, steps: int = 5, **settings: Any) -> None:
    """Hold that generating under an edit is generating with a hook by hand, both with a cache."""
    network: Any = m.module
    (site,) = m.sites(name)
    assert site.shape is not None and isinstance(site.shape[-1], int)
    vector = uneven_vector(site.shape[-1])

    def written() -> Any:
        return network.generate(
            **inputs,
            max_new_tokens=steps,
            min_new_tokens=steps,
            do_sample=False,
            num_beams=1,
            output_logits=True,
            return_dict_in_generate=True,
            **settings,
        )

    plain = written()
    with m.edited([ak.add(name, vector)]):
        got = written()
    remove = add_hook(network.get_submodule(site.place.path), vector, site.place.side)
    try:
        wanted = written()
    finally:
        remove()
    assert got.sequences.equal(wanted.sequences)
    assert len(got.logits) == steps
    assert all(torch.equal(a, b) for a, b in zip(got.logits, wanted.logits, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(got.logits, plain.logits, strict=True))


def check_rows_alone(
    m: Model, both: dict[str, Tensor], alone: Sequence[dict[str, Tensor]], tol: float = 1e-4
) -> None:
    """Hold that each row of a padded batch equals its input alone, at every site.

    Args:
        m: The opened model.
        both: The batch with its masks.
        alone: Each row's input without padding.
        tol: Of the largest number.
    """
    names = [s.name for s in m.sites() if s.name.rpartition(".")[2] != "logits" or s.stack]
    rec = m.run(both, names)
    for b, one in enumerate(alone):
        single = m.run(one, names)
        for site in m.sites():
            valid = rec.rows_of(site.name).valid[b]
            x = rec[site.name][b]
            x = x[:, valid][..., valid] if "S" in site.axes else x[valid]
            close(x, single[site.name][0], tol)
