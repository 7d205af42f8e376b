"""Every method of the chapter `training` of `trace` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="trace/training"):
    """What every method promises."""
