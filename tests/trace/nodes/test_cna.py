"""Comparative neuron analysis: closed forms, a planted chain, and who drives whom.

Shapes: B prompts, D width, F neurons, V vocabulary.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

import actkit as ak
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from actkit.trace import Parts, Task
from actkit.trace.nodes.cna import CNA, neuron_words
from actkit.worlds.toy_transformer import clear, set_head, toy
from tests._evidence import Evidence
from tests.core import tiny

CLEAN, OTHER = ["w1 w2 w3", "w6 w2 w4 w7 w5"], ["w1 w12 w3", "w6 w13 w4 w7 w5"]


def task(**settings: Any) -> Task:
    return Task(CLEAN, OTHER, [7, 40], metric=settings.pop("metric", "log probability"), **settings)


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.mark.filterwarnings("ignore::actkit.trace._task.TaskWarning")
@pytest.mark.parametrize("parts", ["neurons", "heads"])
def test_importance_is_that_of_a_state_put_into_the_last_layer(m: Model, parts: str) -> None:
    """Final norm and head are reached through the network itself, by an edit of its last state."""
    scores = CNA(None, parts)(m, task()).values
    trial, last = task().on(m), f"resid_post.{tiny.LAYERS - 1}"

    def log_p(x_BD: Tensor) -> Tensor:
        edit = ak.set(last, x_BD, ak.Where(tokens="last"))
        logits = m.run(CLEAN, edits=[edit], logits=True).logits
        return logits[:, -1].double().log_softmax(-1)[torch.arange(2), torch.tensor([7, 40])]

    net: Any = m.module
    block = net.model.layers[1]
    rec = trial.record("clean", ["resid_pre.1", "resid_mid.1", "z.1", "mlp_hidden.1"])
    for source in (0, 3, 5):
        if parts == "neurons":
            x = rec["resid_mid.1"][:, -1]
            written = (
                rec["mlp_hidden.1"][:, -1, source, None] * block.mlp.down_proj.weight[:, source]
            )
        else:
            x, own = rec["resid_pre.1"][:, -1], slice(source * 8, source * 8 + 8)
            written = rec["z.1"][:, -1, source] @ block.self_attn.o_proj.weight[:, own].mT
        expected = (log_p(x + written) - log_p(x)).mean()
        assert scores[1, source] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.filterwarnings("ignore::actkit.trace._task.TaskWarning")
def test_the_change_is_the_importance_lost_with_the_head(m: Model) -> None:
    """The network whose head is silenced in its weights says what is left."""
    bare = CNA(None)(m, task()).values
    silenced = tiny.llama()
    with torch.no_grad():
        silenced.model.layers[1].self_attn.o_proj.weight[:, 16:24] = 0
    left = CNA(None)(Model(silenced, m.tokenizer, name="silenced"), task()).values
    change = CNA((1, 2))(m, task()).values
    torch.testing.assert_close(change, bare - left, rtol=1e-3, atol=1e-5)
    assert (change[0] == 0).all()  # neurons below the head do not hear of it
    assert (change[1:] != 0).any(-1).all()
    some = CNA((1, 2), layers=[2], batch=3)(m, task()).values
    assert some[:2].isnan().all()
    torch.testing.assert_close(some[2], change[2])


@pytest.mark.paper("interpreting-arithmetic-mechanism-large")
@pytest.mark.filterwarnings("ignore::actkit.trace._task.TaskWarning")
def test_with_a_linear_readout_importance_is_the_product(evidence: Evidence) -> None:
    net = toy(11, layers=2, heads=2, width=24, mlp=13, seed=3)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("bias"):
                weight.copy_(tiny.uneven(*weight.shape, seed=len(name)))
    model, word = Model(net), 4
    prompts = torch.tensor([[3, 1, 7], [2, 9, 5]])
    linear = Task(prompts, prompts.flip(0), metric=lambda logits: logits[:, -1, word])
    scores = CNA(None)(model, linear).values
    rec = model.run(prompts, ["mlp_hidden.*"])
    written_LFD = torch.stack([block.mlp.c_proj.weight for block in net.transformer.h])
    acts_LBF = torch.stack([rec[f"mlp_hidden.{i}"][:, -1] for i in range(2)])
    products = acts_LBF.mean(1) * (written_LFD.detach() @ net.lm_head.weight.detach()[word])
    error = (scores - products).abs().max().item()
    evidence("importance less m_k <v_k, w_U>, largest", measured=error, at_most=1e-5)


def planted() -> Any:
    """A head copies the first token's feature to the end, where five neurons amplify it.

    Eight others, further on, are always on and write twice as much of the answer.
    """
    tokens, positions, feature, answer = 4, 3, 8, 10
    net = clear(toy(tokens, layers=2, heads=1, width=12, positions=positions, mlp=20))
    embed = net.transformer
    embed.wte.weight[:, :tokens] = torch.eye(tokens)
    embed.wpe.weight[:, tokens : tokens + positions] = torch.eye(positions)
    q, k, v = (torch.zeros(12, 1) for _ in range(3))
    q[tokens : tokens + positions], k[tokens], v[1] = 50.0, 1.0, 1.0
    o = torch.zeros(1, 12)
    o[0, feature] = 1.0
    set_head(net, 0, 0, q, k, v, o)
    mlp = net.transformer.h[1].mlp
    for unit in (2, 5, 11, 13, 17):
        mlp.c_fc.weight[feature, unit], mlp.c_proj.weight[unit, answer] = 3.0, 0.2
    for unit in (0, 3, 4, 7, 8, 12, 15, 19):
        mlp.c_fc.bias[unit], mlp.c_proj.weight[unit, answer] = 3.0, 0.4
    net.lm_head.weight[2, answer] = 1.0
    return net.requires_grad_(requires_grad=False)


@pytest.mark.paper("interpreting-arithmetic-mechanism-large")
def test_neurons_that_a_head_drives_are_found_among_louder_ones(evidence: Evidence) -> None:
    with torch.no_grad():
        model = Model(planted())
    prompts = Task(
        torch.tensor([[1, 0, 3]]), torch.tensor([[0, 0, 3]]), [2], metric="log probability"
    )
    driven = {(1, u) for u in (2, 5, 11, 13, 17)}

    def hits(head: tuple[int, int] | None) -> int:
        return len(driven & {*CNA(head)(model, prompts).ranked()[:5]})

    evidence("planted neurons among the five of largest change", measured=hits((0, 0)), at_least=5)
    evidence("planted ones among the five most important", measured=hits(None), at_most=0)


def gemma(**settings: Any) -> Model:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=tiny.WORDS, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, pad_token_id=0, **settings,
    )  # fmt: skip
    net: Any = Gemma2ForCausalLM(config)
    return Model(net.eval(), tiny.tokenizer())


@pytest.mark.filterwarnings("ignore::actkit.trace._task.TaskWarning")
def test_what_it_does_not_hold_for_is_refused(m: Model) -> None:
    with pytest.raises(InputError, match=r"'neurons' or 'heads' at the last token, got mlp"):
        CNA(None, "mlp")(m, Task(CLEAN[:1], OTHER[:1], [7], metric="log probability"))
    with pytest.raises(InputError, match="at the last token, got neurons at 1"):
        CNA(None)(m, task(at=1))
    with pytest.raises(InputError, match="not what they return"):
        CNA(None)(gemma(final_logit_softcapping=0.1), task())
    with pytest.raises(InputError, match=r"those of mlp_hidden\.0 do not"):
        CNA(None, Parts("mlp_hidden", ("unit",)))(gemma(final_logit_softcapping=None), task())
    with pytest.raises(EditError, match="layers must be below 3, got"):
        CNA(None, layers=[3])(m, task())
    with pytest.raises(InputError, match=r"'value' or 'query', got 'key'"):
        neuron_words(m, 0, 0, side="key")


def test_words_of_a_neuron_are_those_of_its_vectors(m: Model) -> None:
    net: Any = m.module
    gain = net.model.norm.weight.detach()
    for side, vector in (
        ("value", net.model.layers[2].mlp.down_proj.weight[:, 6]),
        ("query", net.model.layers[2].mlp.gate_proj.weight[6]),
    ):
        best = (net.lm_head.weight @ (gain * vector)).topk(3).indices.tolist()
        assert neuron_words(m, 2, 6, 3, side) == [m.tokenizer.decode([i]) for i in best]
    with pytest.raises(InputError, match="output head"):
        neuron_words(Model(net.model, m.tokenizer), 2, 6)
