"""Every method of the chapter `inputs` of `steer` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="steer/inputs"):
    """What every method promises."""
