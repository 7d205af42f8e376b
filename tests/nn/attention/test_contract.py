"""Every method of the chapter `attention` of `nn` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="nn/attention"):
    """What every method promises."""
