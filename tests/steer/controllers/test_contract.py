"""Every method of the chapter `controllers` of `steer` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="steer/controllers"):
    """What every method promises."""
