"""Every method of the chapter `weights` of `steer` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="steer/weights"):
    """What every method promises."""
