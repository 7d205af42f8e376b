"""Gemma 3n's language model: Gemma 3's attention and MLP around several streams side by side.

A block receives and returns the streams stacked on an axis before the batch, predicts each, works
on one, and corrects all; so there is no single residual stream, and nothing that is added to it.
The streams are reached by module path, `model.language_model.layers.3:out`, as (stream, batch,
token, width). The last blocks may take keys and values from an earlier one.
"""

from dataclasses import replace
from typing import Any

from actkit.core.sites.architectures import llama
from actkit.core.sites.architectures.llava import below
from actkit.core.sites.site import Stack

MODEL_TYPES = ("gemma3n", "gemma3n_text")

_STREAMS = "blocks hand on {} streams on an axis before the batch: read a block's :in or :out"
_SHARED = "this block takes keys and values from an earlier block"


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the language model's stack; blocks that share keys are described apart."""
    if config.model_type == "gemma3n":
        return (below("language_model", _language(config.text_config)),)
    return (_language(config),)


def _language(config: Any) -> Stack:
    (stack,) = llama.stacks(config)
    streams = _STREAMS.format(config.altup_num_inputs)
    points = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    stack = replace(
        stack, hidden=max(config.intermediate_size), lacks=dict.fromkeys(points, streams)
    )
    first = config.num_hidden_layers - config.num_kv_shared_layers
    others = {}
    for i in range(config.num_hidden_layers):
        lacks = dict.fromkeys("kv", _SHARED) if i >= first else {}
        hidden = config.intermediate_size[i]
        others[i] = replace(stack, hidden=hidden, lacks={**stack.lacks, **lacks})
    return replace(stack, others=others)
