"""Zamba 2: blocks of Mamba, before some of which runs a transformer that several of them share.

The transformer reads the stream and the embeddings side by side, and what it returns is added to
what that block's mixer reads, not to the stream. So such a block has the stream and the insides of
attention; the other blocks have the stream. Mixers are reached by path, `model.layers.0.mamba:out`
and `model.layers.5.mamba_decoder.mamba:out`.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.site import POINTS, Stack, into, out

MODEL_TYPES = ("zamba2",)

_MAMBA = "this block has a state space and no attention or MLP: read its mamba:out"
_BESIDE = "what it would add goes to the mixer and not to the stream: read shared_transformer:out"
_ADAPTED = "adapters are added to what the projection returns"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack; its blocks with the shared transformer are described apart."""
    stream = {
        "embeddings": out("embed_tokens"),
        "resid_pre": into(""),
        "resid_post": out(""),
        "final_norm": out("final_layernorm"),
        "logits": out("", "logits"),
    }
    mamba = Stack(
        blocks="layers.{}",
        num_blocks=config.num_hidden_layers,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        places=stream,
        lacks={p: _MAMBA for p in POINTS if p not in stream},
    )
    kinds = enumerate(config.layers_block_type)
    hybrid = _hybrid(config, mamba)
    return (replace(mamba, others={i: hybrid for i, kind in kinds if kind == "hybrid"}),)


def _hybrid(config: Any, mamba: Stack) -> Stack:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    path = "shared_transformer.self_attn"
    inside = {"z": into(f"{path}.o_proj", heads=heads)}
    if not config.use_shared_attention_adapter:
        inside |= {
            "q": out(f"{path}.q_proj", heads=heads),
            "k": out(f"{path}.k_proj", heads=kv_heads),
            "v": out(f"{path}.v_proj", heads=kv_heads),
        }
    places = {**mamba.places, **inside}
    lacks = {p: _BESIDE for p in POINTS if p not in places and not p.startswith("attn_")}
    lacks |= dict.fromkeys([p for p in "qkv" if p not in places], _ADAPTED)
    lacks |= dict.fromkeys(("attn_in", "attn_out"), _BESIDE)
    return replace(
        mamba,
        heads=heads,
        kv_heads=kv_heads,
        head_width=config.attention_head_dim,
        attention=path,
        places=places,
        lacks=lacks,
    )
