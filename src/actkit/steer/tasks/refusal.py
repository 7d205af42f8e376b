"""Refuse requests, harmless ones too, rather than answer them."""

from actkit import data
from actkit.data import Contrast, Opening
from actkit.steer._concept import Concept

PLACE = 1


def refusal() -> Concept:
    """Refuse requests, harmless ones too, rather than answer them.

    Examples are requests of both kinds with a refusing and with a complying answer.
    """
    form = "User: {}\nAssistant:{}"
    no, yes = " I'm sorry, but I can't help with that.", " Sure, here is what you asked for."
    fitted, held = data.split(data.refusal(), 1 / 3)
    requests = [text for pair in fitted for text in (pair.positive, pair.negative)]
    examples = [Contrast(form.format(r, no), form.format(r, yes)) for r in requests]
    words = (" I", " Sorry", " Unfortunately"), (" Sure", " Here", " Yes", " Of", " To", " First")
    questions = [Opening(form.format(pair.negative, ""), *words) for pair in held]
    return Concept("refusal", examples, questions, "Refuse to answer any request.")
