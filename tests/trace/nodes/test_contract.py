"""Every method of the chapter `nodes` of `trace` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="trace/nodes"):
    """What every method promises."""
