"""Direct attribution: the final stream as a sum of what each part wrote, read by the unembedding.

    x = embeddings + sum_l (sum_h z_lh W_O_lh + b_O_l + mlp_l)

With the scale of the final norm frozen, every logit is the sum of one number for each part. The
sum is checked in every call, so that a network that adds up otherwise is refused.

Shapes: B rows, T tokens, L layers, H heads, K head width, D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from actkit.anatomy.linear_map import bias_of, is_linear, weight_of
from actkit.anatomy.norm import FrozenNorm, frozen_norm
from actkit.core.errors import InputError
from actkit.core.run.recording import Recording, Rows
from actkit.core.sites.site import Site
from actkit.model import Model


def final_norm(model: Model) -> FrozenNorm:
    """Return the norm before the unembedding.

    Raises:
        SiteError: The network has none.
    """
    path = model.sites("final_norm")[0].place.path
    return frozen_norm(model.module.get_submodule(path), unembedding(model).weight[0].detach())


def unembedding(model: Model) -> Any:
    """Return the linear map from the final norm to the logits.

    Raises:
        InputError: The network has none.
    """
    head = getattr(model.module, "get_output_embeddings", lambda: None)()
    if not isinstance(head, nn.Linear):
        raise InputError(f"attribution needs a linear map to logits, {model!r} has {head!r}")
    return head


def map_at(model: Model, site: Site) -> tuple[Tensor, Tensor]:
    """Return the (inputs, outputs) weight and (outputs,) bias of the linear map at a site.

    Raises:
        InputError: There is no plain linear map.
    """
    module: Any = model.module.get_submodule(site.place.path)
    if not is_linear(module) or not module.weight.is_floating_point():
        raise InputError(
            f"heads are read through plain linear maps (merge adapters first, no quantised "
            f"weights), at {site.name} stands {site.place.path}, a {type(module).__name__}"
        )
    weight_ID, bias_D = weight_of(module).mT.float(), bias_of(module)
    return weight_ID, torch.zeros_like(weight_ID[0]) if bias_D is None else bias_D.float()


def head_outputs(model: Model, site: Site) -> tuple[Tensor, Tensor]:
    """Return W_O by head (H, K, D), and the bias (D,), of attention whose z is the site."""
    weight, bias_D = map_at(model, site)
    return weight.view(*(site.unit_shape or ()), -1), bias_D


def head_inputs(model: Model, site: Site) -> tuple[Tensor, Tensor]:
    """Return the map by head (D, H, K), and its bias (H, K), that returns a site q, k or v."""
    weight, bias = map_at(model, site)
    layout = site.place.layout
    return layout.get(weight[None], 1)[0], layout.get(bias[None, None], 1)[0, 0]


@dataclass(frozen=True, eq=False)
class Written:
    """What each part wrote to the stream at one position of each row; they add up to it.

    Attributes:
        embed_BD: The stream before the first block.
        heads_BLHD: z W_O of each head.
        biases_LD: The bias of attention's output, which is no head's.
        mlps_BLD: What each MLP wrote.
    """

    embed_BD: Tensor
    heads_BLHD: Tensor
    biases_LD: Tensor
    mlps_BLD: Tensor

    @property
    def stream(self) -> Tensor:
        """Return the sum of all."""
        return (
            self.embed_BD
            + self.heads_BLHD.sum((1, 2))
            + self.biases_LD.sum(0)
            + (self.mlps_BLD.sum(1))
        )


RECORDED = ("resid_pre.0", "z.*", "attn_out.*", "mlp_out.*")
"""What a run must record so that `written` can take the stream apart."""


def written(model: Model, rec: Recording, at: int = -1) -> Written:
    """Take apart the final stream at one position of each row.

    Args:
        model: The network.
        rec: A run that recorded `RECORDED`.
        at: Position, counted from each row's first valid token, or from its last.

    Raises:
        InputError: A norm or a factor stands between the heads and the stream.
    """
    index = columns(rec.rows, at)
    heads, biases, mlps = [], [], []
    for site in model.sites("z.*"):
        layer = site.depth
        out_HKD, bias_D = head_outputs(model, site)
        own_BHD = torch.einsum("bhk,hkd->bhd", rec[site.name][index].float(), out_HKD)
        told_BD = rec[f"attn_out.{layer}"][index]
        size = own_BHD.norm(dim=-1).sum() + bias_D.norm()
        _check_sum(own_BHD.sum(1) + bias_D, told_BD, size, f"what heads of layer {layer} write")
        heads.append(own_BHD)
        biases.append(bias_D)
        mlps.append(rec[f"mlp_out.{layer}"][index].float())
    embed_BD = rec["resid_pre.0"][index].float()
    return Written(embed_BD, torch.stack(heads, 1), torch.stack(biases), torch.stack(mlps, 1))


def columns(rows: Rows, at: int) -> tuple[Tensor, Tensor]:
    """Return the index of one position of each row, which counts valid tokens.

    Raises:
        InputError: A row is shorter.
    """
    counts = rows.valid.sum(-1)
    if not -int(counts.min()) <= at < int(counts.min()):
        raise InputError(f"a position must be one of {int(counts.min())} tokens, got {at}")
    wanted_B = counts + at if at < 0 else torch.full_like(counts, at)
    found = (rows.position == wanted_B[:, None]) & rows.valid
    return torch.arange(len(found), device=found.device), found.long().argmax(-1)


@dataclass(frozen=True, eq=False)
class Attribution:
    """One number for each part: what it adds to a logit, or to a difference of two.

    Attributes:
        embed_B: Of the embeddings.
        heads_BLH: Of each head.
        biases_BL: Of attention's biases.
        mlps_BL: Of each MLP.
        constant_B: Of the norm's shift and the unembedding's bias.
        direction_BD: What the parts were multiplied with, the norm's scale included.
    """

    embed_B: Tensor
    heads_BLH: Tensor
    biases_BL: Tensor
    mlps_BL: Tensor
    constant_B: Tensor
    direction_BD: Tensor

    @property
    def total(self) -> Tensor:
        """Return the sum of all, (B,), which is the network's own number."""
        return (
            self.embed_B
            + self.heads_BLH.sum((1, 2))
            + self.biases_BL.sum(1)
            + (self.mlps_BL.sum(1) + self.constant_B)
        )


