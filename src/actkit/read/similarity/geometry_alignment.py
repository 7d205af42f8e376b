"""Whether hidden activations keep the geometry of the inputs or take on that of the targets.

Shapes: N rows, D, E and K widths.
"""

from dataclasses import asdict, dataclass

from actkit.catalog import method
from actkit.read._base import Statistic
from actkit.read._paired_sums import Source, alignment, joint_sums, varied


@dataclass(frozen=True, slots=True)
class GeometryAlignment:
    """Centred alignments of linear kernels, in [0, 1].

    Attributes:
        target: Of the hidden activations with the targets.
        input: Of the hidden activations with the inputs.
        input_target: Of the inputs with the targets: what the task itself gives.
    """

    target: float
    input: float
    input_target: float

    def summary(self) -> dict[str, float]:
        """Return the numbers that fit one line of a report."""
        return asdict(self)


@method(source="Alleman, Lindsey and Fusi 2024, arXiv:2401.13558, section 2", interface=Statistic)
def geometry_alignment(hidden: Source, inputs: Source, targets: Source) -> GeometryAlignment:
    """Return how far hidden activations align with the inputs' and with the targets' kernel.

    As in the paper, <K, L> / (|K| |L|) of centred linear kernels. Compare activation functions
    at the same loss: the paper's tanh networks move to the targets and its ReLU networks stay
    near the inputs. On clusters with random labels we find the second for the logistic loss, the
    first in most seeds only with several labels, and neither reliably for the squared error. To
    follow a training, call it in `Checkpoints(...).over`. All three stream as in `cka`.

    Args:
        hidden: (N, D) tensor, array, memory map or column of a store, or an iterable of blocks.
        inputs: (N, E), the same rows.
        targets: (N, K), or (N,) for one number a row; class labels must be one-hot, since their
            numbers have no geometry.

    Raises:
        InputError: There are fewer than 2 rows, rows do not match or are not finite, or all rows
            of one of the three are alike.

    Example:
        >>> import torch
        >>> inputs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> found = geometry_alignment(torch.tanh(inputs[:, :1]), inputs, inputs[:, 0])
        >>> round(found.target, 6), round(found.input**2, 6)
        (1.0, 0.5)
    """
    align_LL = alignment(joint_sums(hidden, inputs, targets))
    target, own, given = (float(align_LL[i, j]) for i, j in ((0, 2), (0, 1), (1, 2)))
    return GeometryAlignment(
        target=varied(target, "the alignment with the targets"),
        input=varied(own, "the alignment with the inputs"),
        input_target=varied(given, "the alignment of inputs and targets"),
    )
