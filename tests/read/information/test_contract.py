"""Every method of the chapter `information` of `read` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="read/information"):
    """What every method promises."""
