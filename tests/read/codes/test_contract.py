"""Every method of the chapter `codes` of `read` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="read/codes"):
    """What every method promises."""
