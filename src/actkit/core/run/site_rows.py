"""The rows of what was read at a site: samples, places, and which of them count.

Shapes: B batch.
"""

import math

from torch import Tensor

from actkit.core.errors import EditError, SiteError
from actkit.core.run.context import ForwardContext
from actkit.core.run.recording import Rows, valid_rows
from actkit.core.sites.axes import PLACES
from actkit.core.sites.layout import rows_first
from actkit.core.sites.site import Site


def rows_at(site: Site, x: Tensor, context: ForwardContext) -> Rows:
    """Return the rows of what was read at a site.

    Raises:
        SiteError: Which axes are samples, places and units is not known, or what counts as
            samples is not as long as the batch.
    """
    axes = site.axes_of(x)
    if site.known is not None:
        site.known.check_samples(x, axes, context.batch)
    places = [n for a, n in zip(axes, x.shape, strict=True) if a in PLACES]
    if len(places) > 1:
        height, width = places[0], math.prod(places[1:])
        return Rows.image(x.shape[axes.index("B")], height, width, x.device)
    shape = rows_first(x, axes).shape
    context = context.whole() if len(axes) == 2 and not places else context
    try:
        return context.rows(shape[0], shape[1])
    except EditError as error:
        raise SiteError(f"the rows of {site.name} cannot be known: {error}") from error


def flat_rows(site: Site, x: Tensor, context: ForwardContext) -> tuple[Tensor, Rows]:
    """Return a site's valid rows and what they belong to, as `valid_rows` does."""
    rows = rows_at(site, x, context)
    return valid_rows(x, site.axes_of(x), rows)
