"""The words of the bundled tasks: each is one token of SmolLM2 with its space in front."""


def _words(*lines: str) -> list[str]:
    return " ".join(lines).split()


COUNTRIES = _words(
    "France Germany Italy Spain Portugal Poland Greece Austria Hungary Sweden Norway Finland",
    "Denmark Ireland Belgium Switzerland China Japan Iran Iraq Australia Canada Cuba Jamaica",
    "Peru Chile",
)
"""Of which the capital is one token, too."""
MEN = _words("John James Robert Michael David William Richard Thomas Charles Peter Daniel Paul")
WOMEN = _words("Mary Linda Susan Sarah Karen Lisa Emma Emily Anna Laura Alice Helen")
EVENTS = _words("war siege plague drought strike storm reign voyage crisis famine trial tour")
FRIENDS = _words("friend cook teacher dancer writer doctor singer neighbor lawyer runner")
THINGS = _words("pen cup key book ball hat box bag coin ring fork door")
COLORS = _words("red blue green black white yellow pink brown orange purple")
NOUNS = _words(
    "cat tree river house music stone bread paper light chair apple horse glass table water road",
    "ship cloud salt iron moon fish wall garden window door letter dinner train bridge mountain",
    "doctor forest sugar clock camera king summer silver dog bird milk",
)
NODES = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CAUSES = {
    "hungry": "bakery",
    "sick": "hospital",
    "thirsty": "well",
    "religious": "church",
    "young": "school",
    "curious": "library",
    "guilty": "police",
    "bored": "cinema",
}
"""Where each state of mind or body sends people; for SmolLM2 more than any other one does."""
