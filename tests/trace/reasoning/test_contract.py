"""Every method of the chapter `reasoning` of `trace` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="trace/reasoning"):
    """What every method promises."""
