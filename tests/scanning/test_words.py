import math

import pytest

from actkit.scanning.format import count, listed, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (0.0, "0"), (-0.0, "0"), (7, "7"), (1234567, "1,234,567"), (-12, "-12"),
        (0.5, "0.5"), (-44.94, "-44.9"), (13.649, "13.6"), (999.4, "999"), (999.6, "1,000"),
        (1000.4, "1,000"), (25756.2, "25,756"), (9_999_999.0, "1e7"), (3.14e12, "3.14e12"),
        (0.00314, "0.00314"), (0.0001, "0.0001"), (0.0000999, "9.99e-5"), (-1.6e-7, "-1.6e-7"),
        (1e-300, "1e-300"), (math.nan, "-"), (None, "-"), (math.inf, "∞"), (-math.inf, "-∞"),
    ],
)  # fmt: skip
def test_numbers_read_as_people_write_them(value: float | None, text: str) -> None:
    assert number(value) == text


def test_a_number_is_right_to_its_last_digit() -> None:
    for i in range(-30, 60):
        value = 1.2345678 * 1.37**i
        shown = float(number(value).replace(",", ""))
        assert shown == pytest.approx(value, rel=5.01e-3)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"), (1.0, "100%"), (0.5, "50%"), (0.45674, "45.7%"), (1e-4, "0.01%"),
        (9.9e-5, "< 0.01%"), (1.6e-7, "< 0.01%"), (0.9995, "> 99.9%"), (0.999999, "> 99.9%"),
        (0.9994, "99.9%"), (1.25, "125%"), (math.nan, "-"), (None, "-"),
    ],
)  # fmt: skip
def test_a_share_reads_as_0_or_100_percent_only_if_it_is(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_counts_and_lists() -> None:
    assert [count(n, "layer") for n in (0, 1, 2, 1000)] == [
        "0 layers", "1 layer", "2 layers", "1,000 layers",
    ]  # fmt: skip
    assert listed(["a"]) == "a"
    assert listed(["a", "b"]) == "a and b"
    assert listed([1, 2, 3], most=3) == "1, 2 and 3"
    assert listed([1, 2, 3, 4], most=3) == "1, 2, 3 and 1 more"
