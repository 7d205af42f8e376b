"""Every method of the chapter `monitors` of `guard` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="guard/monitors"):
    """What every method promises."""
