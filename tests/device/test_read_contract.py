"""The contract of tests/read/test_contract.py on the pretended device."""

from tests.read.test_contract import *  # noqa: F403
