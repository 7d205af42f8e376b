"""What users give, what the network gets, and what is refused.

Shapes: B batch, T tokens.
"""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import EditError, InputError
from actkit.model import Model
from tests.core import tiny

IDS = [[1, 2, 3, 4], [5, 6]]
TEMPLATE = "{% for x in messages %}{{ x['content'] }} {% endfor %}w9"


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


def ids_of(m: Model, inputs: Any) -> list[list[int]]:
    """Return each row's valid token ids, as the network sees them."""
    rows = m.run(inputs, record="embeddings").rows
    return [t[v].tolist() for t, v in zip(rows.token, rows.valid, strict=True)]


FORMS: dict[str, Any] = {
    "text": ["w1 w2 w3 w4", "w5 w6"],
    "lists of ids": IDS,
    "tensors of ids": [torch.tensor(i) for i in IDS],
    "arrays of ids": [np.array(i) for i in IDS],
    "batch dict": {
        "input_ids": torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    },
    "batch dict of arrays": {
        "input_ids": np.array([[1, 2, 3, 4], [0, 0, 5, 6]]),
        "attention_mask": np.array([[1, 1, 1, 1], [0, 0, 1, 1]]),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_all_forms_of_a_batch_read_alike(m: Model, form: str) -> None:
    assert ids_of(m, FORMS[form]) == IDS
    acts, _ = m.run(FORMS[form], record="resid_post.2").flat("resid_post.2")
    for start, ids in ((0, IDS[0]), (4, IDS[1])):
        one = m.run([ids], record="resid_post.2")["resid_post.2"][0]
        assert_close(acts[start : start + len(ids)], one, rtol=1e-4, atol=1e-4)


def test_one_row_in_every_form(m: Model) -> None:
    row = torch.tensor([1, 2, 3])
    forms: list[Any] = [
        "w1 w2 w3", ["w1 w2 w3"], [1, 2, 3], row, row[None], row.numpy(), row.int(), (row[None],),
        ak.Call(input_ids=row[None]), m.encode("w1 w2 w3"),
    ]  # fmt: skip
    want = m.run("w1 w2 w3", record="resid_post.2")["resid_post.2"]
    for form in forms:
        assert torch.equal(m.run(form, record="resid_post.2")["resid_post.2"], want)


def test_embeddings_may_be_given(m: Model) -> None:
    with torch.no_grad():
        embeds: Tensor = m.module.get_input_embeddings()(torch.tensor([[1, 2, 3]]))  # type: ignore[operator]
    rec = m.run({"inputs_embeds": embeds}, record=["resid_pre.0", "resid_post.2"])
    assert torch.equal(rec["resid_pre.0"], embeds)
    assert torch.equal(
        rec["resid_post.2"], m.run("w1 w2 w3", record="resid_post.2")["resid_post.2"]
    )
    assert rec.rows.position.tolist() == [[0, 1, 2]]
    where = ak.Where(tokens=-2)
    edited = m.run(
        {"inputs_embeds": embeds}, record="resid_pre.0", edits=[ak.set("resid_pre.0", 0.0, where)]
    )
    assert (edited["resid_pre.0"] == 0).all(-1).tolist() == [[False, True, False]]


def test_chats_go_through_the_template(m: Model) -> None:
    own = tiny.model()
    own.tokenizer.chat_template = TEMPLATE
    chat = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]
    assert ids_of(own, chat) == [[1, 2, 3]]
    assert ids_of(own, [chat, chat[:1]]) == [[1, 2, 3], [1, 2, 9]]
    with pytest.raises(InputError, match="need a tokenizer with a chat template"):
        m.run(chat)


def test_inputs_come_back_unchanged(m: Model) -> None:
    ids, mask = torch.tensor([[0, 2, 3]]), torch.tensor([[0, 1, 1]])
    given = {"input_ids": ids, "attention_mask": mask}
    m.run(given, record="embeddings", edits=[ak.set("embeddings", 1.0)])
    assert [*given] == ["input_ids", "attention_mask"]
    assert ids.tolist() == [[0, 2, 3]] and mask.tolist() == [[0, 1, 1]]
    net, x = Model(tiny.Cnn().eval()), tiny.uneven(1, 3, 5, 5)
    kept = x.clone()
    net.run(x, record=":in", edits=[ak.set("conv1:in", 1.0)], logits=True, grad=True)
    assert torch.equal(x, kept) and not x.requires_grad


def test_other_networks_take_any_arguments() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float = 1.0, *, shift: Tensor | None = None) -> Tensor:
            return x * scale + (0 if shift is None else shift)

    m, x = Model(Scaled()), tiny.uneven(2, 3)
    assert torch.equal(m.run(x).output, x)
    assert torch.equal(m.run((x, 2.0)).output, x * 2)
    assert torch.equal(m.run(ak.Call(x, 2.0, shift=x)).output, x * 2 + x)
    assert torch.equal(m.run({"x": x, "scale": 3.0}).output, x * 3)
    assert torch.equal(m.run(x.numpy()).output, x)


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("", "a prompt must not be empty, got '' at index 0"),
        (["w1", ""], "a prompt must not be empty, got '' at index 1"),
        ([], "not empty, got list"),
        ([[1, 2], []], r"a prompt must have a token, got lengths \[2, 0\]"),
        (torch.zeros(1, 0, dtype=torch.long), r"not be empty, got shape \(1, 0\)"),
        ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, r"have a token, got shape \(2, 0\)"),
        ("w1 " * 65, "must fit the context of 64 tokens, got 65; nothing was cut off"),
        ({"input_ids": torch.ones(1, 65, dtype=torch.long)}, "context of 64 tokens, got 65"),
        ([[1, 89]], "token ids must be 0 to 88, got 1 to 89"),
        ([[1, -2]], "token ids must be 0 to 88, got -2 to 1"),
        (None, "inputs must be text, tokens, arrays or a batch and not empty, got NoneType"),
        (3.5, "got float"),
        ([object()], "a list of object needs a processor and there is none"),
    ],
    ids=lambda x: str(x)[:30] if isinstance(x, str) else type(x).__name__,
)
def test_inputs_that_the_network_cannot_take(m: Model, inputs: Any, message: str) -> None:
    with tiny.untouched(m.module), pytest.raises(InputError, match=message):
        m.run(inputs, record="resid_post.0")


def test_text_without_a_tokenizer(m: Model) -> None:
    bare = Model(m.module)
    for inputs in ("w1", ["w1", "w2"]):
        with pytest.raises(
            InputError, match="text needs a tokenizer and this network has none: pass"
        ):
            bare.run(inputs)
    assert bare.run([[1, 2]], record="resid_post.0")["resid_post.0"].shape == (1, 2, 48)


def test_a_prompt_of_the_whole_context_is_taken(m: Model) -> None:
    assert m.run("w1 " * 64, record="embeddings")["embeddings"].shape == (1, 64, 48)


def test_a_mask_of_another_shape_is_no_mask_of_tokens(m: Model) -> None:
    """An edit's positions need a validity that fits; a 4-D mask is the network's own business."""
    ids = torch.tensor([[1, 2, 3]])
    seen = torch.ones(3, 3).tril().bool()[None, None]
    rec = m.run({"input_ids": ids, "attention_mask": seen}, record="resid_post.0")
    assert_close(rec["resid_post.0"], m.run(ids, record="resid_post.0")["resid_post.0"])
    with pytest.raises(EditError, match="met nothing"):
        m.run({"input_ids": ids, "attention_mask": seen}, edits=[ak.set("z.0", 0.0, ak.Where(3))])
