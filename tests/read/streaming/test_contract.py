"""Every method of the chapter `streaming` of `read` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="read/streaming"):
    """What every method promises."""
