"""Numbers and counts as people write them."""

import math
from collections.abc import Sequence


def number(x: float | None) -> str:
    """Return three significant digits: 22,543 or 13.7 or 0.0031; a dash where there is none.

    Example:
        >>> number(22543.2), number(999.7), number(0.00314), number(1.6e-7), number(3.1e12)
        ('22,543', '1,000', '0.00314', '1.6e-7', '3.1e12')
    """
    if x is None or math.isnan(x):
        return "-"
    if math.isinf(x):
        return "∞" if x > 0 else "-∞"
    if x == 0:
        return "0"
    if isinstance(x, int):
        return f"{x:,}"
    size = abs(float(f"{x:.3g}"))
    if size >= 1e7 or 0 < size < 1e-4:
        digits, exponent = f"{x:.2e}".split("e")
        return f"{float(digits):g}e{int(exponent)}"
    return f"{x:,.0f}" if size >= 1000 else f"{x:.3g}"


def percent(share: float | None) -> str:
    """Return a share as a percentage that never rounds to 0 or 100 what is neither.

    Example:
        >>> percent(0.4567), percent(1.6e-7), percent(0.99996), percent(1.0)
        ('45.7%', '< 0.01%', '> 99.9%', '100%')
    """
    if share is not None and 0 < share < 1e-4:
        return "< 0.01%"
    if share is not None and 0.9995 <= share < 1:
        return "> 99.9%"
    return number(share) if share is None or math.isnan(share) else f"{number(100.0 * share)}%"


def count(n: int, what: str) -> str:
    """Return a number of things, in the plural unless it is one.

    Example:
        >>> count(1, "layer"), count(2300, "layer")
        ('1 layer', '2,300 layers')
    """
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def listed(things: Sequence[object], most: int = 6) -> str:
    """Return the first things of a list as text, and how many more there are.

    Example:
        >>> listed([3]), listed([3, 5, 8]), listed(range(9), most=3)
        ('3', '3, 5 and 8', '0, 1, 2 and 6 more')
    """
    named = [str(t) for t in things[:most]]
    if len(things) > most:
        return f"{', '.join(named)} and {len(things) - most} more"
    return " and ".join(filter(None, (", ".join(named[:-1]), named[-1])))
