"""Finds the points of a network that no table speaks for: names propose, numbers decide.

Names propose which children of a block are its attention and its MLP, and which maps are their
projections. The network reads two rows, in evaluation mode, and a point is kept only if what
flowed there is what the point means. Blocks that are built alike are judged together, in each of
them; the middle of the stream and attention's insides must also be editable where they were found.
Whatever fails is refused in those blocks, with the reason.

Shapes: L blocks, B batch, T tokens, D width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from actkit.core.edits.edit import apply, scale
from actkit.core.errors import SiteError
from actkit.core.run.context import ForwardContext
from actkit.core.run.taps import Tap
from actkit.core.sites.dry_run import DryRun, adds_up, is_norm, same, watched
from actkit.core.sites.proposal import Proposal
from actkit.core.sites.site import POINTS, Place, Site, Stack, out, stack_sites

NO_SUM = "what attention and MLP returned did not add up to what the block returned"
NO_MIX = "no map of it was seen to read each head's mix of values, without a norm or gate between"
REASONS = {
    "embeddings": "no embedding of the token ids was seen",
    **dict.fromkeys(("attn_in", "mlp_in"), "no map inside read what the module as a whole read"),
    **dict.fromkeys("qkv", "no map of it was seen that fits the heads"),
    "z": NO_MIX,
    **dict.fromkeys(("attn_scores", "attn_probs"), "attention is computed where it cannot be read"),
    **dict.fromkeys(("attn_out", "mlp_out"), NO_SUM),
    "resid_mid": "no module received the stream after attention as such",
    **dict.fromkeys(("mlp_pre", "mlp_gate", "mlp_hidden"), "no map in the MLP was seen to be it"),
    "final_norm": "no norm of the last block's output was seen",
    "logits": "the network returned no logits for each token",
}
NO_EXPERTS = "experts are not looked for: read them by module path"


def found_stack(network: nn.Module, blocks: str, number: int) -> Stack:
    """Return the stack, with every point checked, of a network that reads ids, images or sound.

    Args:
        network: The network.
        blocks: Path of the blocks, with "{}" where the index goes.
        number: How many they are.

    Raises:
        ValueError: The blocks hand on no (B, T, D) stream from one to the next.
    """
    dry_run = DryRun(network, blocks, number)
    if dry_run.again:
        raise ValueError("its blocks run more than once in one pass")
    stream, after = _stream(dry_run)
    proposals = [Proposal(g, stream, after) for g in dry_run.groups()]
    ends, sizes = _ends(dry_run, after[-1])
    sizes |= {"blocks": blocks, "num_blocks": number, "width": stream.shape[-1]}
    parts = [Stack(**(sizes | p.sizes), places=ends | p.places) for p in proposals]
    owners = {i: k for k, p in enumerate(proposals) for i in p.group.indices}
    resting = [i for i in range(number) if i not in owners]
    owners |= dict.fromkeys(resting, len(parts))
    if resting:
        silent = type(network.get_submodule(dry_run.blocks[resting[0]])).__name__
        what = "".join(dry_run.feed) or "token ids"
        reason = f"this {silent} does not run where the network reads {what} alone"
        parts.append(Stack(**sizes, places={}, lacks=dict.fromkeys(POINTS, reason)))
    try:
        firm = _firm(network, _joined(parts, owners), owners)
    except SiteError:  # a kernel returns something else than what was read beside it gives
        parts = [replace(part, attention="") for part in parts]
        firm = _firm(network, _joined(parts, owners), owners)
    parts = [_with(part, firm[k]) for k, part in enumerate(parts)]
    for k, part in enumerate(parts[: len(proposals)]):
        own = [i for i, owner in owners.items() if owner == k]
        if part.attention and not _explicit_form_agrees(network, part, own, after[-1]):
            parts[k] = replace(part, attention="")
    pairs = zip(parts, proposals, strict=False)
    told = [_reasoned(part, proposal) for part, proposal in pairs]
    return _joined([*told, *parts[len(told) :]], owners)


def _stream(dry_run: DryRun) -> tuple[Tensor, Tensor]:
    """Return what the blocks that ran receive and what they return, (L, B, T, D) both."""
    ran = [dry_run.blocks[i] for i in dry_run.ran]
    sides = [[dry_run.value(b, side) for b in ran] for side in ("in", "out")]
    known = [[x for x in side if x is not None] for side in sides]
    most_ran = 2 * len(ran) > len(dry_run.blocks)
    if most_ran and all(_fits_stream(dry_run, side, len(ran)) for side in known):
        stream, after = (torch.stack(side) for side in known)
        if same(stream[1:], after[:-1]):
            _check_axes(dry_run, stream, after)
            return stream, after
    shapes = ", ".join(dict.fromkeys(str(tuple(x.shape)) for x in known[1])) or "no tensor"
    raise ValueError(
        f"its blocks hand on no (batch, token, width) stream: they return {shapes} where "
        f"{tuple(dry_run.read.shape)} was read"
    )


def _fits_stream(dry_run: DryRun, values: list[Tensor], number: int) -> bool:
    """Say whether as many values are (B, T, D) of one shape, with the rows that were read."""
    if len(values) != number:
        return False
    shape = values[0].shape
    if len(shape) != 3 or not values[0].is_floating_point():
        return False
    if {x.shape for x in values} != {shape}:
        return False
    if dry_run.ids is None:  # nothing that was read counts its tokens
        return shape[0] == len(dry_run.read)
    return shape[:2] == dry_run.read.shape


def _check_axes(dry_run: DryRun, stream: Tensor, after: Tensor) -> None:
    """Refuse a stream of images or sound whose rows and width are not proven."""
    if dry_run.ids is not None:
        return
    # nothing read has the stream's length, so its axes are proven apart
    width = getattr(getattr(dry_run.network, "config", None), "hidden_size", None)
    if stream.shape[-1] != width or stream.shape[-2] == width:
        shape = tuple(stream.shape[1:])
        raise ValueError(f"the last axis of its stream is not its hidden_size {width}: {shape}")
    if not _rows_are_inputs(dry_run, after[-1]):
        raise ValueError("the rows of its stream are not those of its inputs")


def _rows_are_inputs(dry_run: DryRun, after: Tensor) -> bool:
    """Say whether the first input alone has the first row of what both have."""
    values: list[Tensor] = []
    last = Site("last", place=Place(dry_run.blocks[dry_run.ran[-1]], "out"))
    tap = Tap(last, read=lambda site, x, context: values.append(x.clone()))
    watched(dry_run.network, [tap], {k: x[:1] for k, x in dry_run.feed.items()})
    alone, wanted = values[0], after[:1]
    bound = max(1e-3, 8 * torch.finfo(wanted.dtype).eps) * wanted.norm()
    return alone.shape == wanted.shape and bool((alone - wanted).norm() <= bound)


def _ends(dry_run: DryRun, after: Tensor) -> tuple[dict[str, Place], dict[str, Any]]:
    """Find embeddings, final norm and logits, and the sizes that go with them."""
    places: dict[str, Place] = {}
    sizes: dict[str, Any] = {}
    own = _input_embeddings(dry_run.network)
    words = 0
    for path, module in dry_run.outer.items():
        x, y = dry_run.value(path, "in"), dry_run.value(path, "out")
        # positions may be looked up by the ids too: the network says which it is
        first = "embeddings" not in places or module is own
        if isinstance(module, nn.Embedding) and same(x, dry_run.ids) and y is not None and first:
            places["embeddings"], words = out(path), module.num_embeddings
            sizes["embedding_width"] = y.shape[-1]
        if _is_final_norm(dry_run, path, module, after):
            places["final_norm"] = out(path)
    way, logits = dry_run.logits(words)
    if logits is not None:
        places["logits"] = out("", *way)
        sizes["vocabulary"] = logits.shape[-1]
    changed = {p: dry_run.overwritten([x.path], x.side) for p, x in places.items()}
    return {p: replace(x, overwritten=changed[p]) for p, x in places.items()}, sizes


def _is_final_norm(dry_run: DryRun, path: str, module: nn.Module, after: Tensor) -> bool:
    """Say whether a module norms what the last block returned, beside the blocks."""
    # a norm inside another part is that part's own
    beside = dry_run.blocks[0].startswith(path[: path.rfind(".") + 1])
    return beside and is_norm(module) and same(dry_run.value(path, "in"), after)


def _input_embeddings(network: Any) -> nn.Module | None:
    """Return what the network says its input embeddings are, None if it does not say."""
    try:
        found: nn.Module | None = network.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found


def _joined(parts: list[Stack], owners: Mapping[int, int]) -> Stack:
    """Return one stack of parts that share its blocks; the first speaks for most of them."""
    counts = [list(owners.values()).count(k) for k in range(len(parts))]
    main = counts.index(max(counts))
    others = {i: parts[k] for i, k in owners.items() if k != main}
    return replace(parts[main], others=others)


def _reasoned(part: Stack, proposal: Proposal) -> Stack:
    """Return a part that says why it lacks what it lacks."""
    reasons = dict.fromkeys(POINTS, NO_EXPERTS) | REASONS | proposal.reasons
    seen = ("attn_scores", "attn_probs") if part.attention else ()
    had = (*part.places, *seen)
    return replace(part, lacks={p: f"by structure: {reasons[p]}" for p in POINTS if p not in had})


def _with(stack: Stack, points: set[str]) -> Stack:
    """Return a stack that has only some of its points."""
    places = {p: place for p, place in stack.places.items() if p in points}
    seen = {"attn_scores", "attn_probs"} <= points
    return replace(stack, places=places, attention=stack.attention if seen else "")


def _firm(network: nn.Module, stack: Stack, owners: Mapping[int, int]) -> list[set[str]]:
    """Return each part's points of which every site was reached; the middle only if editable."""
    values: dict[str, Tensor] = {}

    def keep(site: Site, x: Tensor, _: ForwardContext) -> None:
        values[site.name] = x.clone()

    sites = [s for s in stack_sites(stack, "") if not s.refused]
    turned = [scale(s.name, -1.0) if s.name.startswith("resid_mid.") else None for s in sites]
    taps = [Tap(s, [e] if e else [], keep) for s, e in zip(sites, turned, strict=True)]
    watched(network, taps)
    found = []
    for k in range(max(owners.values()) + 1):
        own = [i for i, owner in owners.items() if owner == k]
        mine = {s.name: s.point for s in sites if s.layer is None or s.layer in own}
        lost = {point for name, point in mine.items() if name not in values}
        points = set(mine.values()) - lost
        found.append(points if _turned(values, own) else points - {"resid_mid"})
    return found


