"""What single types need beyond the rules of `shrink.py`, and what cannot be built tiny."""

from typing import Any

RESNET: dict[str, Any] = {
    "use_timm_backbone": False,
    "backbone": "-",
    "backbone_kwargs": "-",
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12, 16, 20],
        "depths": [1, 1, 1, 1],
        "out_features": ["stage2", "stage3", "stage4"],
    },
}
ONE_SCALE: dict[str, Any] = {
    **RESNET,
    "backbone_config": {**RESNET["backbone_config"], "out_features": ["stage4"]},
}
M_ROPE: dict[str, Any] = {
    "text_config.rope_parameters": {
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 2, 2],
        "partial_rotary_factor": 1.0,
    }
}

TWEAKS: dict[str, dict[str, Any]] = {
    "bit": {"embedding_size": 64, "hidden_sizes": [64, 64, 96, 128], "depths": [1, 1, 1, 1]},
    "chameleon": {"vocabulary_map": {"<image>": 90}},
    "conditional_detr": ONE_SCALE,
    "dab-detr": ONE_SCALE,
    "deformable_detr": RESNET,
    "detr": ONE_SCALE,
    "table-transformer": ONE_SCALE,
    "convnextv2": {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 2, 2, 1]},
    "dinov3_convnext": {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 2, 2, 1]},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "emu3": {"class": "Emu3ForConditionalGeneration"},
    "esm": {"vocab_size": 97, "pad_token_id": 1, "mask_token_id": 90},
    "esmc": {"num_key_value_heads": 4},
    "gemma3n_text": {
        "num_kv_shared_layers": 1,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
        "intermediate_size": [80, 80, 80],
    },
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 4},
    "hunyuan_v1_dense": {"head_dim": 12},
    "hunyuan_v1_moe": {"head_dim": 12},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 0,
    },
    "bamba": {"attn_layer_indices": [1]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba"]},
    "mllama": {"text_config.cross_attention_layers": [1]},
    "perceiver": {"d_latents": 48, "num_latents": 8, "num_self_attends_per_block": 2},
    "efficientnet": {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 64},
    "audio-spectrogram-transformer": {
        "max_length": 24,
        "patch_size": 4,
        "frequency_stride": 3,
        "time_stride": 3,
    },
    "led": {
        "attention_window": 4,
        "max_encoder_position_embeddings": 64,
        "max_decoder_position_embeddings": 64,
    },
    "longformer": {"attention_window": 4},
    "cpmant": {
        "prompt_types": 8,
        "prompt_length": 3,
        "segment_types": 8,
        "position_bias_max_distance": 32,
    },
    "pegasus_x": {"block_size": 8, "num_global_tokens": 4},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "topk_method": "greedy"},
    "glm4v": M_ROPE,
    "glm4v_moe": M_ROPE,
    "glm46v": M_ROPE,
    "glm_ocr": M_ROPE,
    "glmga": M_ROPE,
    "glm4_moe_lite": {"head_dim": 8, "num_key_value_heads": 4},
    "qwen4_exp_text": {
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "n_heads": 4,
        "max_seq_len": 64,
    },
    "hiera": {
        "image_size": [32, 32],
        "embed_dim": 12,
        "depths": [1, 1, 1, 1],
        "num_heads": [1, 2, 4, 4],
    },
    "donut-swin": {
        "image_size": 28,
        "window_size": 7,
        "depths": [1, 1],
        "num_heads": [2, 4],
        "embed_dim": 24,
    },
    "convnext": {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 2, 2, 1], "image_size": 64},
    "janus": {"vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1, 1, 1, 1]},
    "zaya": {"num_experts_per_tok": 1},
    "llama4": {"class": "Llama4ForConditionalGeneration"},
    "mamba2": {"num_heads": 8, "head_dim": 12, "n_groups": 2},
    "ministral": {"head_dim": 12},
    "mobilebert": {
        "embedding_size": 24,
        "hidden_size": 48,
        "intra_bottleneck_size": 24,
        "true_hidden_size": 24,
        "num_feedforward_networks": 2,
    },
    "nemotron": {"num_key_value_heads": 2, "head_dim": 12},
    "qwen3_5": {"class": "Qwen3_5ForConditionalGeneration"},
    "qwen3_5_moe": {"class": "Qwen3_5MoeForConditionalGeneration"},
    "qwen4_exp": {"class": "Qwen4ExpForConditionalGeneration"},
    "reformer": {
        "axial_pos_embds_dim": [16, 32],
        "axial_pos_shape": [8, 8],
        "attn_layers": ["local", "lsh", "local"],
        "num_hashes": 1,
        "local_attn_chunk_length": 7,
        "lsh_attn_chunk_length": 7,
        "is_decoder": False,
    },
    "swinv2": {"image_size": 32, "window_size": 4, "pretrained_window_sizes": [0, 0, 0, 0]},
    "videoprism_vision_model": {"tubelet_size": [1, 4, 4]},
    "wav2vec2-bert": {"vocab_size": 97},
    "wav2vec2-conformer": {"vocab_size": 97},
}
"""Type to fields of its configuration; "class" chooses the class of the network."""

