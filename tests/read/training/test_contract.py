"""Every method of the chapter `training` of `read` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="read/training"):
    """What every method promises."""
