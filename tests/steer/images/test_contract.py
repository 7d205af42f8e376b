"""Every method of the chapter `images` of `steer` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="steer/images"):
    """What every method promises."""
