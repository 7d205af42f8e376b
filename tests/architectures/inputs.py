"""What types read that trying one argument or two does not find, made of their configuration.

Shapes: B batch, T tokens, Y and X pixels, M mel bins.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ROWS = [[5, 17, 3, 68, 42, 9, 61], [7, 7, 30, 11], [12, 55, 2, 56, 71]]
"""Token ids of three prompts of 7, 4 and 5 tokens; the shorter lack an odd and an even number."""
TARGETS = [[4, 33, 8, 21, 50]] * 3
"""What decoders behind an encoder read."""


def noise(*shape: int) -> Tensor:
    """Return uncentred, uneven numbers, the same for each shape."""
    gen = torch.Generator().manual_seed(3)
    return 0.3 + 1.7 * torch.randn(*shape, generator=gen)


def ids() -> Tensor:
    """Return token ids (2, 7)."""
    return torch.tensor([ROWS[0], ROWS[0][::-1]])


def targets() -> Tensor:
    """Return token ids (2, 5) for a decoder."""
    return torch.tensor(TARGETS[:2])


def images(config: Any, *frames: int) -> Tensor:
    """Return images (2, ..., 3, Y, X) as large as a configuration says, some for each sample."""
    size = config.image_size
    return noise(2, *frames, 3, *((size, size) if isinstance(size, int) else size))


def boxes(tokens: int, largest: float) -> Tensor:
    """Return where each token stands on its page: (2, T, 4), left, top, right, bottom."""
    gen = torch.Generator().manual_seed(4)
    corners = torch.rand(2, tokens, 2, 2, generator=gen).sort(2).values
    return largest * corners.flatten(2)


def _image_and_text(config: Any) -> dict[str, Tensor]:
    return {"pixel_values": images(config.vision_config), "input_ids": ids()}


def _placed(token: int, number: int) -> Tensor:
    """Return token ids that begin with the places of so many image vectors."""
    return torch.cat([torch.full((2, number), token), ids()], 1)


def _image_in_text(config: Any) -> dict[str, Tensor]:
    return {
        "pixel_values": images(config.vision_config),
        "input_ids": _placed(config.image_token_id, config.num_query_tokens),
    }


def _instructed(config: Any) -> dict[str, Tensor]:
    return {**_image_in_text(config), "qformer_input_ids": targets()}


def _instructed_video(config: Any) -> dict[str, Tensor]:
    frames = 2
    return {
        "pixel_values": images(config.vision_config, frames),
        "input_ids": _placed(config.video_token_id, frames * config.num_query_tokens),
        "qformer_input_ids": targets(),
    }


def _idefics(config: Any) -> dict[str, Tensor]:
    seen = torch.ones(2, 7, 1, dtype=torch.long)
    seen[:, 0] = 0  # the first token stands before the image
    return {
        "pixel_values": images(config.vision_config, 1),
        "input_ids": ids(),
        "image_attention_mask": seen,
    }


def _kosmos(config: Any) -> dict[str, Tensor]:
    tokens = _placed_kosmos(config.latent_query_num)
    return {
        "pixel_values": images(config.vision_config),
        "input_ids": tokens,
        "image_embeds_position_mask": tokens == 0,
    }


def _placed_kosmos(number: int) -> Tensor:
    start = ids()[:, :1]
    return torch.cat([start, torch.zeros(2, number, dtype=torch.long), ids()], 1)


def _udop(config: Any) -> dict[str, Tensor]:
    return {
        "input_ids": ids(),
        "bbox": boxes(7, 1.0),
        "pixel_values": images(config),
        "decoder_input_ids": targets(),
    }


def _pix2struct(config: Any) -> dict[str, Tensor]:
    """Return patches that begin with their row and their column."""
    places = torch.cartesian_prod(torch.arange(1.0, 4.0), torch.arange(1.0, 5.0)).expand(2, -1, -1)
    patches = noise(2, places.shape[1], config.vision_config.patch_embed_hidden_size)
    return {
        "flattened_patches": torch.cat([places, patches], -1),
        "decoder_input_ids": targets(),
    }


def _siglip2(config: Any) -> dict[str, Tensor]:
    """Return images of 3 by 4 and of 4 by 3 patches."""
    vision = config.vision_config
    return {
        "pixel_values": noise(2, 12, vision.num_channels * vision.patch_size**2),
        "pixel_attention_mask": torch.ones(2, 12, dtype=torch.long),
        "spatial_shapes": torch.tensor([[3, 4], [4, 3]]),
    }


def _vivit(config: Any) -> dict[str, Tensor]:
    return {"pixel_values": images(config, config.num_frames)}


def _dia(config: Any) -> dict[str, Tensor]:
    """Return text, and five steps of the codes that its decoder writes, several at once."""
    channels = config.decoder_config.num_channels
    codes = torch.arange(2 * 5 * channels).view(2, 5, channels) * 7 % 90
    return {"input_ids": ids(), "decoder_input_ids": codes}


def _voxtral_realtime(config: Any) -> dict[str, Tensor]:
    frames = ids().shape[1] * config.audio_length_per_tok
    return {
        "input_ids": ids(),
        "input_features": noise(2, config.audio_config.num_mel_bins, frames),
    }


def _wav2vec2_bert(config: Any) -> dict[str, Tensor]:
    return {"input_features": noise(2, 24, config.feature_projection_input_dim)}


def _granite_speech5(config: Any) -> dict[str, Tensor]:
    """Return pairs of frames, each with its differences."""
    return {"input_features": noise(2, 24, 4 * config.encoder_config.num_mel_bins)}


def _kyutai(config: Any) -> dict[str, Tensor]:
    """Return a token and the codes of sound for each step, (B, T, 1 + codebooks)."""
    codes = torch.arange(2 * 7 * config.num_codebooks).view(2, 7, -1) * 7 % 90
    return {"input_ids": torch.cat([ids()[..., None], codes], -1)}


def _vitpose(config: Any) -> dict[str, Tensor]:
    return {"pixel_values": images(config)}


def _codes_of_sound(config: Any) -> dict[str, Tensor]:
    """Return what Musicgen's decoder reads: a row for each codebook, and what it is told."""
    codes = torch.arange(2 * config.num_codebooks * 5).view(-1, 5) * 7 % 90
    return {"input_ids": codes, "encoder_hidden_states": noise(2, 6, config.hidden_size)}


