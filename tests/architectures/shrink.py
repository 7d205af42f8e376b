"""Any configuration of transformers, made tiny by the names of its fields.

A field is known by its name wherever it stands, in the configuration itself or in one nested in it.
What a type needs beyond these rules is data, in `tweaks.py`.
"""

import re
from collections.abc import Mapping
from typing import Any

WORDS = 97
WIDTH, HEADS, KV_HEADS, HEAD, LAYERS, HIDDEN, EXPERTS = 48, 4, 2, 12, 3, 80, 4

SIZES: tuple[tuple[str, int], ...] = (
    (r"(entity_|text_|tgt_|src_)?vocab_size|vocab_size_(src|tgt)|n_vocab", WORDS),
    (r"vocab_size_per_layer_input", WORDS),
    (
        r"hidden_size|d_model|n_embd|embed_dim|dim|model_dim|encoder_hidden_size|emb_dim|"
        r"decoder_hidden_size|hidden_dim|projection_dim|word_embed_proj_dim|embedding_size|"
        r"out_hidden_size|output_hidden_size|cross_attention_hidden_size|decoder_embed_dim|"
        r"lstm_hidden_size|conv_dim_out|text_embed_dim|d_embed|width|context_dim|"
        r"bottleneck_size|query_embed_dim",
        WIDTH,
    ),
    (
        r"(moe_|shared_expert_|expert_|encoder_|decoder_|mlp_|dense_|prefix_|linear_|lin_)?"
        r"(intermediate_size|intermediate_dim|ffn_dim|d_ff|n_inner|ffn_hidden_size)|"
        r"ffn_intermediate_size|mlp_hidden_size|"
        r"moe_shared_expert_intermediate_size|d_inner|shared_intermediate_size|ff_dim|"
        r"feed_forward_size|block_ff_dim|intermediate_size_mlp|dim_feedforward|"
        r"encoder_feedforward_dim|decoder_feedforward_dim|feedforward_size|d_hidden",
        HIDDEN,
    ),
    (
        r"num_(hidden_|encoder_|decoder_)?layers|n_layers?|(encoder|decoder)_layers|"
        r"num_blocks|depth|num_block_layers|n_head_layers|(encoder|decoder)_num_(hidden_)?layers|"
        r"(text|vision|audio)_layers|num_hidden_layers_.*|nb_layers",
        LAYERS,
    ),
    (
        r"num_(encoder_|decoder_|attention_)?(attention_)?heads|n_heads?|attention_heads|"
        r"(encoder|decoder)_(num_)?attention_heads|swa_num_attention_heads|num_query_heads",
        HEADS,
    ),
    (r"(swa_)?num_(global_)?(key_value|kv)_heads|n_kv_heads?|multi_query_group_num|num_kv_heads|"
     r"(encoder|decoder)_num_key_value_heads", KV_HEADS),
    (r"head_dim|head_size|d_kv|swa_head_dim|attention_head_dim|kv_channels", HEAD),
    (r"q_lora_rank|kv_lora_rank|o_lora_rank", 16),
    (r"qk_rope_head_dim|qk_nope_head_dim", 8),
    (r"v_head_dim|swa_v_head_dim", HEAD),
    (
        r"num_(local_|routed_|total_)?experts|n_routed_experts|moe_num_(primary_)?experts|"
        r"num_moe_experts|num_expert|moe_num_experts|n_experts",
        EXPERTS,
    ),
    (r"num_experts_per_tok(en)?|top_k|moe_top_?k|moe_k|num_selected_experts|moe_router_topk|"
     r"top_k_experts|experts_per_token|num_experts_per_topk", 2),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"n_group|topk_group|num_expert_group|num_limited_groups", 1),
    (r"first_k_dense_replace|moe_layer_start_index|num_dense_layers|first_dense_layers", 1),
    (r"max_position_embeddings|n_positions|max_(source|target)_positions|max_seq_len|"
     r"max_sequence_length|n_ctx|seq_length|model_max_length|original_max_position_embeddings", 64),
    (r"sliding_window|attention_chunk_size|local_attention|sliding_window_size", 4),
    (r"state_size|ssm_state_size|mamba_d_state|mamba_state_dim", 8),
    (r"mamba_n_heads|mamba_num_heads|n_mamba_heads", 8),
    (r"mamba_d_head|mamba_head_dim|mamba_headdim", HEAD),
    (r"n_groups|mamba_n_groups|mamba_ngroups", 1),
    (r"mamba_d_ssm", 2 * WIDTH),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"linear_num_heads", HEADS),
    (r"linear_(key_|value_)?head_dim", HEAD),
    (r"rotary_dim", 4),
    (r"time_step_rank|mamba_dt_rank", 6),
    (r"chunk_size|mamba_chunk_size", 8),
    (r"image_size", 16),
    (r"patch_size", 4),
    (r"num_mel_bins|num_mel_channels|feature_size|input_feat_per_channel|n_mels", 16),
    (r"num_conv_pos_embeddings", 4),
    (r"num_conv_pos_embedding_groups", 2),
    (r"num_codevectors_per_group", 8),
    (r"codevector_dim|proj_codevector_dim|classifier_proj_size|xvector_output_dim", 16),
    (r"max_2d_position_embeddings", 64),
    (r"coordinate_size|shape_size", 8),
    (r"hidden_size_per_layer_input", 8),
    (r"index_n_heads", 8),  # with few, keys tie at nothing, and padding decides between them
    (r"index_head_dim", 16),
    (r"index_topk", 4),
    (r"num_labels", 3),
)  # fmt: skip
"""Field and size; the whole name must match, and the field must hold a number."""

