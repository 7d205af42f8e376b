"""Every method of the chapter `classes` of `read` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="read/classes"):
    """What every method promises."""
