"""Every method of the chapter `edges` of `trace` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="trace/edges"):
    """What every method promises."""
