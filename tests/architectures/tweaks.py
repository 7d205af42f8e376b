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

WINDOWS: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 4,
    "window_size": 4,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "embed_dim": 24,
}
ROTARY: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e4}
BY_KIND_OF_LAYER: dict[str, Any] = {
    "rope_parameters": {"full_attention": ROTARY, "sliding_attention": ROTARY},
}
INDEXER: dict[str, Any] = {
    "indexer_budget": 4,
    "indexer_compress_ratio": 2,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
}


def small_sound(*parts: str) -> dict[str, Any]:
    """Return fields of tokenizers of sound that are otherwise 2048 channels wide."""
    sizes = {"num_filters": 4, "depths": [1, 1, 1], "downsampling_ratios": [2, 3]}
    return {f"{part}.{field}": value for part in parts for field, value in sizes.items()}


TWEAKS: dict[str, dict[str, Any]] = {
    "bit": {
        "embedding_size": 16,
        "hidden_sizes": [32, 32, 64, 96],
        "depths": [2, 1, 1, 1],
        "num_groups": 4,
    },
    "cohere_compass": {f"text_config.{field}": value for field, value in BY_KIND_OF_LAYER.items()},
    "cohere_compass_text": BY_KIND_OF_LAYER,
    "cosmos3_edge": M_ROPE,
    "deepseek_ocr2": {
        "text_config.mlp_layer_types": ["dense", "sparse", "sparse"],
        "text_config.num_experts_per_tok": 2,
    },
    "diffusion_gemma": {
        "text_config.num_experts": 4,
        "text_config.top_k_experts": 2,
        "text_config.moe_intermediate_size": 40,
    },
    "dots3_note": {
        "class": "Dots3NoteForConditionalGeneration",
        "vision_config.adapter_in_dim": 48,
        "vision_config.adapter_out_dim": 48,
        "audio_config.adapter_input_size": 48,
        "audio_config.adapter_out_dim": 48,
    },
    "ernie4_5_vl_moe": M_ROPE,
    "fun_asr_nano": {"adaptor_config.intermediate_size": 12},
    "glm5_next": {
        "text_config.index_kpool": 2,
        "text_config.qk_rope_head_dim": 0,
        "text_config.head_dim": 0,
        "text_config.num_key_value_heads": 4,
    },
    "granite4_vision": {
        "deepstack_layer_map": [[0, 1], [1, 2]],
        "spatial_target_layers": [1, 2],
        "image_token_index": 90,
        "vision_config.hidden_size": 64,
        "downsample_rate": "1/2",
    },
    "depth_pro": {
        "patch_size": 16,
        "intermediate_hook_ids": [2, 1],
        "intermediate_feature_dims": [16, 16],
        "scaled_images_feature_dims": [24, 24, 16],
        "fusion_hidden_size": 16,
    },
    "granite_speech5_ctc": {
        "encoder_config.context_size": 8,
        "encoder_config.num_key_value_heads": 4,
    },
    "hunyuan_vl": {**M_ROPE, "text_config.head_dim": 12},
    "inkling2": {"vision_config.text_hidden_size": 48},
    "lw_detr_vit": {"image_size": 32, "num_windows": 4},
    "molmo2": {"adapter_config.vision_feature_layer": [2, 1]},
    "moonshine_streaming": {"num_key_value_heads": 4},
    "musicgen": {"part": "decoder"},
    "musicgen_melody": {"part": "decoder"},
    "nemo_speechlm": {"audio_config.diarization_config.head_config.audio_hidden_size": 48},
    "nemotron_h_omni": {"vision_config.video_temporal_patch_size": 2},
    "neomme": {"head_dim": 16},
    "vitpose_backbone": {"num_experts": 1, "image_size": [32, 24], "patch_size": [8, 8]},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid", "hybrid"]},
    "chameleon": {"vocabulary_map": {"<image>": 90}},
    "conditional_detr": ONE_SCALE,
    "dab-detr": ONE_SCALE,
    "deformable_detr": {**RESNET, "d_model": 64},
    "detr": ONE_SCALE,
    "table-transformer": ONE_SCALE,
    "convnextv2": {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 2, 2, 1]},
    "dinov3_convnext": {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 2, 2, 1]},
    "dia": {
        "decoder_config.cross_hidden_size": 48,
        "decoder_config.cross_num_attention_heads": 4,
        "decoder_config.cross_num_key_value_heads": 2,
        "decoder_config.cross_head_dim": 12,
    },
    "xlstm": {"hidden_size": 128},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "n_group": 1,
        "topk_group": 1,
    },
    "emu3": {
        "class": "Emu3ForConditionalGeneration",
        "vq_config.base_channels": 32,
        "vq_config.channel_multiplier": [1, 1, 1, 1],
        "vq_config.codebook_size": 64,
        "vocabulary_map": {"<image>": 90, "<|extra_200|>": 91, "<|visual token 000000|>": 92},
    },
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
    "efficientnet": {
        "image_size": 64,
        "width_coefficient": 0.25,
        "depth_coefficient": 0.2,
        "hidden_dim": 320,
    },
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
    "paddleocr_vl": M_ROPE,
    "qwen2_vl": M_ROPE,
    "qwen2_5_vl": M_ROPE,
    "qwen2_5_omni_thinker": {**M_ROPE, "vision_start_token_id": 91},
    "stablelm": {"rope_parameters": {**ROTARY, "partial_rotary_factor": 0.5}},
    "mistral4": {"head_dim": "-"},
    "moonshine": {"encoder_num_key_value_heads": 4, "decoder_num_key_value_heads": 4},
    "step3p7": {"text_config.sliding_window": 4},
    "xmod": {"default_language": "en_XX"},
    "vivit": {"num_frames": 4, "tubelet_size": [2, 4, 4]},
    "blip-2": {"image_token_index": 90, "num_query_tokens": 3},
    "instructblip": {"image_token_index": 90, "num_query_tokens": 3},
    "instructblipvideo": {"video_token_index": 90, "num_query_tokens": 3},
    "kosmos-2": {"latent_query_num": 3},
    "pix2struct": {"vision_config.patch_embed_hidden_size": 40, "vision_config.seq_len": 16},
    "glm4_moe_lite": {"head_dim": 8, "num_key_value_heads": 4},
    "qwen4_exp_text": INDEXER,
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
        "patch_size": [7, 7],
    },
    "donut-swin": WINDOWS,
    "swin": WINDOWS,
    "swin2sr": {
        "image_size": 16,
        "patch_size": 1,
        "window_size": 4,
        "depths": [2, 2],
        "num_heads": [4, 4],
    },
    "pvt": {
        "image_size": 64,
        "depths": [2, 1, 1, 1],
        "hidden_sizes": [12, 16, 24, 32],
        "num_attention_heads": [1, 2, 4, 4],
        "mlp_ratios": [2, 2, 2, 2],
    },
    "convnext": {"hidden_sizes": [12, 16, 20, 24], "depths": [1, 2, 2, 1], "image_size": 64},
    "janus": {"vq_config.base_channels": 32, "vq_config.channel_multiplier": [1, 1, 1, 1, 1]},
    "zaya": {"num_experts_per_tok": 1},
    "llama4": {"class": "Llama4ForConditionalGeneration"},
    "mamba2": {"num_heads": 8, "head_dim": 12, "n_groups": 2},
    "ministral": {"head_dim": 12},
    "blt": {
        "encoder_hash_byte_group_vocab": 30,
        "num_hidden_layers": 3,
        "encoder_config.hidden_size_global": 48,
        "decoder_config.hidden_size_global": 48,
    },
    "muse_spark": {
        "audio_config.num_hidden_layers": 4,
        "audio_config.hidden_sizes": [8, 12, 16, 24],
        "audio_config.out_hidden_size": 48,
    },
    "kyutai_speech_to_text": {
        "codec_config.upsample_groups": 48,
        "codec_config.num_filters": 4,
        "codebook_vocab_size": 97,
        "num_codebooks": 3,
    },
    "vibevoice": small_sound("audio_config", "semantic_model_config"),
    "vibevoice_asr": small_sound(
        "acoustic_tokenizer_encoder_config", "semantic_tokenizer_encoder_config"
    ),
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
    "qwen4_exp": {
        "class": "Qwen4ExpForConditionalGeneration",
        **{f"text_config.{field}": value for field, value in INDEXER.items()},
    },
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
"""Type to fields of its configuration; "class" chooses the class of the network, and "part" the
configuration within that the network is made of."""

NOT_EXAMINED: dict[str, str] = {
    "gemma4_assistant": "all its layers borrow keys and values, which its check refuses",
    "gemma4_unified_assistant": "all its layers borrow keys and values, which its check refuses",
    "dinat": "it needs the package natten",
    "fast_vlm": "it needs the package timm",
    "gemma3n": "it needs the package timm",
    "perception_lm": "it needs the package timm",
    "timm_backbone": "it needs the package timm",
    "timm_wrapper": "it needs the package timm",
}
"""Type to the reason why no tiny network of it can be built, or nothing that it reads be made."""

SINKS_APART = ("granite_swa", "granitemoe_swa")
"""Types whose attentions are returned before the sinks take their share, unlike GPT-OSS's."""

ADDED_TO_NORMED = ("minimax",)
"""Types whose blocks norm the stream itself, and add to what is normed."""

KNOWN_WRONG: dict[str, dict[str, str]] = {}
"""Type to checks that are known to be wrong, each with the reason; empty is the aim."""
