"""Tiny random networks of many classes of transformers, with uneven, offset weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

VOCAB, WIDTH, HIDDEN, LAYERS, HEADS, KV, HEAD = 37, 24, 30, 2, 4, 2, 6


def _decoder(name: str, **more: Any) -> Any:
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": HEAD,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    return getattr(hf, f"{name}ForCausalLM")(_config(name, {**settings, **more}))


def _config(name: str, settings: dict[str, Any]) -> Any:
    own = {"Gemma3": "Gemma3Text"}.get(name, name)
    return getattr(hf, f"{own}Config")(**settings)


def _neox() -> Any:
    return _decoder("GPTNeoX", num_key_value_heads=None)


def _opt() -> Any:
    config = hf.OPTConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        ffn_dim=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=40,
        word_embed_proj_dim=WIDTH,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return hf.OPTForCausalLM(config)


def _gpt2() -> Any:
    config = hf.GPT2Config(
        vocab_size=VOCAB,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        n_positions=40,
        bos_token_id=None,
        eos_token_id=None,
    )
    return hf.GPT2LMHeadModel(config)


def _bert() -> Any:
    config = hf.BertConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=40,
    )
    return hf.BertForMaskedLM(config)


def _t5() -> Any:
    settings: dict[str, Any] = {"decoder_start_token_id": 0, "pad_token_id": 0}
    config = hf.T5Config(
        **settings,
        vocab_size=VOCAB,
        d_model=WIDTH,
        d_kv=HEAD,
        d_ff=HIDDEN,
        num_layers=LAYERS,
        num_heads=HEADS,
    )
    return hf.T5ForConditionalGeneration(config)


ZOO: dict[str, Callable[[], Any]] = {
    "llama": lambda: _decoder("Llama"),
    "llama tied": lambda: _decoder("Llama", tie_word_embeddings=True),
    "mistral": lambda: _decoder("Mistral"),
    "qwen2": lambda: _decoder("Qwen2"),
    "qwen3": lambda: _decoder("Qwen3"),
    "gemma2": lambda: _decoder("Gemma2"),
    "gemma3": lambda: _decoder("Gemma3"),
    "phi3": lambda: _decoder("Phi3"),
    "olmo2": lambda: _decoder("Olmo2"),
    "gpt2": _gpt2,
    "gpt_neox": _neox,
    "opt": _opt,
    "bert": _bert,
    "t5": _t5,
}


def network(name: str) -> Any:
    """Return one of the zoo, every weight moved off its start so that biases and gains count."""
    torch.manual_seed(7)
    net: nn.Module = ZOO[name]()
    with torch.no_grad():
        for key, p in net.named_parameters():
            if p.dim() > 1:
                p.copy_(0.25 * torch.randn(p.shape) + 0.02)
            else:
                p.add_(0.2 * torch.randn(p.shape) + (0.1 if key.endswith("bias") else 0.0))
    return net.eval()
