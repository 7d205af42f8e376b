"""Every method of the chapter `heads` of `trace` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="trace/heads"):
    """What every method promises."""
