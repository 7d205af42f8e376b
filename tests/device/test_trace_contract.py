"""The contract of tests/trace/test_contract.py on the pretended device."""

from tests.trace.test_contract import *  # noqa: F403
