"""One edit of every kind that a file could hold, and how the files of `files/edits_before` came.

They were written by actkit 0.1.0 as it stood before operations had identifiers (commit f373f2d),
with this file run as a module: such a file calls an operation of the core by its class and any
other by its module and class. They stay as they are, and a new operation needs none.
"""

from pathlib import Path

import torch
from torch import Tensor

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import Operation
from actkit.core.edits.operations import Add, Affine, Clamp, ProjectOut, Scale, Set, Swap
from actkit.core.edits.where import Where
from actkit.steer.controllers.activation_reasoner._reason import Reason
from actkit.steer.controllers.dac import Compose
from actkit.steer.controllers.lqr import Regulate
from actkit.steer.controllers.meta_controller import Recode
from actkit.steer.controllers.self_logits import Mix, Watch
from actkit.steer.controllers.weighted_controller import DosedDirection, Read
from actkit.steer.images.attention_redirect import Redirect
from actkit.steer.images.cross_attn_steer import TurnCrossAttention as ReflectionTurn
from actkit.steer.images.field_steer import Injected
from actkit.steer.maps._transport import Transport
from actkit.steer.maps.flexac import TurnAssociation as AdaptiveTurn
from actkit.steer.maps.gaussian_ot._low_rank import LowRankMap
from actkit.steer.maps.manifold_steer._manifold import Along
from actkit.steer.maps.tunable_experts import Tune
from actkit.steer.vectors.actadd import AddIfReached
from actkit.steer.vectors.control_vector import TurnState as UnitTurn
from actkit.steer.vectors.gact import Choose
from actkit.steer.vectors.neuron_override import Override
from actkit.steer.vectors.persona import Remove
from actkit.steer.vectors.vista import TurnTowardsEvidence as SphereTurn
from actkit.trace.training.optogenetics._clamps import CopyHead

FOLDER = Path(__file__).parent / "files" / "edits_before"
WHERE = Where(tokens=[0, -1], steps=slice(1, None))


def numbers(*shape: int) -> Tensor:
    """Return numbers of both signs, all different."""
    size = int(torch.tensor(shape).prod())
    return ((torch.arange(size) * 7 % 13 - 6) / 8 + torch.arange(size) / 64).reshape(shape)


def core_operations() -> dict[str, Operation]:
    """Return what the core brings along, by the name of its file."""
    return {
        "add": Add(numbers(5), torch.tensor([0.5, -2.0])),
        "affine": Affine(numbers(3, 3), numbers(3)),
        "clamp": Clamp(float("-inf"), 0.25, numbers(5) / numbers(5).norm()),
        "project_out": ProjectOut(torch.eye(7)[:2]),
        "scale": Scale(1 / 3),
        "set": Set(numbers(2, 3, 5).to(torch.bfloat16)),
        "swap": Swap(numbers(2, 3, 5)),
    }


def maps_and_turns() -> dict[str, Operation]:
    """Return operations with a strength, by the name of their file."""
    two = torch.tensor([0.25, 0.75])
    return {
        "actadd": AddIfReached(numbers(3, 5), strength=2.0),
        "control_vector": UnitTurn(numbers(5), strength=two),
        "cross_attn_steer": ReflectionTurn(numbers(5), 0.125, strength=-1.0),
        "field_steer": Injected(numbers(3, 5), False, strength=0.5),
        "flexac": AdaptiveTurn(numbers(7), False, strength=two),
        "gact": Choose(numbers(3, 5), numbers(3, 5), numbers(5), strength=0.5),
        "gaussian_ot": LowRankMap(numbers(2, 5), numbers(2, 5), numbers(5), numbers(5)),
        "linear_act": Transport(
            numbers(5), numbers(5), numbers(5) - 1, numbers(5), True, strength=0.5
        ),
        "lqr": Regulate(numbers(5), numbers(5), numbers(3, 5), strength=two),
        "manifold_steer": Along(numbers(3, 4, 5), True, 0.5, -0.25, strength=0.5),
        "meta_controller": Recode(numbers(11), (3, 2, 1, 5), strength=0.5),
        "neuron_override": Override(1.5, strength=two),
        "persona": Remove(torch.eye(5)[:2], strength=0.5),
        "tunable_experts": Tune((1, 4), 2, strength=0.5),
        "vista": SphereTurn(numbers(5), True, strength=0.5),
    }


def controllers() -> dict[str, Operation]:
    """Return operations with a memory, by the name of their file."""
    return {
        "activation_reasoner": Reason(
            numbers(3, 5),
            numbers(3),
            numbers(2, 3),
            numbers(2, 5),
            ("bird", "flies"),
            ((0, 0.5, 0.0, (2, 0.25, 0.0, 1.0)), ()),
            (0.5, 0.25),
            (1.0, 0.75),
            ("bird -> flies",),
            ("flies", "bird"),
            "product",
            key="reason",
        ),
        "attention_redirect": Redirect("z", numbers(1, 3, 3), 2, 0.5, key="redirect"),
        "dac": Compose(numbers(2, 3, 2, 5), 1.5, 0.75, key="dac", strength=0.5),
        "optogenetics": CopyHead(torch.tensor([[3, -1, 4]]), 2.5, watch=False, key="copy"),
        "self_logits.mix": Mix(numbers(5), numbers(5), True, 1e-5, (1, 3), key="mix"),
        "self_logits.watch": Watch(3, key="mix"),
        "weighted_controller.patch": DosedDirection(
            numbers(5), numbers(2, 3), numbers(2), "relu", key="weighted"
        ),
        "weighted_controller.read": Read(numbers(3, 5), numbers(3), True, key="weighted"),
    }


def every_kind() -> dict[str, Edit]:
    """Return one edit of every kind by the name of its file."""
    kinds = {**core_operations(), **maps_and_turns(), **controllers()}
    return {name: Edit("resid_post.1", made, WHERE) for name, made in kinds.items()}


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, edit in every_kind().items():
        path = FOLDER / f"{name}.safetensors"
        if not path.exists():
            ak.save_edits(path, [edit])
