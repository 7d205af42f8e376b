"""Every method of the chapter `exits` of `shrink` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="shrink/exits"):
    """What every method promises."""