SIZES_RE = tuple((re.compile(pattern), size) for pattern, size in SIZES)


def shrunk(kind: Any, tweaks: Mapping[str, Any], path: str = "") -> Any:
    """Return a tiny configuration.

    Args:
        kind: The configuration's class.
        tweaks: Field to value, for fields of nested ones "text_config.head_dim"; None in place of
            a value leaves the default, the string "-" leaves the field out.
        path: Where the configuration stands in the outermost one.
    """
    try:
        default = kind()
    except (TypeError, ValueError):
        default = None
    given: dict[str, Any] = {}
    known = {} if default is None else vars(default)
    for field, value in known.items():
        if field.startswith("_") or field in ("transformers_version", "model_type"):
            continue
        small = _small(field, value, tweaks, f"{path}{field}.")
        if small is not None:
            given[field] = small
    if "qk_rope_head_dim" in given and "head_dim" in given:  # attention by latent keys
        given["head_dim"] = given["qk_rope_head_dim"]
        given["num_key_value_heads"] = given.get("num_attention_heads", HEADS)
    own = {k.removeprefix(path): v for k, v in tweaks.items() if k.startswith(path)}
    given |= {k: v for k, v in own.items() if "." not in k and k not in ("class", "part")}
    given = {k: v for k, v in given.items() if not (isinstance(v, str) and v == "-")}
    return kind(**given)


def _small(field: str, value: Any, tweaks: Mapping[str, Any], path: str) -> Any:
    """Return a tiny value of a field, None to leave it at its default."""
    if hasattr(value, "to_dict") and hasattr(type(value), "model_type"):
        return shrunk(type(value), tweaks, path)
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return _size(field, value)
    if isinstance(value, list | tuple) and value:
        return _sizes(field, list(value))
    return None


def _size(field: str, value: int) -> int | None:
    if field.endswith(("_token_id", "_token_index")):
        return None if 0 <= value < WORDS else WORDS - 1 - (sum(map(ord, field)) % 9)
    return next((size for pattern, size in SIZES_RE if pattern.fullmatch(field)), None)


def _sizes(field: str, value: list[Any]) -> Any:
    """Return tiny lists: of kinds of layers, depths, widths and sizes of images."""
    if field in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types"):
        kinds = list(dict.fromkeys(value))
        return [kinds[i % len(kinds)] for i in range(max(LAYERS, len(kinds)))]
    if field in ("image_size", "patch_size") and all(isinstance(v, int) for v in value):
        small = {"image_size": 16, "patch_size": 4}[field]
        return [small] * len(value)
    if field in ("depths", "encoder_depths") and all(isinstance(v, int) for v in value):
        return [2] * len(value)
    return None
