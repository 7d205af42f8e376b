"""Neurons set to a value: exact, in rows of their own, and in a small action model."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.nn.functional import cross_entropy

import actkit as ak
from actkit.core.errors import EditError, InputError, SiteError
from actkit.find.neurons.value_vectors import value_vectors
from actkit.model import Model
from actkit.steer.vectors.neuron_override import NeuronOverride
from tests._evidence import Evidence
from tests.core import tiny

NEURONS = {1: [70, 3], 0: [11]}


def logits(model: Model, edits: Any, prompts: Any = tiny.PROMPTS) -> Tensor:
    found = model.run(prompts, edits=edits, logits=True).logits
    assert found is not None
    return found[:, -1]


def test_the_value_stands_in_place_of_the_activation() -> None:
    model = tiny.model()
    steerer = NeuronOverride(value=3.0).fit(model, NEURONS)
    sites = ["mlp_hidden.0", "mlp_hidden.1"]
    found = model.run(tiny.PROMPTS, sites, steerer.edits(-2.0))
    bare = model.run(tiny.PROMPTS, sites)
    assert steerer.neurons_ == {1: (3, 70), 0: (11,)}
    for site, own in zip(sites, ([11], [3, 70]), strict=True):
        assert (found[site][..., own] == -6.0).all()
        rest = [i for i in range(tiny.HIDDEN) if i not in own]
        if site == "mlp_hidden.0":  # later ones see what was changed before
            assert torch.equal(found[site][..., rest], bare[site][..., rest])


def test_rows_have_strengths_of_their_own_and_zero_changes_no_bit() -> None:
    model = tiny.model()
    steerer = NeuronOverride(value=5.0).fit(model, NEURONS)
    bare = logits(model, [])
    assert torch.equal(logits(model, steerer.edits(0.0)), bare)
    assert torch.equal(logits(model, steerer.edits(torch.zeros(3))), bare)
    together = logits(model, steerer.edits(torch.tensor([0.0, 1.0, -0.4])))
    assert torch.equal(together[0], bare[0])
    for i, strength in ((1, 1.0), (2, -0.4)):
        alone = logits(model, steerer.edits(strength), [tiny.PROMPTS[i]])
        torch.testing.assert_close(together[i], alone[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(EditError, match="3 rows"):
        logits(model, steerer.edits(torch.ones(2)))


def test_a_value_of_zero_deactivates() -> None:
    model = tiny.model()
    off = NeuronOverride(value=0.0).fit(model, {1: [3, 70]}).edits(1.0)
    scaled = ak.scale("mlp_hidden.1", 0.0, ak.Where(units=[3, 70]))
    assert torch.equal(logits(model, off), logits(model, [scaled]))
    assert not torch.equal(logits(model, off), logits(model, []))


def test_saved_composed_and_in_every_step_of_generate(tmp_path: Path) -> None:
    model = tiny.model()
    steerer = NeuronOverride(tokens="generated").fit(model, NEURONS)
    steerer.save(tmp_path / "edits", model, strength=0.7)
    loaded = ak.load_edits(tmp_path / "edits", model)
    other = ak.add("resid_post.0", tiny.uneven(tiny.WIDTH), 0.5)
    written = model.generate(tiny.PROMPTS, edits=[other, *loaded], max_new_tokens=6)
    assert written == model.generate(
        tiny.PROMPTS, edits=[other, *steerer.edits(0.7)], max_new_tokens=6
    )
    bare = model.generate(tiny.PROMPTS, edits=[other], max_new_tokens=6)
    assert written != bare
    first = [[text.split()[0] for text in texts] for texts in (written, bare)]
    assert first[0] == first[1], "the prompt is left alone"
    assert steerer.about_ is not None and steerer.about_["data"]["neurons"] == 3


@pytest.mark.parametrize(
    ("neurons", "said"),
    [
        ({}, "some units"),
        ({1: []}, "some units"),
        ([1, 2], "mapping of layers"),
        ({1: [80]}, r"0\.\.79: \(80,\)"),
        ({1: [-1, 2]}, r"0\.\.79: \(-1, 2\)"),
        ({1: [2, 2]}, "must differ"),
    ],
    ids=["none", "no units", "a list", "too high", "negative", "twice"],
)
def test_neurons_that_are_none_are_refused(neurons: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        NeuronOverride().fit(tiny.model(), neurons)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="finite, got inf"):
        NeuronOverride(value=float("inf")).fit(tiny.model(), NEURONS)
    with pytest.raises(SiteError, match=r"mlp_hidden\.9"):
        NeuronOverride().fit(tiny.model(), {9: [0]})


IMAGE, SLOW, FAST, ASK, FIRST, BINS = 5, 3, 4, 6, 60, 9
CENTRES = torch.arange(BINS) - 4.0
"""Action tokens w60 to w68 move by -4 to 4."""


class World:
    """An image shows where a thing stands, left to right; an instruction says how fast to move."""

    def __init__(self) -> None:
        self.gen = torch.Generator().manual_seed(0)

    def draw(self, num: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Return inputs, noisy action tokens, and the displacement that is right."""
        column, fast = (torch.randint(n, (num,), generator=self.gen) for n in (3, 2))
        pixels = 0.1 * torch.randn(num, 3, 12, 12, generator=self.gen)
        lit = torch.arange(12) // 4 == column[:, None]
        pixels[:, :, 4:8] += 2.0 * lit[:, None, None]
        words = torch.stack([torch.where(fast == 1, FAST, SLOW), torch.full((num,), ASK)], 1)
        ids = torch.cat([torch.full((num, 9), IMAGE), words], 1)
        right = (column - 1) * (1 + 2 * fast)
        noise = torch.randint(-1, 2, (num,), generator=self.gen)
        actions = FIRST + ((right + noise).clamp(-4, 4) + 4)
        return {"input_ids": ids, "pixel_values": pixels}, actions, right


