"""Every method of the chapter `gates` of `nn` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="nn/gates"):
    """What every method promises."""
