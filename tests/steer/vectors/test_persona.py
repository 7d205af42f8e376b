"""Trait directions: exact on a tiny network, cheerful against gloomy with SmolLM2."""

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.steer._chat_answers import answer_states, tokens_of
from actkit.steer.vectors.persona import Persona, similarity, trait_chats, with_answers
from tests._evidence import Evidence
from tests.core import tiny
from tests.steer._nats import last_logs, perplexity_ratio

PAIRS = [("w1 w2 w3", "w1 w2 w4"), ("w9 w3", "w8 w4"), ("w5 w5 w5 w3", "w6 w4")]


def test_vector_is_the_difference_of_means_of_unpaired_sides() -> None:
    model, site = tiny.model(), "resid_post.1"
    sides = {"positive": ["w1 w2 w3", "w9 w3", "w5 w5 w5 w3"], "negative": ["w8 w4", "w6"]}
    means = [
        torch.stack([model.run(t, record=site)[site][0, -1] for t in side]).mean(0)
        for side in sides.values()
    ]
    found = Persona().fit(model, sides).vectors_[1]
    torch.testing.assert_close(found, means[0] - means[1], rtol=1e-4, atol=1e-5)


def test_strength_says_what_share_is_removed() -> None:
    model, site = tiny.model(), "resid_post.2"
    persona = Persona(layers=[0, 2], mode="ablate").fit(model, PAIRS)
    edits = persona.edits(torch.tensor([1.0, 0.0, 0.25]))
    last = [edits[-1]]
    bare, moved = (model.run(tiny.PROMPTS, edits=e, record=site)[site] for e in ([], last))
    span = torch.stack([persona.vectors_[0], persona.vectors_[2]]).double()
    projector = torch.linalg.pinv(span) @ span
    inside = bare.double() @ projector
    expected = bare - torch.tensor([1.0, 0.0, 0.25])[:, None, None] * inside
    torch.testing.assert_close(moved.double(), expected, rtol=1e-4, atol=1e-4)
    assert len(edits) == tiny.LAYERS


def test_answers_are_read_as_the_mean_over_their_tokens(smollm2: Model) -> None:
    chat = [{"role": "user", "content": "Who are you?"}]
    answered = [*chat, {"role": "assistant", "content": "A friend of yours."}]
    ids, start = tokens_of(smollm2, answered)
    assert smollm2.tokenizer.decode(ids[start:]) == "A friend of yours."
    assert ids[:start] == tokens_of(smollm2, chat)[0]
    site = "resid_post.9"
    alone = smollm2.run([ids], record=site)[site][0]
    other = "A longer text stands beside it, so that the chat is padded on the left. " * 4
    found = answer_states(smollm2, [other, answered], site)[site]
    torch.testing.assert_close(found[1], alone[start:].mean(0), rtol=1e-3, atol=1e-2)


def test_bad_settings_and_examples_are_refused(smollm2: Model) -> None:
    model = tiny.model()
    with pytest.raises(InputError, match=r"mode must be .* got 'remove'"):
        Persona(mode="remove").fit(model, PAIRS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="one text or chat"):
        Persona().fit(model, [({"x": torch.ones(1)}, {"x": torch.ones(1)})])
    mute = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": ""}]
    with pytest.raises(InputError, match="an answer must have a token, got ''"):
        tokens_of(smollm2, mute)


QUESTIONS = (
    *("How was your day?", "What do you think of the weather?", "Tell me about your weekend."),
    *("What will you do tomorrow?", "How is your work?", "Describe your home."),
    *("What do you think of people?", "How did you sleep?", "What is life like?"),
    *("Tell me about your family.", "What do you see outside?", "How do you feel right now?"),
    *("What did you eat today?", "Tell me about your town.", "What do mornings mean to you?"),
    *("What do you expect of next year?", "Describe a walk in the park.", "How was the party?"),
    *("What do you think about music?", "Tell me about a friend.", "How was your holiday?"),
    *("What was the film like?", "What do you think of winter?", "Tell me about your school."),
)
WORDS = (
    *((" happy", " sad"), (" good", " bad"), (" great", " terrible"), (" better", " worse")),
    *((" excited", " bored"), (" bright", " dark"), (" hopeful", " hopeless"), (" warm", " cold")),
    *((" proud", " ashamed"), (" alive", " dead"), (" lucky", " unlucky"), (" loved", " hated")),
    *((" cheerful", " gloomy"), (" energetic", " tired"), (" wonderful", " awful")),
    *((" grateful", " bitter"), (" joy", " sorrow"), (" calm", " anxious"), (" glad", " sorry")),
    (" confident", " afraid"),
)
PROMPTS = ("Today I feel", "When I think of my life, I am", "All in all, I am feeling")


