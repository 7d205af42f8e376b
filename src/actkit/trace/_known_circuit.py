"""A network whose circuit is known.

Shapes: L layers, H heads.
"""

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from actkit.core.edits.edit import Edit, swap
from actkit.core.edits.edit import set as put
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace._causal import Places, pairs_of, said
from actkit.trace._edges import roc_auc
from actkit.trace._parts import Part, as_parts
from actkit.trace._scores import Scores
from actkit.trace._task import Task
from actkit.worlds.causal import Causal


@dataclass(frozen=True)
class KnownCircuit:
    """A network, the program that it computes, and the heads that compute it.

    Attributes:
        model: The network.
        program: What it computes; `program.pairs()` draws pairs of prompts.
        places: The parts that compute each variable; all other heads are outside of the circuit.

    Example:
        >>> from actkit.trace.circuits.interpbench import wired_pointer
        >>> circuit = wired_pointer()
        >>> sorted(circuit.heads), len(circuit.edges)
        ([(0, 3), (1, 2)], 4)
    """

    model: Model
    program: Causal
    places: Places

    @property
    def heads(self) -> set[tuple[int, int]]:
        """Return layer and index of each head of the circuit."""
        parts = [part for group in self.places.values() for part in group]
        return {(p.layer, p.head) for p in parts if p.head is not None}

    @property
    def inside(self) -> Tensor:
        """Return which heads are of the circuit, (L, H) bool."""
        shape = as_parts("heads").shape(self.model, 0)
        return torch.tensor(
            [[(i, j) in self.heads for j in range(shape[1])] for i in range(shape[0])]
        )

    def task(self, num: int = 16, seed: int = 0) -> Task:
        """Return pairs of prompts whose answers differ."""
        return pairs_of(self.program, num, seed)

    @property
    def edges(self) -> set[tuple[str, str]]:
        """Return the circuit's edges as (sender, receiver): "input", "head 0.3", "logits"."""
        *_, answer = self.program.nodes
        ends = {n: [f"head {p.layer}.{p.head}" for p in group] for n, group in self.places.items()}
        last = [answer] if answer in ends else self.program.reads[answer]
        pairs = [(before, name) for name in ends for before in self.program.reads[name]]
        ends |= {"input": ["input"], "logits": ["logits"]}
        pairs += [(name, "logits") for name in last]
        return {edge for a, b in pairs for edge in product(ends[a], ends[b])}

    def reference(self, scores: Scores) -> Tensor:
        """Return which entries of scores, of heads or of edges, are of the circuit.

        Raises:
            InputError: They are of other parts, or of edges to queries, keys and values apart.
        """
        if scores.axes == ("layer", "head"):
            return self.inside
        receivers, senders = scores.names if scores.axes == ("receiver", "sender") else ([], [])
        if not {receiver for _, receiver in self.edges} <= set(receivers):
            raise InputError(
                "scores must be of heads, parts='heads', or of edges between whole heads, "
                f"split_qkv=False, got {scores.parts} along {' and '.join(scores.axes)}"
            )
        return torch.tensor([[(s, r) in self.edges for s in senders] for r in receivers])

    def auc(self, scores: Scores) -> float:
        """Return the area under the ROC curve of the sizes of scores of heads or edges.

        It is 1 if all of the circuit are ahead of all others, and 0.5 by chance.
        """
        return roc_auc(scores.values, self.reference(scores))

    def effects(
        self, ablation: str = "resample", parts: str = "heads", num: int = 256, seed: int = 0
    ) -> Tensor:
        """Return the accuracy that is lost when each part alone is ablated, (L, H) for heads.

        Args:
            ablation: "resample": its output comes from another prompt; "mean": it is the mean
                over prompts, at each position.
            parts: "heads", "mlps" or "attns".
            num: Number of prompts.
            seed: Of the prompts.
        """
        if ablation not in ("resample", "mean"):
            raise InputError(f"ablation must be 'resample' or 'mean', got {ablation!r}")
        generator = torch.Generator().manual_seed(seed)
        base, other = (self.program.draw(num, generator) for _ in range(2))
        asked = as_parts(parts)
        rec = self.model.run(other, record=[site.name for site in asked.sites(self.model)])

        def ablated(part: Part) -> Edit:
            if ablation == "resample":
                return swap(part.site, rec, part.where)
            mean = rec[part.site].mean(0, keepdim=True)
            return put(part.site, mean.expand_as(rec[part.site]), part.where)

        variants = [[ablated(part)] for part in asked.each(self.model, 0)]
        said_VB = self.model.sweep(base, [[], *variants], said).cpu()
        right_V = (said_VB == self.program.answers(base)).float().mean(-1)
        return (right_V[0] - right_V[1:]).reshape(asked.shape(self.model, 0))
