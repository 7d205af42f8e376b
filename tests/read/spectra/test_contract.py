"""Every method of the chapter `spectra` of `read` keeps what its interface promises."""

from tests.chapters import Contract


class TestContract(Contract, chapter="read/spectra"):
    """What every method promises."""