def _turned(values: Mapping[str, Tensor], blocks: list[int]) -> bool:
    """Say whether the stream, whose sign was turned in the middle of these blocks, went on so."""

    def of(point: str) -> Tensor | None:
        found = [values.get(f"{point}.{i}") for i in blocks]
        known = [x for x in found if x is not None]
        return torch.stack(known) if len(known) == len(found) else None

    stream, attn = of("resid_pre"), of("attn_out")
    if stream is None or attn is None:
        return False
    return adds_up(of("resid_post"), -stream, -attn, of("mlp_out"))


def _explicit_form_agrees(
    network: nn.Module, part: Stack, blocks: list[int], wanted: Tensor
) -> bool:
    """Say whether attention computed from what was read is what the kernel computes."""
    values: list[Tensor] = []
    sites = {s.name: s for s in stack_sites(part, "") if not s.refused}
    probs = [sites[f"attn_probs.{i}"] for i in blocks]
    taps = [Tap(s, [apply(s.name, torch.clone)]) for s in probs]
    last = sites[f"resid_post.{part.num_blocks - 1}"]
    watched(network, [*taps, Tap(last, read=lambda site, x, context: values.append(x.clone()))])
    tolerance = max(1e-4, 8 * torch.finfo(wanted.dtype).eps)
    return bool((values[0] - wanted).norm() <= tolerance * wanted.norm())
