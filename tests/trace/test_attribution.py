"""The stream as a sum of parts: exact on SmolLM2 and tiny networks, refused where it is no sum.

Shapes: B rows, D width, V vocabulary.
"""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from actkit.anatomy.norm import frozen_norm
from actkit.core.errors import InputError, SiteError
from actkit.model import Model
from actkit.trace._attribution import map_at, readout
from tests.core import tiny
from tests.trace._uneven import opened


def neox() -> Any:
    """Two blocks whose attention and MLP run side by side, with rotary part and biases."""
    torch.manual_seed(4)
    config = GPTNeoXConfig(
        vocab_size=tiny.WORDS, hidden_size=36, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=50, max_position_embeddings=40, initializer_range=0.2,
    )  # fmt: skip
    net: Any = GPTNeoXForCausalLM(config)
    return net.eval()


def gemma2() -> Any:
    """Norms between attention, MLP and stream."""
    torch.manual_seed(5)
    config = Gemma2Config(
        vocab_size=tiny.WORDS, hidden_size=36, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, intermediate_size=50, max_position_embeddings=40,
        initializer_range=0.3, pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    net: Any = Gemma2ForCausalLM(config)
    return net.eval()


@pytest.mark.parametrize("net", [tiny.llama, tiny.gpt2, neox], ids=lambda f: f.__name__)
def test_parts_add_up_to_the_stream_and_the_logits(net: Any) -> None:
    m = opened(net())
    with tiny.untouched(m.module):
        read = readout(m, tiny.PROMPTS)
    last = len(m.sites("resid_post.*")) - 1
    stream_BD = m.run(tiny.PROMPTS, record=f"resid_post.{last}")[f"resid_post.{last}"][:, -1]
    torch.testing.assert_close(read.parts.stream, stream_BD, rtol=1e-4, atol=1e-4)
    logits = m.run(tiny.PROMPTS, logits=True).logits
    tokens, against = torch.tensor([5, 80, 33]), torch.tensor([6, 2, 33])
    for other, told in ((None, 0), (against, logits[range(3), -1, against]),
                        ("mean", logits[:, -1].mean(-1))):  # fmt: skip
        own = logits[range(3), -1, tokens] - told
        found = read.attribute(tokens, other)  # type: ignore[arg-type]
        torch.testing.assert_close(found.total, own, rtol=1e-4, atol=1e-4)


def test_low_precision_adds_up_to_its_own_rounding() -> None:
    m = tiny.model(torch.bfloat16)
    found = readout(m, tiny.PROMPTS).attribute(torch.tensor([5, 80, 33]))
    logits = m.run(tiny.PROMPTS, logits=True).logits
    own = logits[range(3), -1, [5, 80, 33]].float()
    torch.testing.assert_close(found.total, own, rtol=0, atol=0.05 * float(logits.abs().max()))


def test_exact_on_smollm2(smollm2: Model) -> None:
    """Entry by entry, beside a massive activation in the first token's stream."""
    prompts = ["The capital of France is", "She put the key into the lock and turned it"]
    last = smollm2.run(prompts, record="resid_post.29", logits=True)
    for at in (-1, 0):
        read = readout(smollm2, prompts, at)
        first_B = (~last.rows.valid).sum(-1)
        index = (torch.arange(2), first_B if at == 0 else first_B * 0 - 1)
        stream_BD = last["resid_post.29"][index]
        error = (read.parts.stream - stream_BD).abs().max() / stream_BD.abs().max()
        assert error < 1e-4
        tokens = torch.tensor([7042, 30])
        own_B = last.logits[index].gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(read.attribute(tokens).total, own_B, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "norm", [nn.LayerNorm(7), LlamaRMSNorm(7), nn.Identity()], ids=["layer", "rms", "none"]
)
@pytest.mark.parametrize("width", [7, 8])
def test_a_frozen_norm_is_the_norm(norm: Any, width: int) -> None:
    norm = norm if isinstance(norm, nn.Identity) else type(norm)(width)
    with torch.no_grad():
        for weight in norm.parameters():
            weight.copy_(tiny.uneven(*weight.shape, seed=3))
        x_BD = tiny.uneven(5, width, seed=1) * 3 + 1
        y_BD = norm(x_BD)
    frozen = frozen_norm(norm, x_BD[0])
    assert frozen.centred == isinstance(norm, nn.LayerNorm)
    scale_B1 = frozen.scale(x_BD, y_BD)
    torch.testing.assert_close(
        frozen.linear(x_BD) / scale_B1 + frozen.shift_D, y_BD, rtol=1e-3, atol=1e-4
    )
    u_D = tiny.uneven(width, seed=2)
    torch.testing.assert_close(x_BD @ frozen.read(u_D), frozen.linear(x_BD) @ u_D)
    size = x_BD - x_BD.mean(-1, keepdim=True) if frozen.centred else x_BD
    if not isinstance(norm, nn.Identity):
        torch.testing.assert_close(scale_B1[:, 0], size.square().mean(-1).sqrt(), rtol=1e-3, atol=0)


def test_networks_that_do_not_add_up_are_refused(minilm: Model) -> None:
    with pytest.raises(InputError, match="heads of layer 0 write must add up"):
        readout(opened(gemma2()), tiny.PROMPTS)
    with pytest.raises(SiteError, match="no final_norm"):
        readout(minilm, "a text")
    adapted = tiny.model()
    net: Any = adapted.module
    net.model.layers[1].self_attn.o_proj = nn.Bilinear(2, 2, 2)
    with pytest.raises(InputError, match=r"at z.1 stands .*o_proj, a Bilinear"):
        map_at(adapted, adapted.sites("z.1")[0])
    m = tiny.model()
    with pytest.raises(InputError, match="one of 3 tokens, got 3"):
        readout(m, tiny.PROMPTS, 3)
    with pytest.raises(InputError, match="need one token for each of 3 rows"):
        readout(m, tiny.PROMPTS).attribute(torch.tensor([1, 2]))
    read = readout(m, tiny.PROMPTS)
    bent = type(read)(read.parts, read.norm, read.scale_B1, read.head, read.logits_BV.tanh())
    with pytest.raises(InputError, match="read of the final norm must add up"):
        bent.attribute(torch.tensor([1, 2, 3]))
