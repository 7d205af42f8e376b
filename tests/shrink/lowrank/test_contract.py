"""Every method of the chapter `lowrank` of `shrink` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="shrink/lowrank"):
    """What every method promises."""
