"""The computational graph of a decoder: who writes to the residual stream, and who reads it.

Senders are what the stream is a sum of: "input" (the stream into block 0), each query head's
output z_h W_O^h ("head 3.5"), each MLP's output ("mlp 3"). Receivers are what reads the stream:
each head's queries ("head 3.5 q"), keys and values ("head 3.5 k"; where several query heads share
them, "kv 3.1 k" of the key-value head), each MLP ("mlp 3"), and "logits". Without `split_qkv` a
head reads once ("head 3.5"); heads that share keys and values cannot read apart then, so that
their whole group is one receiver ("group 3.1").

Shapes: L layers, S senders, R receivers, B batch, T tokens, D width, H heads, K head width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from actkit.core.run.recording import Recording
from actkit.core.sites.site_names import layer_of, points_of
from actkit.model import Model
from actkit.trace._graph._stream_parts import Read, StreamParts, same


@dataclass(frozen=True, eq=False)
class Port:
    """A site at which receivers read the stream: the queries of a block, its MLP's input, ...

    Attributes:
        site: Where what they read can be put in its place.
        stream: The site of the stream itself.
        layer: The block's index; of the logits the number of blocks.
        senders: How many senders come before.
        rows_H: The receiver of each head; of an MLP and of the logits the one receiver.
        norm: What comes between the stream and what is read.
        weight_DHK: The map from what is read to each head's values, None if there is none.
        bias_HK: Its bias.
    """

    site: str
    stream: str
    layer: int
    senders: int
    rows_H: list[int]
    norm: Read
    weight_DHK: Tensor | None = None
    bias_HK: Tensor | None = None

    @property
    def receivers(self) -> list[int]:
        """Return the receivers, each once."""
        return sorted(set(self.rows_H))

    def heads(self, receiver: int) -> list[int]:
        """Return the heads of one receiver."""
        return [h for h, r in enumerate(self.rows_H) if r == receiver]

    def mapped(self, normed: Tensor, heads: list[int]) -> Tensor:
        """Return what heads make of (..., D) normed values, (..., heads, K)."""
        own = torch.as_tensor(self.weight_DHK)[:, heads]
        out = (normed @ own.flatten(1)).view(*normed.shape[:-1], *own.shape[1:])
        return out if self.bias_HK is None else out + self.bias_HK[heads]

    def pulled(self, grad: Tensor, stream_BTD: Tensor) -> Tensor:
        """Return the gradient by the stream as each receiver reads it, (receivers, B, T, D).

        Args:
            grad: The gradient by what is at the site, (B, T, H, K) or (B, T, D).
            stream_BTD: The stream.
        """
        by_read = [grad]
        if self.weight_DHK is not None:
            groups = [self.heads(r) for r in self.receivers]
            by_read = [
                grad[:, :, h].flatten(2) @ self.weight_DHK[:, h].flatten(1).mT for h in groups
            ]
        with torch.enable_grad():
            x = stream_BTD.expand(len(by_read), *stream_BTD.shape).detach().requires_grad_()
            (by_stream,) = torch.autograd.grad(self.norm(x), x, torch.stack(by_read))
        return by_stream


class Graph:
    """The edges of a decoder, from every sender to every later receiver.

    Attributes:
        model: The network.
        senders: Names of the S senders, in the order in which they write.
        receivers: Names of the R receivers, in the order in which they read.
        exists_RS: Which edges there are: those to a receiver from all senders before it.
        feeds_RS: Which receiver belongs to the part that is a sender.
        ports: Where the receivers read, in the order of a forward pass.
        sites: Where the senders write.
    """

    def __init__(self, model: Model, split_qkv: bool = True) -> None:
        """Look for norms and maps, and prove by a run of ten tokens that the stream adds up.

        Raises:
            SiteError: The network lacks a point, or what it adds to the stream is no sum over
                its heads, as where a norm follows attention.
        """
        self.model, self._split = model, split_qkv
        blocks = model.sites("resid_pre.*")
        self._parts = StreamParts(model, len(blocks))
        q, k = (model.sites(f"{p}.*")[0].unit_shape or () for p in "qk")
        self.heads, self.kv_heads = q[0], k[0]
        self.senders, self.receivers = ["input"], list[str]()
        self.ports, self.sites, self.out_maps = list[Port](), ["resid_pre.0"], list[Tensor]()
        for layer in range(len(blocks)):
            self._add_block(layer)
        last = f"resid_post.{len(blocks) - 1}"
        end = [self._receiver("logits")]
        self.ports.append(Port(last, last, len(blocks), len(self.senders), end, same))
        self.exists_RS = torch.zeros(len(self.receivers), len(self.senders), dtype=torch.bool)
        self.feeds_RS = self.exists_RS.clone()
        for port in self.ports:
            self._connect(port)
        del self._parts

    def _add_block(self, layer: int) -> None:
        parts, before = self._parts, len(self.senders)
        stream = f"resid_pre.{layer}"
        norm = parts.norm(stream, f"attn_in.{layer}")
        for point, rows in self._attention_rows(layer).items():
            maps = parts.map(point, layer)
            self.ports.append(Port(f"{point}.{layer}", stream, layer, before, rows, norm, *maps))
        self.out_maps.append(parts.out_map(layer))
        self.senders += [f"head {layer}.{h}" for h in range(self.heads)]
        stream, after = parts.stream_of_mlp(layer), len(self.senders)
        norm, own = parts.norm(stream, f"mlp_in.{layer}"), [self._receiver(f"mlp {layer}")]
        read = before if stream == f"resid_pre.{layer}" else after
        self.ports.append(Port(f"mlp_in.{layer}", stream, layer, read, own, norm))
        self.senders.append(f"mlp {layer}")
        self.sites += [f"z.{layer}", f"mlp_out.{layer}"]

    def _attention_rows(self, layer: int) -> dict[str, list[int]]:
        """Return for queries, keys and values the receiver of each head."""
        share = self.heads // self.kv_heads
        kv = "head" if share == 1 else "kv"
        if not self._split:
            name = "head" if share == 1 else "group"
            own = [self._receiver(f"{name} {layer}.{g}") for g in range(self.kv_heads)]
            return {"q": [r for r in own for _ in range(share)], "k": own, "v": own}
        return {
            "q": [self._receiver(f"head {layer}.{h} q") for h in range(self.heads)],
            "k": [self._receiver(f"{kv} {layer}.{g} k") for g in range(self.kv_heads)],
            "v": [self._receiver(f"{kv} {layer}.{g} v") for g in range(self.kv_heads)],
        }

    def _receiver(self, name: str) -> int:
        self.receivers.append(name)
        return len(self.receivers) - 1

    def _connect(self, port: Port) -> None:
        """Note which senders come before the receivers of a port, and which they feed."""
        start = 1 + port.layer * (self.heads + 1)
        for head, receiver in enumerate(port.rows_H):
            self.exists_RS[receiver, : port.senders] = True
            if port.weight_DHK is not None:
                share = self.heads // len(port.rows_H)
                first = start + head * share
                self.feeds_RS[receiver, first : first + share] = True
            elif port.site.startswith("mlp_in"):
                self.feeds_RS[receiver, start + self.heads] = True

    def senders_at(self, site: str) -> range:
        """Return the senders of one of `sites`."""
        (point,) = points_of(site)
        first = 1 + layer_of(site) * (self.heads + 1)
        if point == "z":
            return range(first, first + self.heads)
        only = 0 if point == "resid_pre" else first + self.heads
        return range(only, only + 1)

    def written(self, site: str, x: Tensor) -> Tensor:
        """Return what the senders at a site add to the stream, (n, B, T, D).

        Args:
            site: One of `sites`.
            x: What was read there; biases, which all runs share, are left out.
        """
        if points_of(site) == ("z",):
            return torch.einsum("bthk,hkd->hbtd", x, self.out_maps[layer_of(site)])
        return x[None]

    def outputs(self, rec: Recording) -> Tensor:
        """Return what each sender adds to the stream, (S, B, T, D), in a run that read `sites`."""
        return torch.cat([self.written(site, rec[site].detach()) for site in self.sites])

    def alive(self, kept_RS: Tensor) -> Tensor:
        """Return which (S,) senders have a way of kept edges to the logits."""
        alive = kept_RS[-1].clone()
        for receiver in reversed(range(len(self.receivers) - 1)):
            if alive[self.feeds_RS[receiver]].any():
                alive |= kept_RS[receiver]
        return alive
