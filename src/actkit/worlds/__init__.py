"""Networks and data with a known answer, to hold methods against.

As scikit-learn has datasets: small networks wired by hand, programs that they compute, and data of
which the best answer can be written down.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from actkit.worlds.bursty import BurstyTask, Probe
    from actkit.worlds.causal import Causal
    from actkit.worlds.chainer import backward_chainer
    from actkit.worlds.icl_network import IclNetwork
    from actkit.worlds.induction_model import InductionModel
    from actkit.worlds.labelled_items import IclBatch, IclData
    from actkit.worlds.programs import duplicate, fraction, pointer, vote
    from actkit.worlds.task_mixture import Prompts, TaskMixture, linear
    from actkit.worlds.toy_transformer import clear, reader, set_head, toy
    from actkit.worlds.trees import Trees, draw_trees
    from actkit.worlds.two_pairs import Episodes, TwoPairs
    from actkit.worlds.wiring import Wiring, blank

__all__ = [
    "BurstyTask",
    "Causal",
    "Episodes",
    "IclBatch",
    "IclData",
    "IclNetwork",
    "InductionModel",
    "Probe",
    "Prompts",
    "TaskMixture",
    "Trees",
    "TwoPairs",
    "Wiring",
    "backward_chainer",
    "blank",
    "clear",
    "draw_trees",
    "duplicate",
    "fraction",
    "linear",
    "pointer",
    "reader",
    "set_head",
    "toy",
    "vote",
]

_HOMES = {
    "IclNetwork": "actkit.worlds.icl_network",
    **dict.fromkeys(("BurstyTask", "Probe"), "actkit.worlds.bursty"),
    "Causal": "actkit.worlds.causal",
    "backward_chainer": "actkit.worlds.chainer",
    "InductionModel": "actkit.worlds.induction_model",
    **dict.fromkeys(("IclBatch", "IclData"), "actkit.worlds.labelled_items"),
    **dict.fromkeys(("pointer", "duplicate", "fraction", "vote"), "actkit.worlds.programs"),
    **dict.fromkeys(("Prompts", "TaskMixture", "linear"), "actkit.worlds.task_mixture"),
    **dict.fromkeys(("toy", "clear", "set_head", "reader"), "actkit.worlds.toy_transformer"),
    **dict.fromkeys(("Trees", "draw_trees"), "actkit.worlds.trees"),
    **dict.fromkeys(("Episodes", "TwoPairs"), "actkit.worlds.two_pairs"),
    **dict.fromkeys(("Wiring", "blank"), "actkit.worlds.wiring"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'actkit.worlds' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
