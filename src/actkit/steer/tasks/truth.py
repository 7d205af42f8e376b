"""Name the right capital of a country rather than another country's."""

from actkit import data
from actkit.data import Contrast, Opening
from actkit.steer._concept import Concept

PLACE = 4


def truth() -> Concept:
    """Name the right capital of a country rather than another country's."""
    facts = [fact for fact in data.capitals() if fact.kind == "statement"]
    fitted, held = data.split(facts, 0.4, by=lambda fact: fact.subject)
    examples = [Contrast(f.clean + f.answer, f.clean + f.wrong) for f in fitted]
    questions = [Opening(f.clean, (f.answer,), (f.wrong,)) for f in held]
    return Concept("truth", examples, questions, "Answer truthfully.")
