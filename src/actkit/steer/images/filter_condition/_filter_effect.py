"""What a filter on pixels takes from an encoder's activations.

Shapes: N images, C channels, Y and X pixels, D width, A attributes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from actkit.core.errors import InputError
from actkit.core.progress import track
from actkit.model import Model
from actkit.steer.images.filter_condition._image_filters import Filter, passed


@dataclass(frozen=True)
class FilterEffect:
    """What a filter does to what an encoder holds of images.

    Attributes:
        cosine: Mean cosine of the activations before and after.
        before: R2 of a linear probe of each attribute, on images that it did not see.
        after: The same from filtered images.
        correlation_before: (A, A) correlations of the probes' predictions.
        correlation_after: The same from filtered images.
    """

    cosine: float
    before: dict[str, float]
    after: dict[str, float]
    correlation_before: Tensor
    correlation_after: Tensor


def filter_effect(
    model: Model,
    images_NCYX: Tensor,
    filters: Sequence[Filter],
    site: str,
    attributes: Mapping[str, Tensor],
    groups_N: Tensor | None = None,
    batch_size: int = 32,
) -> FilterEffect:
    """Measure at a site of an encoder what filters remove, and what they leave.

    Activations are averaged over positions. Probes are ridge regressions, fitted anew on filtered
    images, and predict images of groups that they were not fitted on.

    Args:
        model: The encoder.
        images_NCYX: As the encoder takes them.
        filters: Applied in order, to images as the encoder takes them.
        site: Where to read.
        attributes: (N,) numbers by name, such as how red an image is.
        groups_N: Images of one group (crops of one photo) are held out together; by default each
            is a group of its own.
        batch_size: How many images to run at once.

    Raises:
        InputError: There are fewer than 2 groups, or an attribute is constant, not finite, or not
            one number for each image.
    """
    groups = torch.arange(len(images_NCYX), device="cpu") if groups_N is None else groups_N
    _check(len(images_NCYX), attributes, groups)

    def read(images: Tensor) -> Tensor:
        acts: Tensor = model.run(images, record=site)[site].float()
        return acts.flatten(2).mean(-1) if acts.dim() > 3 else acts.flatten(1, -2).mean(1)

    parts = [
        torch.stack([read(part), read(passed(part, filters))])
        for part in track(torch.split(images_NCYX, batch_size), "reading images")
    ]
    plain_ND, changed_ND = torch.cat(parts, 1)
    before, guesses_before = _probed(plain_ND, attributes, groups)
    after, guesses_after = _probed(changed_ND, attributes, groups)
    return FilterEffect(
        torch.cosine_similarity(plain_ND, changed_ND).mean().item(),
        before,
        after,
        guesses_before,
        guesses_after,
    )


def _probed(
    acts_ND: Tensor, attributes: Mapping[str, Tensor], groups_N: Tensor
) -> tuple[dict[str, float], Tensor]:
    """Return R2 of each attribute on held-out groups, and the predictions' correlations."""
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    folds = GroupKFold(min(10, len(set(groups_N.tolist()))))
    probe = make_pipeline(StandardScaler(), RidgeCV([10.0**k for k in range(5)]))
    truth_AN = torch.stack(list(attributes.values())).double().numpy()
    guess_AN = [
        cross_val_predict(probe, acts_ND.numpy(), truth_N, groups=groups_N.numpy(), cv=folds)
        for truth_N in truth_AN
    ]
    scores = map(r2_score, truth_AN, guess_AN)
    correlations = torch.corrcoef(torch.tensor(np.stack(guess_AN)))
    return dict(zip(attributes, scores, strict=True)), correlations.reshape(len(guess_AN), -1)


def _check(num_images: int, attributes: Mapping[str, Tensor], groups_N: Tensor) -> None:
    num_groups = len(set(groups_N.tolist()))
    if groups_N.shape != (num_images,) or num_groups < 2:
        raise InputError(
            f"{num_images} images need as many group numbers, of at least 2 groups, got "
            f"{num_groups} groups of shape {tuple(groups_N.shape)}"
        )
    for name, truth in attributes.items():
        if truth.shape != (num_images,) or not truth.isfinite().all() or not truth.std() > 0:
            raise InputError(
                f"an attribute must be {num_images} finite numbers that differ, got {name!r} of "
                f"shape {tuple(truth.shape)}, {int((~truth.isfinite()).sum())} not finite"
            )