NOT_BUILT: dict[str, str] = {
    "bit": "a norm of 32 groups meets 16 channels",
    "cohere_compass": "its layers look up an entry for full attention that is not there",
    "cohere_compass_text": "its layers look up an entry for full attention that is not there",
    "cosmos3_edge": "the three sections of its rotary embedding do not fill a narrow head",
    "deepseek_ocr2": "a field of its configuration that it indexes is None by default",
    "deformable_detr": "a norm of 32 groups meets 48 channels",
    "depth_pro": "its image and patch sizes must match those of its inner networks",
    "diffusion_gemma": "a size in its configuration is None by default",
    "dinat": "it needs the package natten",
    "dots3_note": "the width of its adapter must match that of its text network",
    "emu3": "AttributeError: 'NoneType' object has no attribute 'get'",
    "ernie4_5_vl_moe": "the sections of its rotary embedding do not fill a narrow head",
    "fast_vlm": "it needs the package timm",
    "fun_asr_nano": "its adaptor must be a quarter as wide as its text network",
    "gemma3n": "it needs the package timm",
    "gemma4_assistant": "it allows no inputs of each layer, its texts have them by default",
    "gemma4_unified_assistant": "kinds of layers that fill a cache and that use it differ",
    "glm5_next": "its top keys must be a multiple of the keys that it pools",
    "granite4_vision": "a list in its configuration is None by default",
    "granite_speech5_ctc": "its blocks of context are longer than the few positions",
    "hunyuan_vl": "a number of its rotary embedding is None by default",
    "inkling2": "its image network must name the width of its text network",
    "janus": "it takes over 60 s",
    "kyutai_speech_to_text": "the groups of a convolution do not divide its channels",
    "lw_detr_vit": "its windows do not divide the small image",
    "molmo2": "it reads layers of its image network that three layers do not have",
    "moonshine_streaming": "its configuration lacks num_key_value_heads, which its class reads",
    "muse_spark": "it needs a patch size, a width and a depth for each of the layers",
    "musicgen": "its configuration lacks a field that its class reads, dropout",
    "musicgen_melody": "its configuration lacks a field that its class reads, dropout",
    "nemo_speechlm": "its head must name the width of its sound network",
    "nemotron_h_omni": "its two settings of patches in time must be equal, one is None by default",
    "neomme": "its rotary embedding turns 3 of 12 dimensions, which is no multiple of 4",
    "perception_lm": "it needs the package timm",
    "qwen4_exp": "two numbers of its configuration are None by default",
    "timm_backbone": "it needs the package timm",
    "timm_wrapper": "it needs the package timm",
    "zamba": "three layers leave a pattern of tied weights without a partner",
    "kimi_linear": "its recurrence in plain PyTorch takes over a minute",
    "vibevoice": "its sound tokenizer keeps hundreds of millions of weights under these rules",
    "vibevoice_asr": "its sound tokenizer keeps hundreds of millions of weights under these rules",
    "blt": "its tables of byte n-grams have half a million rows whatever the configuration says",
}
"""Type to the reason why no tiny network of it can be built."""

INPUTS: dict[str, dict[str, Any]] = {}
"""Type to functions that make what it reads, by argument."""

SINKS_APART = ("granite_swa", "granitemoe_swa")
"""Types whose attentions are returned before the sinks take their share, unlike GPT-OSS's."""

ADDED_TO_NORMED = ("minimax",)
"""Types whose blocks norm the stream itself, and add to what is normed."""

KNOWN_WRONG: dict[str, dict[str, str]] = {}
"""Type to checks that are known to be wrong, each with the reason; empty is the aim."""
