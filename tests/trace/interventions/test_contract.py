"""Every method of the chapter `interventions` of `trace` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="trace/interventions"):
    """What every method promises."""
