"""Two properties at once on SmolLM2: French, and no capital letters."""

import math
import random
import re
from typing import Any

import pytest
import torch

import actkit as ak
from actkit.model import Model
from actkit.steer.controllers.dac import DAC
from tests._evidence import Evidence
from tests.steer.controllers.test_dac import alphas, constant

SHOWN = [
    ("Where is the book?", "The book is on the table.", "Le livre est sur la table."),
    ("What do you drink in the morning?", "I drink a cup of coffee with milk.",
     "Je bois une tasse de café avec du lait."),
    ("Who is at the door?", "My sister is at the door with her dog.",
     "Ma sœur est à la porte avec son chien."),
    ("What is the weather like?", "The sky is grey and it is raining.",
     "Le ciel est gris et il pleut."),
    ("When does the train leave?", "The train leaves at eight in the morning.",
     "Le train part à huit heures du matin."),
    ("Where do you live?", "I live in a small house near the sea.",
     "J'habite dans une petite maison près de la mer."),
    ("What are you eating?", "I am eating bread with cheese and an apple.",
     "Je mange du pain avec du fromage et une pomme."),
    ("Why are you late?", "I am late because the bus did not come.",
     "Je suis en retard parce que le bus n'est pas venu."),
    ("What is your brother doing?", "My brother is reading in the garden.",
     "Mon frère lit dans le jardin."),
    ("How was the film?", "The film was long but very beautiful.",
     "Le film était long mais très beau."),
]  # fmt: skip
ASKED = [
    "What did you buy at the market?", "Where are the children?", "What is in the box?",
    "Who lives in the old house?", "What do you see from the window?", "How do you go to work?",
    "What does your mother like?", "Why is the cat on the roof?", "When do we eat?",
    "What color is the car?", "Who is that man?", "Where is the station?",
    "What do you do in summer?", "Why are you so happy?", "What is on the wall?",
    "How is your father?",
]  # fmt: skip
FRENCH = frozenset(
    re.findall(
        r"\S+",
        "le la les un une des de du je il elle est dans sur et à avec mon ma son sa nous vous ils "
        "que qui pas ne en au aux ce j'ai mes ses pour par",
    )
)
ENGLISH = frozenset(
    re.findall(
        r"\S+",
        "the a an of i he she is in on and to with my his her we you they that which not at this "
        "it for by are was were have has but i'm they're it's",
    )
)
SHOW: dict[str, Any] = {
    "plain": lambda row: row[1],
    "french": lambda row: row[2],
    "lower": lambda row: row[1].lower(),
    "both": lambda row: row[2].lower(),
}
STEPS, STRENGTH = 16, 0.35


def prompt(kind: str, rows: Any, question: str) -> str:
    shown = "".join(f"Q: {row[0]}\nA: {SHOW[kind](row)}\n\n" for row in rows)
    return f"{shown}Q: {question}\nA:"


def demonstrations(kind: str, num: int = 16) -> list[str]:
    """Write prompts of three demonstrations; the same for all kinds but for the answers."""
    rng, made = random.Random(0), []
    for i in range(num):
        row = SHOWN[i % len(SHOWN)]
        others = [r for r in SHOWN if r is not row]
        made.append(prompt(kind, rng.sample(others, 3), row[0]))
    return made


def score(texts: list[str]) -> float:
    """Return the mean of both properties: French among known words, no capital in the answer."""
    total = 0.0
    for answer in (text.split("\n")[0] for text in texts):
        words = re.findall(r"[\w']+", answer.lower())
        french = sum(w in FRENCH or w.startswith(("l'", "d'", "n'")) for w in words)
        known = french + sum(w in ENGLISH for w in words)
        total += 0.5 * french / max(known, 1) + 0.5 * (answer == answer.lower())
    return total / len(texts)


def perplexity(model: Model, texts: list[str]) -> float:
    """Return that of the answers to the bare network, which both properties are shown to."""
    loss, num = 0.0, 0
    for question, text in zip(ASKED, texts, strict=True):
        asked = prompt("both", SHOWN[:2], question)
        start = len(model.tokenizer(asked)["input_ids"])
        ids = torch.tensor(model.tokenizer(asked + text)["input_ids"])
        found = model.run(asked + text, logits=True).logits
        assert found is not None
        log_p = found[0, start - 1 : -1].log_softmax(-1)
        loss -= float(log_p.gather(-1, ids[start:, None]).sum())
        num += len(ids) - start
    return math.exp(loss / num)


@pytest.mark.slow
@pytest.mark.paper("multi-property-steering-large")
def test_two_properties_with_less_loss_of_fluency(smollm2: Model, evidence: Evidence) -> None:
    """Both at 0.35 of the paper's strength, where constant dosing has both properties in full.

    At the paper's own, alpha 2 in all layers, this small network writes nothing that can be read.
    """
    plain = demonstrations("plain")
    data = {
        kind: {"positive": demonstrations(kind), "negative": plain} for kind in ("french", "lower")
    }
    dac = DAC(num_steps=STEPS).fit(smollm2, data)
    rng = random.Random(3)
    asked = [prompt("plain", rng.sample(SHOWN, 2), question) for question in ASKED]

    def written(edits: list[ak.Edit]) -> list[str]:
        return smollm2.generate(asked, edits=edits, max_new_tokens=STEPS)

    base, steady = written([]), written(constant(dac, STRENGTH))
    dynamic, alpha_SBP = alphas(smollm2, asked, dac.edits(STRENGTH), STEPS)
    evidence("score of both properties without edits", measured=score(base), at_most=0.2)
    evidence("score at constant strength", measured=score(steady), at_least=0.8)
    evidence("score of DAC as a share of that", measured=score(dynamic) / score(steady),
             at_least=0.85)  # fmt: skip
    floor, high, low = (perplexity(smollm2, texts) for texts in (base, steady, dynamic))
    evidence("rise of the perplexity by DAC as a share of that by constant strength",
             measured=(low - floor) / (high - floor), at_most=0.6)  # fmt: skip
    first, last = alpha_SBP[: STEPS // 3].mean(), alpha_SBP[-(STEPS // 3) :].mean()
    evidence("mean alpha in the last third of the steps as a share of the first's",
             measured=last / first, at_most=0.999)  # fmt: skip
