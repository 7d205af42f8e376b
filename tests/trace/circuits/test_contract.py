"""Every method of the chapter `circuits` of `trace` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="trace/circuits"):
    """What every method promises."""
