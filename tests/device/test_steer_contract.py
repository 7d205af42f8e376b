"""The contract of tests/steer/test_contract.py on the pretended device."""

from tests.steer.test_contract import *  # noqa: F403
