"""Rows of token ids to the arguments of one call: padding, positions, and what must hold.

Shapes: B batch, T tokens.
"""

import inspect
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.compat import prompt_learning
from actkit.core.errors import InputError
from actkit.core.progress import note
from actkit.core.run.forms import device_of, first_of_sentences
from actkit.core.run.padding import LONG, Proof, Verdict, longer_lengths, ordinary_ids, repeated

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx")


class TokenCalls:
    """How one network is called with rows of token ids.

    Args:
        module: The network.
        tokenizer: Knows what to pad with; None if there is none.

    Attributes:
        inner: The network of transformers inside a wrapper, the network itself if there is none.
        note: Why rows of different lengths run one by one; empty if they do not, or before the
            first of them.
    """

    def __init__(self, module: nn.Module, tokenizer: Any) -> None:
        """Look for the network of transformers."""
        self._module, self._tokenizer, self.note = module, tokenizer, ""
        self._ended: dict[int, Verdict] = {}
        known = (m for m in module.modules() if hasattr(type(m), "base_model_prefix"))
        self.inner: Any = next(known, module)

    def padded(self, rows: Sequence[Sequence[int]], side: str) -> tuple[Tensor, Tensor]:
        """Return rows as (B, T) ids, padded on a side, and their (B, T) mask of ones and zeros."""
        ids = torch.full((len(rows), max(map(len, rows))), self._pad_id())
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            own = slice(len(row)) if side == "right" else slice(-len(row), None)
            ids[i, own], mask[i, own] = torch.tensor(row), 1
        device = device_of(self._module)
        return ids.to(device), mask.to(device)

    def arguments(self, rows: Sequence[Sequence[int]], side: str) -> Arguments:
        """Return the arguments of a call with rows of tokens, on the network's device."""
        ids, mask = self.padded(rows, side)
        named = {"input_ids": ids, "attention_mask": mask}
        if first_of_sentences(self._module) is not None:
            return (named,), {}
        taken = inspect.signature(self._module.forward).parameters
        any_name = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        if not mask.all() and self._hears_positions():
            named["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0)
        kwargs = {k: v for k, v in named.items() if any_name or k in taken}
        return ((), kwargs) if "input_ids" in kwargs else ((ids,), kwargs)

    def verdict_for(self, rows: Sequence[Sequence[int]]) -> Verdict:
        """Return where these rows may be padded.

        Some networks (CLIP's text tower) read a text at the token that ends it, and so can be
        padded only if every row ends with that token: the proof is made once more with it.
        """
        verdict, ends = self.verdict, {row[-1] for row in rows}
        if verdict.side == "alone" and len(ends) == 1:
            (end,) = ends
            if end not in self._ended:
                self._ended[end] = self._proven(end)
            verdict = self._ended[end]
        if verdict.side == "alone" and not self.note:
            self.note = f"rows of different lengths run one by one: {verdict.reason}"
            note(f"{type(self._module).__name__}: {self.note}")
        return verdict

    @cached_property
    def verdict(self) -> Verdict:
        """Prove where the network may be padded; its mode, hooks and buffers stay as they are."""
        return self._proven()

    def _proven(self, end: int | None = None) -> Verdict:
        """Run a proof, and where tokens are put into pieces one more on rows that fill a piece."""
        proof = self._proof(end)
        verdict = proof.verdict()
        lengths = longer_lengths(text_config(self.inner), self.context_length())
        if verdict.side == "alone" or lengths is None:
            return verdict
        ids = repeated(proof.ids, lengths[0])
        return replace(proof, ids=ids, lengths=lengths).verdict()

    def _proof(self, end: int | None = None) -> Proof:
        """Return a proof with rows of tokens that mean nothing special, but for what ends them."""
        config, num = text_config(self.inner), LONG + 1
        ids = ordinary_ids(self._module, config, self._tokenizer, num)
        can_generate = getattr(self._module, "can_generate", None)
        return Proof(
            getattr(self._module, "_orig_mod", self._module),  # compiled, it would be once more
            [i for i in ids if i != end][:LONG][: self.context_length()],
            self.arguments,
            writes=bool(callable(can_generate) and can_generate()) and not self.encoder_decoder,
            encoder_decoder=self.encoder_decoder,
            end=end,
        )

    @property
    def encoder_decoder(self) -> bool:
        """Say whether a decoder reads what an encoder makes of the tokens."""
        return bool(getattr(getattr(self.inner, "config", None), "is_encoder_decoder", False))

    def _pad_id(self) -> int:
        """Return the id to pad with: the tokenizer's, else the network's, else 0."""
        sources = (self._tokenizer, text_config(self.inner))
        found = (getattr(source, "pad_token_id", None) for source in sources)
        return next((i for i in found if isinstance(i, int) and i >= 0), 0)

    def _hears_positions(self) -> bool:
        """Say whether positions are an argument that counts from 0."""
        if prompt_learning(self._module) is not None:
            return False
        outer = inspect.signature(self._module.forward).parameters
        passed = "position_ids" in outer or any(p.kind is p.VAR_KEYWORD for p in outer.values())
        heard = "position_ids" in inspect.signature(self.inner.forward).parameters
        return passed and heard and self._padding_position is None

    @cached_property
    def _padding_position(self) -> int | None:
        """Return the position of padding where the others count on from it, as in RoBERTa.

        Such networks find positions from the ids, and need no telling.
        """
        for path, module in self._module.named_modules():
            if path.endswith("position_embeddings") and isinstance(module, nn.Embedding):
                return module.padding_idx
        return None

    @cached_property
    def reads_ids(self) -> bool:
        """Say whether the network's first argument is token ids."""
        return next(iter(inspect.signature(self.inner.forward).parameters), "") == "input_ids"

    def check(self, length: int, lowest: int, highest: int) -> None:
        """Refuse rows of tokens that are too long, or hold unknown ones."""
        most = self.context_length()
        if most is not None and length > most:
            raise InputError(
                f"a prompt must fit the context of {most} tokens, got {length}; nothing was cut off"
            )
        size = getattr(text_config(self.inner), "vocab_size", None)
        if size is not None and not 0 <= lowest <= highest < size:
            raise InputError(f"token ids must be 0 to {size - 1}, got {lowest} to {highest}")

    def context_length(self) -> int | None:
        """Return how many tokens fit; None where positions are relative or not used."""
        config = text_config(self.inner)
        if getattr(config, "model_type", "") in ("t5", "mt5", "umt5"):
            return None
        found = (getattr(config, name, None) for name in _LENGTHS)
        length = next((n for n in found if isinstance(n, int) and n > 0), None)
        if length is not None and self._padding_position is not None:
            return length - self._padding_position - 1
        return length


def text_config(module: nn.Module) -> Any:
    """Return the configuration of what reads text, None if there is none."""
    config = getattr(module, "config", None)
    reader = getattr(config, "get_text_config", None)
    return reader() if callable(reader) else config
