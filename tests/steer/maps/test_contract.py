"""Every method of the chapter `maps` of `steer` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="steer/maps"):
    """What every method promises."""
