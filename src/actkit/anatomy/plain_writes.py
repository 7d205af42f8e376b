"""Whether what a part's last map returns is what is added to the stream, with nothing between."""

from typing import TYPE_CHECKING

from actkit.core.errors import InputError
from actkit.core.sites.dry_run import is_norm

if TYPE_CHECKING:
    from actkit.model import Model


def check_plain_writes(model: "Model", point: str, layer: int) -> None:
    """Refuse a part behind which a norm stands, as in Gemma 2 and 3, OLMo 2 and GLM 4.

    There the columns of its last map are not the directions that it writes: the norm's gain and
    the length of all that the part wrote come between.

    Args:
        model: The network.
        point: "attn_out" or "mlp_out".
        layer: The block.

    Raises:
        InputError: A norm follows the part.
    """
    # a network may lack the point, as where attention and MLP are added up first
    found = [s for s in model.sites(f"{point}.{layer}", refused=True) if not s.refused]
    for site in found:
        module = model.module.get_submodule(site.place.path)
        if is_norm(module):
            raise InputError(
                f"what the map of a part returns must be what it writes, in layer {layer} a norm "
                f"stands behind it: {site.place.path} ({type(module).__name__})"
            )
