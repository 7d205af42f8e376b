"""wav2vec 2.0 and its kin: blocks over frames of sound, post-norm or pre-norm ("stable").

The stack is the module behind the convolutions, since the network hands it the mask over frames;
`embeddings` are the projected features that it receives. With language adapters
(`adapter_attn_dim`) a third summand, `adapter_layer:out`, joins the stream after the MLP.
WavLM hands the weights of attention to one function of torch, which calls none of its maps.
"""

from typing import Any

from actkit.core.sites.architectures._reasons import POST_NORM
from actkit.core.sites.site import Stack, into, out

MODEL_TYPES = ("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio", "wavlm")

_ONE_CALL = "attention is one function of torch that calls none of its maps: read attention:out"
_INSIDE = ("q", "k", "v", "attn_scores", "attn_probs", "z")


def stacks(config: Any) -> tuple[Stack, ...]:
    """Return the one stack of blocks."""
    # data2vec knows one form only, and has no such option
    heads, stable = config.num_attention_heads, getattr(config, "do_stable_layer_norm", False)
    lacks = {} if stable else {"final_norm": POST_NORM}
    if config.model_type == "wavlm":
        lacks |= dict.fromkeys(_INSIDE, _ONE_CALL)
    if getattr(config, "add_adapter", False):
        lacks["logits"] = "an adapter changes the number of frames: read lm_head:out"
    places = {
        "embeddings": into(""),
        "resid_pre": into(""),
        "attn_in": into("attention"),
        "q": out("attention.q_proj", heads=heads),
        "k": out("attention.k_proj", heads=heads),
        "v": out("attention.v_proj", heads=heads),
        "z": into("attention.out_proj", heads=heads),
        "attn_out": out("dropout"),
        "resid_mid": into("final_layer_norm", is_stream=True) if stable else out("layer_norm"),
        "mlp_in": into("feed_forward"),
        "mlp_pre": out("feed_forward.intermediate_dense"),
        "mlp_hidden": into("feed_forward.output_dense"),
        "mlp_out": out("feed_forward"),
        "resid_post": out(""),
        "final_norm": out("layer_norm"),
        "logits": out("", "logits"),
    }
    return (
        Stack(
            root="encoder",
            blocks="layers.{}",
            num_blocks=config.num_hidden_layers,
            width=config.hidden_size,
            heads=heads,
            kv_heads=heads,
            head_width=config.hidden_size // heads,
            hidden=config.intermediate_size,
            vocabulary=config.vocab_size,
            attention="attention",
            alias="audio",
            places=places,
            lacks=lacks,
        ),
    )