@pytest.fixture(scope="module")
def actor() -> tuple[Model, World]:
    """A LLaVA of three blocks, trained to write the action token."""
    torch.manual_seed(0)
    text = tf.LlamaConfig(
        vocab_size=tiny.WORDS,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    eye = tf.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
    )
    config = tf.LlavaConfig(
        vision_config=eye, text_config=text, image_token_index=IMAGE, vision_feature_layer=-1
    )
    net: Any = tf.LlavaForConditionalGeneration(config)
    world = World()
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(150):
        inputs, actions, _ = world.draw(32)
        loss: Any = cross_entropy(net(**inputs).logits[:, -1], actions)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    net.eval().requires_grad_(False)
    return Model(net, tiny.tokenizer()), world


def displacement(model: Model, inputs: Any, edits: Any = ()) -> Tensor:
    """Return the (B,) mean decoded displacement under the distribution over action tokens."""
    scores = logits(model, edits, inputs)[:, FIRST : FIRST + BINS]
    return scores.softmax(-1) @ CENTRES


@pytest.mark.paper("mechanistic-interpretability-steering-vision")
def test_speed_of_an_action_model(actor: tuple[Model, World], evidence: Evidence) -> None:
    model, world = actor
    inputs, _, right = world.draw(100)
    bare = displacement(model, inputs)
    assert torch.corrcoef(torch.stack([bare, right.float()]))[0, 1] > 0.95

    net: Any = model.module
    mlp, head = net.model.language_model.layers[2].mlp, net.get_output_embeddings().weight
    before = mlp.down_proj.weight[:, 7].clone()
    readout = head[FIRST : FIRST + BINS] * net.model.language_model.norm.weight
    speed = torch.linalg.pinv(readout) @ CENTRES
    mlp.down_proj.weight[:, 7] = 3 * before.norm() * speed / speed.norm()
    words = value_vectors(model, layers=2, top_k=3).words(2, 7)
    assert words == ["w68", "w67", "w66"], "the planted neuron names the fastest moves"
    alphas = (-10.0, -5.0, 0.0, 5.0, 10.0)
    moves = [
        displacement(model, inputs, NeuronOverride(value=a).fit(model, {2: [7]}).edits(1.0)).mean()
        for a in alphas
    ]
    mlp.down_proj.weight[:, 7] = before
    steps = torch.stack(moves).diff()
    evidence("least step of mean displacement, alpha by 5", measured=steps.min(), at_least=0.01)

    fast = [f"w{FIRST + i}" for i in (6, 7, 8)]
    found = value_vectors(model, top_k=3).concept(fast, num_neurons=5)
    grown = [
        displacement(model, inputs, NeuronOverride(value=a).fit(model, found).edits(1.0)).mean()
        for a in alphas
    ]
    steps = torch.stack(grown).diff()
    evidence("the same of the 5 neurons that training made", measured=steps.min(), at_least=0.01)
