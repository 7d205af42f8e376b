"""What each neuron of an MLP reads and writes, as vectors, from the weights around a site.

Shapes: H neurons, D width of the residual stream.
"""

from dataclasses import replace

from torch import Tensor

from actkit.anatomy.linear_map import is_linear, weight_of
from actkit.core.errors import InputError, SiteError
from actkit.core.sites.layout import PLAIN
from actkit.core.sites.site import Site
from actkit.model import Model


def every_site(model: Model, pattern: str) -> list[Site]:
    """Return the sites that a pattern means.

    Raises:
        SiteError: Nothing matches, or one of the blocks lacks the site.
    """
    sites = model.sites(pattern)
    lacking = next((s for s in model.sites(pattern, refused=True) if s.refused), None)
    if lacking is not None:
        raise SiteError(f"every block needs the site, but not {lacking.name}: {lacking.refused}")
    return sites


def neuron_weights(model: Model, site: Site) -> Tensor:
    """Return the (H, D) weights of the linear map at a site inside an MLP, one row a neuron.

    They are the rows of the map that returns the site, or the columns of the map that reads it;
    a view of the weights where that is possible.

    Raises:
        InputError: The site's module is no plain linear map.
    """
    place = site.place
    module = model.module.get_submodule(place.path)
    weight = getattr(module, "weight", None)
    if not is_linear(module) or not isinstance(weight, Tensor):
        raise InputError(
            f"weights are read of a linear map (merge adapters first), at {site.name} stands "
            f"{place.path}, a {type(module).__name__}"
        )
    plain = replace(place.layout, span=None, flat=False) == PLAIN
    if not (plain and weight.dim() == 2 and weight.is_floating_point()) or weight.is_meta:
        raise InputError(
            f"weights must be loaded, floating point and (outputs, inputs), at {site.name} they "
            f"are {weight.dtype} of shape {tuple(weight.shape)} on {weight.device}"
        )
    weight_DI = weight_of(module)
    neurons = weight_DI if place.side == "out" else weight_DI.mT
    start, stop = place.layout.span or (0, len(neurons))
    return neurons[start:stop]
