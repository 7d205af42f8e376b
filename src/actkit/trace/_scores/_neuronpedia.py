"""A circuit as the JSON of an attribution graph, as Neuronpedia and circuit-tracer show them.

Nodes there are features at positions. A graph of heads maps to it so: a head or an MLP is one node
at the last token, for all positions together; queries, keys and values of a head enter one node,
their weights added; the input is one embedding node at the first token; the logits are the node of
the answer, the target. Heads that share a key-value head receive what enters it in equal shares.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from actkit.core.as_json import as_json
from actkit.core.errors import InputError
from actkit.core.provenance import stamp
from actkit.core.run.token_labels import token_label
from actkit.show.graph import Circuit, groups, place

if TYPE_CHECKING:
    from actkit.trace._task import Trial

HEAD, MLP = 1, 1000
"""The rank of heads within a layer, and the feature index of an MLP, above that of any head."""


def graph_json(circuit: Circuit, trial: "Trial | None", slug: str, about: Mapping[str, str]) -> str:
    """Return the JSON text of a circuit's edges.

    Args:
        circuit: The edges.
        trial: What was scored, for its tokens and its answer; None if that is not known.
        slug: The graph's short name.
        about: How the edges were scored: "method", "task" and "unit".

    Raises:
        InputError: A node is of another kind.
    """
    tokens = ["input"] if trial is None else trial.words
    links: dict[tuple[str, str], float] = defaultdict(float)
    shared = groups(circuit.receivers, circuit.senders)
    for edge in circuit.edges:
        receivers = shared.get(edge.receiver, [edge.receiver])
        for receiver in receivers:
            links[edge.sender, receiver] += edge.score / len(receivers)
    last = circuit.last_layer
    names = {"input", "logits", *(name for pair in links for name in pair)}
    ordered = sorted(names, key=lambda name: place(name, last))
    if unknown := [name for name in ordered if place(name, last)[0] > last and name != "logits"]:
        raise InputError(f"nodes are input, head 3.5, mlp 3, ... and logits, got {unknown[:3]}")
    nodes = {name: _node(name, place(name, last), last, trial) for name in ordered}
    named = {
        "slug": slug,
        "scan": "actkit" if trial is None else trial.model.name,
        "transcoder_list": [],
        "prompt_tokens": tokens,
        "prompt": about["task"] if trial is None else trial.prompt(0),
        "node_threshold": None,
        "schema_version": 1,
        "info": {**about, **stamp(None if trial is None else trial.model)},
    }
    asked = {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""}
    found = [
        {"source": nodes[a]["node_id"], "target": nodes[b]["node_id"], "weight": weight}
        for (a, b), weight in links.items()
    ]
    made = {"metadata": named, "qParams": asked, "nodes": [*nodes.values()], "links": found}
    return as_json(made)


def _node(name: str, at: tuple[int, int, int], last: int, trial: "Trial | None") -> dict[str, Any]:
    """Return one node; its id is layer, feature and position."""
    layer, rank, index = at
    end = 0 if trial is None else len(trial.words) - 1
    if layer < 0:
        token = 0 if trial is None else int(_ids(trial)[0])
        facts = {"layer": "E", "feature": 0, "ctx_idx": 0, "feature_type": "embedding"}
        key = f"E_{token}_0"
    elif layer > last:
        token, chance = _target(trial)
        facts = {
            "layer": str(last + 2),
            "feature": token,
            "ctx_idx": end,
            "feature_type": "logit",
            "is_target_logit": True,
            "token_prob": chance,
        }
        key, name = f"{last + 2}_{token}_{end}", _spoken(trial, token, chance)
    else:
        feature = index if rank == HEAD else MLP
        kind = "attention head" if rank == HEAD else "mlp"
        facts = {"layer": str(layer), "feature": feature, "ctx_idx": end, "feature_type": kind}
        key = f"{layer}_{feature}_{end}"
    plain = {"token_prob": 0.0, "is_target_logit": False, "run_idx": 0, "reverse_ctx_idx": 0}
    return {"node_id": key, "jsNodeId": key, "clerp": name, **plain, **facts}


def _ids(trial: "Trial") -> Any:
    """Return the token ids of the first clean prompt."""
    return torch.as_tensor(trial.clean.tokens)[0][trial.valid("clean")[0]]


def _target(trial: "Trial | None") -> tuple[int, float]:
    """Return the answer to the first clean prompt and its probability; 0 and 0 if there is none."""
    if trial is None or trial.plus is None:
        return 0, 0.0
    token = int(trial.plus[0, 0])
    return token, float(trial.clean_logits[0, -1].float().softmax(-1)[token])


def _spoken(trial: "Trial | None", token: int, chance: float) -> str:
    if trial is None or trial.plus is None:
        return "logits"
    tokenizer = trial.model.tokenizer
    word = token_label(tokenizer, token)
    return f'Output "{word}" (p={chance:.3f})'
