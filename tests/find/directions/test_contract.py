"""Every method of the chapter `directions` of `find` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="find/directions"):
    """What every method promises."""