def gap(model: Model, edits: list[ak.Edit], prompts: tuple[str, ...]) -> float:
    """Return the mean log-odds of 20 trait words against their antonyms (nats)."""
    ids = torch.tensor([[model.tokenizer(w)["input_ids"][0] for w in pair] for pair in WORDS])
    logs = last_logs(model, list(prompts), edits)
    return float((logs[:, ids[:, 0]] - logs[:, ids[:, 1]]).mean())


@pytest.fixture(scope="module")
def cheerful(smollm2: Model) -> Persona:
    chats = trait_chats("a cheerful person", QUESTIONS[:16], "a gloomy person")
    return Persona().fit(smollm2, chats)


@pytest.mark.slow
@pytest.mark.paper("identifying-manipulating-personality-traits")
def test_answers_tell_the_persona(smollm2: Model, cheerful: Persona, evidence: Evidence) -> None:
    """Answers to questions that were held out are scored without the persona's instruction."""
    chats = trait_chats("a cheerful person", QUESTIONS[16:], "a gloomy person")
    asked = [side for pair in zip(*chats, strict=True) for side in pair]
    answered = with_answers(smollm2, asked, max_new_tokens=20, batch_size=16)
    bare = [chat[1:] for chat in answered]
    shown = torch.arange(len(bare)) < len(chats)
    acts = answer_states(smollm2, bare, "resid_post.*", batch_size=16)

    def auc(layer: int, direction: Tensor) -> float:
        return float(roc_auc_score(shown, acts[f"resid_post.{layer}"] @ direction))

    aucs = {layer: auc(layer, v) for layer, v in cheerful.vectors_.items()}
    best = max(aucs, key=lambda layer: aucs[layer])
    evidence("AUC of the projection at the best layer", measured=aucs[best], at_least=0.9)
    scores = cheerful.at(best).score(smollm2, bare[:3])
    unit = cheerful.vectors_[best] / cheerful.vectors_[best].norm()
    torch.testing.assert_close(scores, acts[f"resid_post.{best}"][:3] @ unit, rtol=1e-3, atol=0.1)
    gen = torch.Generator().manual_seed(0)
    draws = torch.tensor([auc(best, torch.randn(576, generator=gen)) for _ in range(20)])
    evidence("mean AUC of 20 random ones", measured=draws.mean(), equals=0.5, tolerance=0.15)


@pytest.mark.slow
@pytest.mark.paper("identifying-manipulating-personality-traits")
def test_traits_are_induced_and_removed(
    smollm2: Model, cheerful: Persona, evidence: Evidence
) -> None:
    effects = cheerful.sweep(lambda edits: gap(smollm2, edits, PROMPTS[:1]))
    best = max(effects, key=lambda layer: effects[layer])
    induced, strengths = cheerful.at(best), (-1.0, -0.5, 0.0, 0.5, 1.0)
    gaps = [gap(smollm2, induced.edits(c), PROMPTS[1:]) for c in strengths]
    rise = gaps[-1] - gaps[2]
    evidence("rise of trait words over antonyms (nats)", measured=rise, at_least=0.5)
    steps = torch.tensor(gaps).diff()
    evidence("smallest step of it between strengths -1 to 1", measured=steps.min(), at_least=0)
    prose = ak.data.text(num_samples=60)
    texts = [" ".join(prose[i : i + 2])[:100] for i in range(0, 30, 5)]
    cost = perplexity_ratio(smollm2, texts, induced.edits(1.0))
    evidence("perplexity of other texts over that without", measured=cost, at_most=1.5)

    induced.mode = "ablate"
    rec = smollm2.run(list(PROMPTS), edits=induced.edits(1.0), record="resid_post.*")
    unit = cheerful.vectors_[best] / cheerful.vectors_[best].norm()
    left = torch.stack([(rec[s] @ unit).abs() / rec[s].norm(dim=-1) for s in rec])
    evidence("largest share of the stream that is left", measured=left.max(), at_most=1e-4)


@pytest.mark.paper("identifying-manipulating-personality-traits")
def test_the_map_of_traits_is_sensible(smollm2: Model, evidence: Evidence) -> None:
    traits = ("a cheerful person", "a joyful person", "a gloomy person")
    made = {t: Persona().fit(smollm2, trait_chats(t, QUESTIONS[:5])) for t in traits}
    cos = similarity(made, layer=18)
    torch.testing.assert_close(cos.diagonal(), torch.ones(3))
    closer = cos[0, 1] - cos[0, 2]
    evidence("cosine of cheerful with joyful less with gloomy", measured=closer, at_least=0.1)
