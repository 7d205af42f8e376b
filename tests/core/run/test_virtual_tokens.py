"""Prompt tuning puts columns in front of each prompt that are no tokens of it."""

from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from torch.testing import assert_close

import actkit as ak
from actkit.model import Model
from tests.core import tiny

pytestmark = [  # of peft's own
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`"),
    pytest.mark.filterwarnings("ignore:Position ids are not supported"),
]
VIRTUAL = 4
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def m() -> Model:
    own = tiny.model()
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    torch.manual_seed(1)
    network: Any = get_peft_model(own.module, config)
    return Model(network.eval(), own.tokenizer)


def test_rows_are_the_tokens_that_were_given(m: Model) -> None:
    rec = m.run(tiny.PROMPTS, record=SITE)
    assert rec[SITE].shape == (3, 7 + VIRTUAL, tiny.WIDTH)
    rows = rec.rows_of(SITE)
    acts, flat = rec.flat(SITE)
    assert len(acts) == len(flat) == 15
    assert not rows.valid[:, :VIRTUAL].any()
    assert flat.token.tolist() == [int(w[1:]) for p in tiny.PROMPTS for w in p.split()]
    assert rows.position[0, VIRTUAL:].tolist() == list(range(7))


def test_a_batch_is_what_its_rows_are_alone(m: Model) -> None:
    rec = m.run(tiny.PROMPTS, record=SITE)
    for i, prompt in enumerate(tiny.PROMPTS):
        alone = m.run(prompt, record=SITE).flat(SITE)[0]
        assert_close(rec[SITE][i][rec.rows_of(SITE).valid[i]], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "column"), [(0, VIRTUAL), (-1, VIRTUAL + 6), ("last", VIRTUAL + 6)], ids=str
)
def test_positions_count_from_the_first_real_token(m: Model, tokens: Any, column: int) -> None:
    edit = ak.set(SITE, 9.0, ak.Where(tokens=tokens))
    hit = (m.run(tiny.PROMPTS[0], record=SITE, edits=[edit])[SITE] == 9).all(-1)
    assert hit.nonzero().tolist() == [[0, column]]


def test_what_is_written_is_told_in_generation(m: Model) -> None:
    vector, block, passes = 4 * tiny.uneven(tiny.WIDTH, seed=11), "model.layers.1", []

    def hook(_: Any, __: Any, x: torch.Tensor) -> torch.Tensor:
        passes.append(x.shape[1])
        return x + vector if len(passes) > 1 else x

    inputs = {k: v for k, v in m.encode(tiny.PROMPTS).kwargs.items() if k != "position_ids"}
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    net: Any = m.module
    path = next(p for p, _ in net.named_modules() if p.endswith(block))
    handle = net.get_submodule(path).register_forward_hook(hook)
    want = net.generate(**inputs, **settings)
    handle.remove()
    if passes[1:] != [1] * len(passes[1:]):
        pytest.skip(f"this PEFT hands its prompt to this transformers at every token: {passes}")
    edit = ak.add(SITE, vector, where=ak.Where("generated"))
    with m.edited([edit]):
        assert torch.equal(net.generate(**inputs, **settings), want)
    assert passes[0] == 7 + VIRTUAL
