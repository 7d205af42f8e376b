"""Read concepts from features, reason over them with rules, and steer what follows.

Shapes: N examples, B batch, T tokens, D width, F features, K features in use, C concepts,
G targets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import linear

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.edit import Edit
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.sweep.stream import batches
from actkit.model import Model
from actkit.steer._base import Steerer, Strength
from actkit.steer.controllers.activation_reasoner._concepts import FeatureConcept, labelled, learnt
from actkit.steer.controllers.activation_reasoner._reason import Reason
from actkit.steer.controllers.activation_reasoner._rules import Conjunction, parsed


@method(source="Helff et al. 2025, arXiv:2510.18184, section 3")
@dataclass
class ActivationReasoner(Steerer):
    """Concepts from a dictionary's features become propositions; what rules infer is steered.

    A concept holds where its score is above the threshold of the best balanced accuracy on
    labelled examples: locally at a token, globally at any token but the first. Rules are gone
    through until nothing more follows. From the prompt's end on, the directions of the targets
    that hold are added; a concept's direction is what its features write more in examples with
    it. Differs from the paper: one threshold serves tokens and texts, NOT means "does not
    follow", and steering writes as much as examples do, not a share of the state's length.

    `fit` takes pairs (input, names of the concepts in it).

    Args:
        site: Where the features are read and written.
        encoder_FD: Features are relu(x encoder^T + bias): of a sparse autoencoder or of probes.
        decoder_FD: What each feature writes.
        concepts: By name.
        rules: Such as "golden AND gate AND NOT fence IMPLIES bridge AND california".
        bias_F: Zeros if None.
        targets: Weights of the names to steer, negative to suppress; 1 for every concept that
            rules infer if None.
        conjunction: The confidence of an AND: the least sure part, or the "product" of the parts.

    Attributes:
        reason_: The fitted controller.

    Example:
        >>> import actkit as ak
        >>> net = ak.open(torch.nn.Sequential(torch.nn.Identity()))
        >>> rows = torch.tensor([[[0.0, 0], [1, 0]], [[0, 0], [0, 1]]])
        >>> ar = ActivationReasoner(
        ...     "0:out", torch.eye(2), torch.eye(2),
        ...     {"wet": FeatureConcept([0]), "cold": FeatureConcept([1])}, ["wet IMPLIES cold"],
        ... ).fit(net, [(rows[:1], ["wet"]), (rows[1:], ["cold"])])
        >>> [found.confidence for found in ar.reason(net, rows)]
        [{'wet': 1.0, 'cold': 1.0}, {'cold': 1.0}]
    """

    site: str
    encoder_FD: Tensor = field(repr=False)
    decoder_FD: Tensor = field(repr=False)
    concepts: Mapping[str, FeatureConcept]
    rules: Sequence[str]
    bias_F: Tensor | None = field(repr=False, default=None)
    targets: Mapping[str, float] | None = None
    conjunction: Conjunction = "min"
    reason_: Reason = field(init=False, repr=False)

    def active(self, model: Model, inputs: Any) -> Tensor:
        """Return which of the concepts hold at each token, (B, T, C) bool."""
        rec = model.run(inputs, record=self.site)
        x_BTD, rows = rec[self.site], rec.rows_of(self.site)
        return self.reason_.like(x_BTD, "BTD").active(x_BTD, rows.valid, rows.position)

    def reason(
        self, model: Model, inputs: Any, scope: Literal["global", "local"] = "global"
    ) -> list[Any]:
        """Return what follows for each row, or "local" for each token of each: `Closure`s."""
        active_BTC = self.active(model, inputs)
        if scope == "local":
            return [[self.reason_.closure(active_C) for active_C in row] for row in active_BTC]
        return [self.reason_.closure(active_C) for active_C in active_BTC.any(1)]

    def _learn(self, model: Model, data: Any) -> dict[str, Any]:
        rules = [parsed(text) for text in self.rules]
        heads = dict.fromkeys((n for rule in rules for n in rule.then if n in self.concepts), 1.0)
        targets = heads if self.targets is None else dict(self.targets)
        if unknown := sorted(set(targets) - set(self.concepts)):
            raise InputError(f"targets must be concepts, got {unknown}")
        inputs, labels_NC = labelled(data, self.concepts)
        states = self._states(model, inputs)
        encoder_FD, decoder_FD = (
            x.to(states[0].device) for x in (self.encoder_FD, self.decoder_FD)
        )
        bias_F = encoder_FD.new_zeros(len(encoder_FD)) if self.bias_F is None else self.bias_F
        bias_F = bias_F.to(encoder_FD.device)

        def acts(features: Sequence[int] | slice) -> list[Tensor]:
            encoder_KD, bias_K = encoder_FD[features], bias_F[features]
            return [torch.relu(linear(x_TD, encoder_KD, bias_K)) for x_TD in states]

        reader = learnt(self.concepts, acts, labels_NC)
        directions_CD = reader.writes_CK @ decoder_FD[reader.features]
        names = list(self.concepts)
        directions = [weight * directions_CD[names.index(n)] for n, weight in targets.items()]
        fields: dict[str, Any] = {
            "encoder_KD": encoder_FD[reader.features],
            "bias_K": bias_F[reader.features],
            "weights_CK": reader.weights_CK,
            "directions_GD": torch.stack(directions) if directions else decoder_FD[:0],
            "concepts": tuple(names),
            "trees": reader.trees,
            "cuts": reader.cuts,
            "sureness": reader.sureness,
            "rules": tuple(self.rules),
            "targets": tuple(targets),
            "conjunction": self.conjunction,
        }
        self.reason_ = Reason(**fields, key=f"reason-{digest(fields)[:12]}")
        return {"sha256": digest([list(inputs), labels_NC]), "examples": len(inputs)}

    def _act(self, strength: Strength) -> list[Edit]:
        if not self.reason_.targets:
            raise InputError(f"there must be a target, rules infer no concept: {list(self.rules)}")
        return [Edit(self.site, replace(self.reason_, strength=strength), Where(tokens="last"))]

    def _states(self, model: Model, inputs: Sequence[Any]) -> list[Tensor]:
        """Return (T, D) states of each example, of all tokens but the first."""
        found: list[Tensor] = []
        for group in track(list(batches(inputs, 8)), "reading examples"):
            rec = model.run(group, record=self.site)
            rows = rec.rows_of(self.site)
            later_BT = rows.valid & (rows.position > 0)
            found += [x_TD[own].float() for x_TD, own in zip(rec[self.site], later_BT, strict=True)]
        sizes = [len(x_TD) for x_TD in found]
        if len(found) != len(inputs) or not min(sizes):
            raise InputError(
                "each example must be one row of 2 tokens or more, got "
                f"{len(found)} rows for {len(inputs)}, the shortest of {min(sizes) + 1}"
            )
        return found
