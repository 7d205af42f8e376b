"""Classes of heads: on hand-wired heads, and what SmolLM2 has."""

from typing import Any

import pytest
import torch

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.trace import Task
from actkit.trace._head_classes import attention_paid, copy_scores, head_classes
from actkit.worlds.toy_transformer import clear, set_head, toy
from tests._evidence import Evidence
from tests.core import tiny
from tests.trace import _ioi


def wired() -> Model:
    """Return heads that attend to where the name of their class says; all in block 1.

    Prompts hold the object, the subject, 6, the subject, 7: (1, 0) copies the object, (1, 1) its
    negative, (1, 2) writes another token in its place, (1, 3) is an induction head and
    (1, 4) a previous-token head.
    """
    net = clear(toy(8, layers=2, heads=5, width=40, positions=5))
    eye = torch.eye(40)
    with torch.no_grad():
        net.transformer.wte.weight[:, :8] = torch.eye(8)
        net.transformer.wpe.weight[:, 8:13] = torch.eye(5)
        net.lm_head.weight[:, 16:24] = torch.eye(8)
    looks = {0: (4, 0), 1: (4, 0), 2: (4, 0), 3: (3, 2), 4: (2, 1)}
    written = {0: eye[16:24], 1: -0.1 * eye[16:24], 2: eye[16:24].roll(1, 0) - eye[16:24]}
    for head, (query, key) in looks.items():
        q, k = torch.zeros(40, 1), torch.zeros(40, 1)
        q[8 + query], k[8 + key] = 50.0, 1.0
        set_head(net, 1, head, q, k, eye[:, :8], written.get(head, torch.zeros(8, 40)))
    return Model(net)


CLEAN = torch.tensor([[1, 2, 6, 2, 7], [3, 4, 6, 4, 7], [5, 0, 6, 0, 7]])
NAMED = Task(CLEAN, CLEAN.roll(1, 0), CLEAN[:, 0], CLEAN[:, 1])


def test_hand_wired_heads_are_told_apart() -> None:
    trial = NAMED.on(wired())
    found = head_classes(trial, 0.9, 0.9)
    assert found == {
        "previous token": [(1, 4)], "duplicate token": [], "induction": [(1, 3)],
        "S-inhibition": [], "name mover": [(1, 0)],
        "negative name mover": [(1, 1), (1, 2)],
    }  # fmt: skip
    plus, minus = copy_scores(trial, [(1, 2), (1, 1), (1, 0)], num_best=1)
    assert plus.tolist() == [0, 0, 1]
    assert minus.tolist() == [1, 1, 0]
    paid = attention_paid(trial)["duplicate token"]
    assert paid[0].tolist() == pytest.approx([1 / 4] * 5)  # heads of block 0 are uniform


def test_copying_equals_the_weights_by_hand() -> None:
    """With grouped queries, norms and MLPs: six heads on two of keys and values."""
    m = tiny.model()
    net: Any = m.module
    texts = ["w7 w2 w3 w2 w5", "w3 w8 w9 w4 w8 w6", "w1 w31 w5 w31 w6", "w4 w6 w5 w6 w8"]
    named = Task(texts, texts, ["w7", "w3", "w1", "w4"], ["w2", "w8", "w31", "w6"])
    heads = [(layer, head) for layer in range(tiny.LAYERS) for head in range(tiny.HEADS)]
    plus, minus = copy_scores(named.on(m), heads, num_best=30)
    width = tiny.WIDTH // tiny.HEADS
    for i, (layer, head) in enumerate(heads):
        block, hits = net.model.layers[layer], torch.zeros(2)
        for text, word in zip(texts, (7, 3, 1, 4), strict=True):
            x = m.run(text, record="resid_post.0")["resid_post.0"][0, 0]
            v = block.self_attn.v_proj(block.input_layernorm(x)).view(tiny.KV_HEADS, width)
            out = block.self_attn.o_proj.weight[:, head * width :][:, :width] @ v[head // 3]
            for j, sign in enumerate((1, -1)):
                logits = net.lm_head(net.model.norm(sign * out))
                hits[j] += int((logits > logits[word]).sum()) < 30
        assert [float(plus[i]), float(minus[i])] == (hits / 4).tolist()


def test_prompts_without_the_names_are_refused() -> None:
    turned = Task(CLEAN, CLEAN.roll(1, 0), CLEAN[:, 1], CLEAN[:, 0])
    with pytest.raises(InputError, match="prompt 0 holds them 1 and 2 times"):
        head_classes(turned.on(wired()))


@pytest.mark.paper("interpretability-wild-circuit-indirect")
def test_smollm2_has_heads_of_the_classes(smollm2: Model, evidence: Evidence) -> None:
    trial = _ioi.pairs(4).on(smollm2)
    paid = attention_paid(trial)
    for name in ("previous token", "duplicate token", "induction", "S-inhibition", "name mover"):
        evidence(f"{name}: largest share of attention", measured=paid[name].max(), at_least=0.5)
    classes = head_classes(trial, 0.4)
    evidence("name movers that copy", measured=len(classes["name mover"]), at_least=1)
    evidence("negative ones", measured=len(classes["negative name mover"]), at_least=1)
