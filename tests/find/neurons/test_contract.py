"""Every method of the chapter `neurons` of `find` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="find/neurons"):
    """What every method promises."""
