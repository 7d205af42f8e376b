"""Every method of the chapter `network` of `read` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="read/network"):
    """What every method promises."""
