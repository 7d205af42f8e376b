"""Which side of a ragged batch may be padded: proven on the network itself.

Names, classes and `is_causal` flags do not tell. What tells is a short row that comes out of a
padded batch as it does alone.

Shapes: B batch, T tokens.
"""

import contextvars
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

LONG, SHORT = 8, 3
"""Tokens of the rows of a proof; between them is an odd number, which pooling by two notices."""
MARGIN, COARSE = 200, 2
"""Rounding steps by which a row may differ, relative to its length as a vector: of float32, and
of numbers of 16 bits, which leave less room between rounding and a mistake."""
NOISE, MOST = 4, 40
"""How much more than a row without padding, in the same batch, a padded one may differ; and than
rounding on its own, since what differs by more (networks that draw numbers) proves nothing."""
REFUSALS = (
    ArithmeticError, AssertionError, AttributeError, IndexError, KeyError, NotImplementedError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What networks raise on inputs that they do not take."""
LONGEST_PIECE = 256
"""Tokens of the longest piece that a proof fills."""
_PIECES = re.compile(r"compress|kpool|block_size|attention_chunk|chunk_length")
_TABLES = ("_parameters", "_buffers", "_modules")

Values = Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """How a network's ragged batches run.

    Attributes:
        side: "left" or "right", where padding is exact; "alone" if it is on neither side, so that
            rows run one by one.
        usual: The side on which rows that ran alone are put together.
        reason: Why rows run alone; empty otherwise.
    """

    side: str
    usual: str
    reason: str = ""


@dataclass
class Proof:
    """The runs that decide where a network may be padded.

    Args:
        module: The network.
        ids: Token ids that it knows and that mean nothing special, as many as the long row has.
        call: From rows of ids and a side to positional and keyword arguments.
        writes: The network continues texts; it is padded on the left if it can be.
        encoder_decoder: A decoder reads what an encoder made of the tokens.
        end: A token that ends every row, if there must be one.
        lengths: Tokens of the long and of the short row.
    """

    module: nn.Module
    ids: Sequence[int]
    call: Callable[[list[list[int]], str], tuple[tuple[Any, ...], dict[str, Any]]]
    writes: bool
    encoder_decoder: bool
    end: int | None = None
    lengths: tuple[int, int] = (LONG, SHORT)
    _bound: float = field(init=False, default=0.0)

    def verdict(self) -> Verdict:
        """Run a short row alone and beside a long one, padded on either side.

        The short row is the beginning of the long one, so that the long row tells whether the
        network reads what comes later: one that does not is a decoder, whatever it is called,
        and is padded on the left if that is exact too.
        """
        order = ("left", "right") if self.writes else ("right", "left")
        # hooks of edits and recordings belong to the context they were made in: none acts here
        return contextvars.Context().run(self._tried, order)

    def _tried(self, order: tuple[str, str]) -> Verdict:
        if len(self.ids) < self.lengths[0]:
            said = f"a proof needs {self.lengths[0]} tokens, this network takes {len(self.ids)}"
            return self._neither(order[0], said)
        rows = [list(self.ids[:length]) for length in self.lengths]
        if self.end is not None:
            rows = [[*row[:-1], self.end] for row in rows]
        with undisturbed(self.module), torch.no_grad():
            self._bound = error_bound(self.module)
            try:
                alone = self._values(rows[1:], "right")
            except REFUSALS as error:
                return self._neither(order[0], f"tokens alone are refused: {_line(error)}")
            found, reasons = {}, []
            for side in order:
                try:
                    values = self._values(rows, side)
                except REFUSALS as error:
                    reasons.append(f"padded on the {side}: {_line(error)}")
                    continue
                exact = self._exact(values, alone, side)
                found[side] = exact = exact or self._within_noise(rows, values, alone, side)
                decoder = not self.encoder_decoder and self._blind_to_later(values, alone)
                if exact and not (decoder and side == "right" and order[0] == "right"):
                    return Verdict(side=side, usual=side)
        usual = next((side for side in ("left", "right") if found.get(side)), "")
        if usual:
            return Verdict(side=usual, usual=usual)
        said = "; ".join(reasons) or "a short row differs on both sides from itself alone"
        return self._neither(order[0], said)

    def _neither(self, usual: str, reason: str) -> Verdict:
        return Verdict(side="alone", usual=usual, reason=reason)

    def _values(self, rows: list[list[int]], side: str) -> Values:
        """Return all numbers that the network makes of the rows, as a flat list of tensors."""
        args, kwargs = self.call(rows, side)
        try:
            return list(_tensors(self.module(*args, **kwargs)))
        except REFUSALS:
            if not self.encoder_decoder:
                raise
        start = torch.tensor(self.ids[:2]).repeat(len(rows), 1)
        device = next(v.device for v in (*args, *kwargs.values()) if isinstance(v, Tensor))
        kwargs = {**kwargs, "decoder_input_ids": start.to(device)}
        return list(_tensors(self.module(*args, **kwargs)))

    def _exact(self, batch: Values, alone: Values, side: str, bound: float | None = None) -> bool:
        """Say whether the short row, the second of the batch, is what it is alone."""
        bound = self._bound if bound is None else bound
        pairs = [self._short_row(b, a, side) for b, a in zip(batch, alone, strict=False)]
        known = [pair for pair in pairs if pair is not None]
        return bool(known) and all(_distance(got, want) <= bound for got, want in known)

    def _within_noise(self, rows: list[list[int]], batch: Values, alone: Values, side: str) -> bool:
        """Say whether the short row is no farther from itself alone than rounding explains.

        The long row has no padding, so what it differs from itself alone is rounding: of kernels
        that sum in another order for another batch, as those of accelerators do.
        """
        pairs = zip(batch, self._values(rows[:1], side), strict=False)
        noise = [_distance(b[0], a[0]) for b, a in pairs if b.shape[1:] == a.shape[1:]]
        bound = min(max(noise, default=0.0) * NOISE, self._bound * MOST, 0.1)
        return bound > self._bound and self._exact(batch, alone, side, bound)

    def _blind_to_later(self, batch: Values, alone: Values) -> bool:
        """Say whether the long row's first tokens are what they are without the others."""
        both = [(b, a) for b, a in zip(batch, alone, strict=False) if self._by_token(b, a)]
        same = None if self.end is None else -1  # the short row's end is not the long one's
        pairs = [(b[0, : a.shape[1]][:same], a[0, :same]) for b, a in both]
        return bool(pairs) and all(_distance(got, want) <= self._bound for got, want in pairs)

    def _by_token(self, batch: Tensor, alone: Tensor) -> bool:
        """Say whether tensors hold one row for each token, in the batch and alone."""
        if not batch.dim() == alone.dim() > 1 or (len(batch), len(alone)) != (2, 1):
            return False
        long, short = self.lengths
        more = batch.shape[1] - alone.shape[1]
        return more == long - short and batch.shape[2:] == alone.shape[2:]

    def _short_row(self, batch: Tensor, alone: Tensor, side: str) -> tuple[Tensor, Tensor] | None:
        """Return the short row in the batch and alone, None where they cannot be compared.

        What has more columns than tokens begins with those that the network itself puts in front.
        """
        _, short = self.lengths
        if self._by_token(batch, alone):
            if side == "right":
                return batch[1, : alone.shape[1]], alone[0]
            return batch[1, -short:], alone[0, -short:]
        if batch.shape[1:] == alone.shape[1:] and (len(batch), len(alone)) == (2, 1):
            return batch[1], alone[0]
        return None


def _distance(got: Tensor, want: Tensor) -> float:
    """Return the length of a difference relative to that of what is wanted, NaN if there is one."""
    got, want = got.double(), want.double()
    error = torch.where(got == want, 0.0, got - want).norm()  # infinities may be equal
    length = want[want.isfinite()].norm()
    return float(error / length) if length else float(error)


def error_bound(module: nn.Module) -> float:
    """Return by how much rounding may change a row, relative to its length as a vector.

    2e-5 for float32 and float64, whose networks round to float32 here and there; two steps of
    16-bit numbers (.002, .016), and of products that are rounded to them (TF32).
    """
    dtypes = {p.dtype for p in module.parameters() if p.is_floating_point()}
    step = max([torch.finfo(dtype).eps for dtype in dtypes], default=0.0)
    if torch.get_float32_matmul_precision() != "highest":
        step = max(step, 2.0**-10)
    single = torch.finfo(torch.float32).eps
    return COARSE * step if step > single else MARGIN * single


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and leave it and the random state as they were.

    Whatever modules set while they run (BigBird gives up sparse attention for good once it sees a
    short text) is put back, mode flags included.
    """
    before = [
        (m, dict(vars(m)), {k: dict(vars(m)[k]) for k in _TABLES if k in vars(m)})
        for m in module.modules()
    ]
    devices = {p.device.index for p in module.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[d for d in devices if d is not None]):
        try:
            for m, _, _ in before:
                m.training = False
            yield
        finally:
            for m, attributes, tables in before:
                _put_back(vars(m), attributes)
                for name, table in tables.items():
                    _put_back(vars(m)[name], table)


def _put_back(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of what a network returned; caches hold none of them."""
    if isinstance(output, Tensor):
        if output.is_floating_point() and output.dim():
            yield output
    elif isinstance(output, Mapping):
        yield from (t for value in output.values() for t in _tensors(value))
    elif isinstance(output, tuple | list):
        yield from (t for value in output for t in _tensors(value))


def longer_lengths(config: Any, most: int | None) -> tuple[int, int] | None:
    """Return lengths of rows that show where a network puts its tokens into pieces of one size.

    Keys that are compressed four at a time, from the first column on, are other keys behind
    padding; but only rows that fill a piece show it. Names of the configuration propose how long
    a piece may be, the proof decides.

    Args:
        config: Of what reads text; None if there is none.
        most: How many tokens fit; None if any number does.

    Returns:
        Tokens of the long and of the short row; None if no piece is told, or none fits.
    """
    sizes = set(_sizes_of_pieces(getattr(config, "__dict__", {})))
    room = LONGEST_PIECE if most is None else min(LONGEST_PIECE, most - 4 * LONG)
    fitting = [n for n in sizes if 2 <= n <= room]
    if not fitting:
        return None
    short = max(fitting) + SHORT
    gaps = range(LONG - SHORT, 4 * LONG - SHORT, 2)  # odd: pooling by two notices
    gap = next((g for g in gaps if all(g % n for n in fitting)), LONG - SHORT)
    return short + gap, short


def _sizes_of_pieces(settings: Mapping[str, Any], known: bool = False) -> Iterator[int]:
    for name, value in settings.items():
        named = known or _PIECES.search(str(name)) is not None
        if named and isinstance(value, Mapping):
            yield from _sizes_of_pieces(value, known=True)
        elif named and type(value) is int:
            yield value


def repeated(ids: Sequence[int], num: int) -> list[int]:
    """Return so many ids of a few, in an order that does not soon begin anew."""
    return [ids[i * (i + 1) // 2 % len(ids)] for i in range(num)]


def ordinary_ids(module: nn.Module, config: Any, tokenizer: Any, num: int = LONG) -> list[int]:
    """Return different token ids of a vocabulary's first 4096, none of which is special.

    There are fewer if the vocabulary is small, and none if its size cannot be known.
    """
    tables = (m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding))
    size = getattr(config, "vocab_size", None) or next(tables, 0)
    special = {*getattr(tokenizer, "all_special_ids", ()), 0, 1, 2, 3} | _special(config)
    known = [i for i in range(min(size, 4096)) if i not in special]
    step = max(1, len(known) // num)
    return known[step // 2 :: step][:num]


def _special(config: Any) -> set[int]:
    """Return the ids that a configuration gives a meaning, also inside those of its parts."""
    to_dict = getattr(config, "to_dict", None)
    return set(_marked(to_dict())) if callable(to_dict) else set()


def _marked(settings: Mapping[str, Any]) -> Iterator[int]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _marked(value)
        elif "token" in str(name):
            several = value if isinstance(value, list | tuple) else [value]
            yield from (v for v in several if type(v) is int)


def _line(error: BaseException) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:120]}"