def _pi0(config: Any) -> dict[str, Tensor]:
    vlm = config.vlm_config
    vision = vlm.vision_config
    number = (vision.image_size // vision.patch_size) ** 2
    return {
        "state": noise(2, config.max_state_dim),
        "noise": noise(2, config.chunk_size, config.max_action_dim),
        "timestep": torch.tensor([0.3, 0.8]),
        "input_ids": _placed(vlm.image_token_id, number),
        "pixel_values": images(vision, 1),
        "pixel_attention_mask": torch.ones(2, 1, dtype=torch.bool),
        "attention_mask": torch.ones(2, number + 7, dtype=torch.long),
    }


INPUTS: dict[str, Callable[[Any], dict[str, Tensor]]] = {
    "blip": _image_and_text,
    "blip-2": _image_in_text,
    "dia": _dia,
    "idefics": _idefics,
    "instructblip": _instructed,
    "instructblipvideo": _instructed_video,
    "kosmos-2": _kosmos,
    "kyutai_speech_to_text": _kyutai,
    "pi0": _pi0,
    "pix2struct": _pix2struct,
    "siglip2": _siglip2,
    "udop": _udop,
    "vivit": _vivit,
    "voxtral_realtime": _voxtral_realtime,
    "granite_speech5_ctc": _granite_speech5,
    "musicgen": _codes_of_sound,
    "musicgen_melody": _codes_of_sound,
    "vitpose_backbone": _vitpose,
    "wav2vec2-bert": _wav2vec2_bert,
}
"""Type to a function of its configuration that makes all arguments of a call."""