@dataclass(frozen=True, eq=False)
class Readout:
    """One position of each row taken apart, and how the network reads its logits there.

    Attributes:
        parts: What was written.
        norm: The final norm.
        scale_B1: Its scale.
        head: The unembedding.
        logits_BV: The network's own logits.
    """

    parts: Written
    norm: FrozenNorm
    scale_B1: Tensor
    head: Any
    logits_BV: Tensor

    def attribute(
        self, tokens: Tensor, against: Tensor | Literal["mean"] | None = None
    ) -> Attribution:
        """Return what each part adds directly to a logit, the final norm's scale frozen.

        Args:
            tokens: (B,) ids.
            against: (B,) ids whose logits are subtracted, or the mean of all logits.

        Raises:
            InputError: Tokens are not one a row, or the parts do not add up to the own logits.
        """
        if tokens.shape != self.logits_BV.shape[:1]:
            raise InputError(
                f"need one token for each of {len(self.logits_BV)} rows, got {tuple(tokens.shape)}"
            )
        weight_VD, logits_BV = self.head.weight.detach().float(), self.logits_BV.float()
        no_bias = self.head.bias is None
        bias_V = torch.zeros_like(weight_VD[:, 0]) if no_bias else self.head.bias.detach().float()
        rows = torch.arange(len(tokens), device=tokens.device)
        read_BD, shift_B, own_B = weight_VD[tokens], bias_V[tokens], logits_BV[rows, tokens]
        if isinstance(against, Tensor):
            read_BD, shift_B = read_BD - weight_VD[against], shift_B - bias_V[against]
            own_B = own_B - logits_BV[rows, against]
        elif against == "mean":
            read_BD, shift_B = read_BD - weight_VD.mean(0), shift_B - bias_V.mean()
            own_B = own_B - logits_BV.mean(1)
        u_BD, parts = self.norm.read(read_BD) / self.scale_B1, self.parts
        found = Attribution(
            (parts.embed_BD * u_BD).sum(-1),
            torch.einsum("blhd,bd->blh", parts.heads_BLHD, u_BD),
            u_BD @ parts.biases_LD.mT,
            torch.einsum("bld,bd->bl", parts.mlps_BLD, u_BD),
            shift_B + read_BD @ self.norm.shift_D,
            u_BD,
        )
        told_B = own_B.to(self.logits_BV.dtype)
        _check_sum(found.total, told_B, logits_BV.norm(), "what is read of the final norm")
        return found


def readout(model: Model, inputs: Any, at: int = -1) -> Readout:
    """Run the network and take apart one position of each row.

    Args:
        model: A decoder without norms between heads, MLPs and stream.
        inputs: B prompts.
        at: Position, as in `written`.

    Raises:
        InputError: The parts do not add up to the stream.
    """
    last, norm = f"resid_post.{len(model.sites('z.*')) - 1}", final_norm(model)
    rec = model.run(inputs, record=[*RECORDED, last, "final_norm"], logits=True)
    index, parts = columns(rec.rows, at), written(model, rec, at)
    stream_BD, normed_BD = (rec[site][index].float() for site in (last, "final_norm"))
    _check_sum(parts.stream, rec[last][index], stream_BD.norm(), "what all parts write")
    logits_BV = rec.logits[index]
    return Readout(parts, norm, norm.scale(stream_BD, normed_BD), unembedding(model), logits_BV)


def lens(model: Model, x: Tensor) -> Tensor:
    """Return the log-probabilities (..., V) that final norm and unembedding read in a stream."""
    norm = model.module.get_submodule(model.sites("final_norm")[0].place.path)
    head = unembedding(model)
    with torch.no_grad():
        logits: Tensor = head(norm(x.to(head.weight))).float()
    return logits.log_softmax(-1)


def _check_sum(found: Tensor, told: Tensor, size: Tensor, what: str) -> None:
    """Refuse a sum that is not what the network itself has, beyond rounding of what is summed."""
    bound = max(1e-4, 8 * torch.finfo(told.dtype).eps)
    error = float((found - told.float()).norm())
    if not error <= bound * float(size):
        raise InputError(
            f"{what} must add up to what the network has, got a difference of {error:.2g} on sizes "
            f"of {float(size):.2g}: direct attribution is for networks without norms, factors or "
            "caps between parts, stream and logits"
        )
