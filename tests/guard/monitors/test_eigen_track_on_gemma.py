"""Spectra of Gemma-3-270M's stream while a text falls into a loop."""

from itertools import islice

from actkit.data import chunks, text
from actkit.model import Model
from tests.guard.monitors.test_eigen_track_on_smollm2 import LENGTH, aurocs


def test_a_text_that_falls_into_a_loop_is_seen(gemma: Model) -> None:
    """At block 3 of 18, as deep as SmolLM2's block 5; <bos> and 71 tokens."""
    prose = chunks(text("austen", 160), gemma.tokenizer, LENGTH - 1)
    blocks = [[gemma.tokenizer.bos_token_id, *block] for block in islice(prose, 64)]
    auroc_W, early = aurocs(gemma, blocks, "resid_post.3")
    assert auroc_W[-1] >= 0.95
    assert sum(early) / len(early) <= 0.65
