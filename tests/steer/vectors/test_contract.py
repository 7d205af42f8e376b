"""Every method of the chapter `vectors` of `steer` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="steer/vectors"):
    """What every method promises."""
