"""Add to the one MLP neuron that raises a word most, the baseline of adaptive steering.

Shapes: B batch, T tokens, F neurons of a layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any

import torch
from torch import Tensor

from actkit.catalog import method
from actkit.core.digest import digest
from actkit.core.edits.edit import Edit, add
from actkit.core.edits.where import Where
from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.core.sweep.stream import batches
from actkit.model import Model
from actkit.steer._base import Steerer, Strength


@method(source="Sharma and Raman 2025, arXiv:2506.18887")
@dataclass
class TopNeuron(Steerer):
    """Static neuron attribution: push the neuron with the largest gradient of a word's log P.

    The gradient is that of the mean log-probability of the word after the prompts, with respect
    to the activations at the prompts' last tokens. The strength times `delta` is added to the
    neuron found, at every token. As the paper finds, this is brittle.

    It is fitted on prompts, a list of texts.

    Args:
        word: What should come next; one token, with its space if it has one.
        delta: What is added at strength 1.

    Attributes:
        neuron_: Layer and unit.
        gradient_: Nats by which log P of the word rises for each 1 that the neuron rises.

    Example:
        >>> import actkit as ak
        >>> top = TopNeuron(" Paris").fit(ak.open("smollm2"), ["The capital of France is"])
        >>> top.edits()[0].site.startswith("mlp_hidden."), top.gradient_ > 0
        (True, True)
    """

    word: str
    delta: float = 5.0
    neuron_: tuple[int, int] = field(init=False, repr=False, default=(0, 0))
    gradient_: float = field(init=False, repr=False, default=0.0)

    def _learn(self, model: Model, data: Sequence[str]) -> dict[str, Any]:
        if isinstance(data, str) or not len(data):
            raise InputError(f"prompts must be a list of texts, at least one, got {data!r}")
        token = self._token(model)
        self.gradient_ = -inf
        for name, gradient_F in self._gradients(model, list(data), token).items():
            if float(gradient_F.max()) > self.gradient_:
                self.gradient_ = float(gradient_F.max())
                self.neuron_ = (model.site(name).depth, int(gradient_F.argmax()))
        return {"prompts": len(data), "sha256": digest(list(data))}

    def _token(self, model: Model) -> int:
        ids = model.tokenizer(self.word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise InputError(f"the word must be one token, got {len(ids)} for {self.word!r}")
        return int(ids[0])

    def _gradients(self, model: Model, prompts: list[str], token: int) -> dict[str, Tensor]:
        """Return the (F,) gradient at each layer, the mean over prompts."""
        total: dict[str, Tensor] = {}
        for group in track(list(batches(prompts, 8)), "attributing neurons"):
            rec = model.run(group, "mlp_hidden.*", logits=True, grad=True)
            logp_B = rec.logits[:, -1].log_softmax(-1)[:, token]
            gradients = torch.autograd.grad(logp_B.sum(), list(rec.values()))
            for name, gradient_BTF in zip(rec, gradients, strict=True):
                own_F = gradient_BTF[:, -1].float().sum(0) / len(prompts)
                total[name] = total.get(name, 0) + own_F
        return total

    def _act(self, strength: Strength) -> list[Edit]:
        layer, unit = self.neuron_
        delta = torch.tensor([self.delta])
        return [add(f"mlp_hidden.{layer}", delta, strength, Where(units=[unit]))]
