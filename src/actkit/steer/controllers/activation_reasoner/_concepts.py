"""Concepts over the features of a dictionary: which features, how they add up, from where on.

Shapes: N examples, T tokens, F features, K features in use, C concepts.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from actkit.core.errors import InputError

Tree = tuple[Any, ...]
"""(feature, cut, what if not above, what if above), a leaf is a share of examples; () is none."""
Acts = Callable[[Sequence[int] | slice], list[Tensor]]
"""From features to the (T, K) activations of each example."""


@dataclass(frozen=True)
class FeatureConcept:
    """How features make a concept: one of them, a weighted sum, or a shallow decision tree.

    Args:
        features: Which; those that differ most between examples with and without it if None.
        weights: One for each feature; the differences of several if None.
        num_features: How many are looked for, where none are given.
        depth: Of the tree; 0 is a weighted sum.
    """

    features: Sequence[int] | None = None
    weights: Sequence[float] | None = None
    num_features: int = 1
    depth: int = 0

    def chosen(self, difference_F: Tensor) -> list[int]:
        """Return the features, given how much each is higher in examples with the concept.

        Raises:
            InputError: There are no such features, or not as many weights.
        """
        size = len(difference_F)
        if self.features is None:
            rank_F = difference_F.abs() if self.depth else difference_F
            return rank_F.topk(min(self.num_features, size)).indices.tolist()
        if not self.features or not all(0 <= f < size for f in self.features):
            raise InputError(f"features must be among 0 to {size - 1}, got {list(self.features)}")
        if self.weights is not None and len(self.weights) != len(self.features):
            raise InputError(
                "there must be one weight for each feature, got "
                f"{len(self.weights)} for {len(self.features)}"
            )
        return list(self.features)

    def weighed(self, differences: Tensor) -> Tensor:
        """Return the weights of the chosen features, given their differences.

        Raises:
            InputError: All are zero.
        """
        if self.weights is not None:
            weights = torch.tensor(self.weights, device=differences.device)
        else:
            weights = differences if len(differences) > 1 else differences.new_ones(1)
        if not weights.any():
            raise InputError(f"weights must not all be zero, got {weights.tolist()}")
        return weights / weights.abs().sum()


@dataclass(frozen=True)
class Reader:
    """How concepts are read from K features, and how much of these they write.

    Attributes:
        features: The K features.
        weights_CK: Of the sums.
        writes_CK: How much higher a feature's peak is in examples with the concept.
        trees: Of each concept, () for a sum.
        cuts: Above which a concept holds.
        sureness: Balanced accuracy of each on the examples.
    """

    features: list[int]
    weights_CK: Tensor
    writes_CK: Tensor
    trees: tuple[Tree, ...]
    cuts: tuple[float, ...]
    sureness: tuple[float, ...]


def labelled(data: Any, concepts: Mapping[str, FeatureConcept]) -> tuple[list[Any], Tensor]:
    """Return the inputs and (N, C) bool labels of pairs (input, names of its concepts).

    Raises:
        InputError: A name is no concept, or all examples or none have a concept.
    """
    pairs = list(data)
    if unknown := sorted({name for _, names in pairs for name in names} - set(concepts)):
        raise InputError(f"labels must be concepts, got {unknown}")
    rows = [[name in names for name in concepts] for _, names in pairs]
    labels_NC = torch.tensor(rows).reshape(len(pairs), len(concepts))
    counts = dict(zip(concepts, labels_NC.sum(0).tolist(), strict=True))
    if bad := {name: num for name, num in counts.items() if num in (0, len(pairs))}:
        raise InputError(
            f"each concept needs examples with and without it, got {bad} of {len(pairs)} with it"
        )
    return [example for example, _ in pairs], labels_NC


def learnt(concepts: Mapping[str, FeatureConcept], acts: Acts, labels_NC: Tensor) -> Reader:
    """Choose each concept's features, weights or tree, and threshold from labelled examples."""
    peaks_NF = torch.stack([acts_TF.amax(0) for acts_TF in acts(slice(None))])
    more_CF = torch.stack([peaks_NF[own].mean(0) - peaks_NF[~own].mean(0) for own in labels_NC.T])
    rows = list(zip(concepts.values(), more_CF, labels_NC.T, strict=True))
    chosen = [concept.chosen(more_F) for concept, more_F, _ in rows]
    used = sorted({f for features in chosen for f in features})
    acts_K = acts(used)
    weights_CK = torch.zeros(len(rows), len(used), device=peaks_NF.device)
    writes_CK, trees, cuts = torch.zeros_like(weights_CK), list[Tree](), list[tuple[float, float]]()
    for i, ((concept, more_F, labels_N), features) in enumerate(zip(rows, chosen, strict=True)):
        own = [used.index(f) for f in features]
        weights_CK[i, own] = concept.weighed(more_F[features])
        writes_CK[i, own] = more_F[features]
        sums = [acts_TK @ weights_CK[i] for acts_TK in acts_K]
        tree: Tree = ()
        if concept.depth:
            shown_NK = torch.stack([x[s.argmax()] for x, s in zip(acts_K, sums, strict=True)])
            tree = grown(shown_NK, labels_N, own, concept.depth)
            sums = [leaf(tree, acts_TK) for acts_TK in acts_K]
        trees.append(tree)
        cuts.append(cut(torch.stack([s.amax() for s in sums]), labels_N))
    at, sureness = zip(*cuts, strict=True)
    return Reader(used, weights_CK, writes_CK, tuple(trees), at, sureness)


def cut(scores_N: Tensor, labels_N: Tensor) -> tuple[float, float]:
    """Return the threshold of the best balanced accuracy, and that accuracy.

    Of equally good ones it is the middle of the widest gap.

    Raises:
        InputError: All scores are the same.

    Example:
        >>> cut(torch.tensor([0.0, 1.0, 2.0, 6.0]), torch.tensor([False, False, False, True]))
        (4.0, 1.0)
    """
    ordered = torch.unique(scores_N)
    if len(ordered) < 2:
        raise InputError(f"a concept's score must vary, got {scores_N[0]:g} in all {len(scores_N)}")
    cuts_M, gaps_M = (ordered[1:] + ordered[:-1]) / 2, ordered[1:] - ordered[:-1]
    above_MN = scores_N > cuts_M[:, None]
    found_M = above_MN[:, labels_N].float().mean(1)
    spared_M = (~above_MN[:, ~labels_N]).float().mean(1)
    accuracy_M = (found_M + spared_M) / 2
    best = accuracy_M.max()
    return float(cuts_M[(gaps_M * (accuracy_M == best)).argmax()]), float(best)


def grown(acts_NK: Tensor, labels_N: Tensor, features: Sequence[int], depth: int) -> Tree:
    """Return a decision tree over some of K features, both classes counting the same."""
    from sklearn.tree import DecisionTreeClassifier

    fitted = DecisionTreeClassifier(max_depth=depth, class_weight="balanced", random_state=0)
    tree = fitted.fit(acts_NK[:, list(features)].cpu().numpy(), labels_N.cpu().numpy()).tree_

    def node(i: int) -> Any:
        if tree.children_left[i] < 0:
            return float(tree.value[i][0][1] / tree.value[i][0].sum())
        low, high = node(tree.children_left[i]), node(tree.children_right[i])
        return (int(features[tree.feature[i]]), float(tree.threshold[i]), low, high)

    found = node(0)
    if not isinstance(found, tuple):
        raise InputError(f"a tree needs a feature that tells examples apart, got {list(features)}")
    return found


def leaf(tree: Any, acts: Tensor) -> Tensor:
    """Return the leaves' values that (..., K) activations reach."""
    if not isinstance(tree, tuple):
        return torch.full_like(acts[..., 0], tree)
    feature, at, low, high = tree
    return torch.where(acts[..., feature] > at, leaf(high, acts), leaf(low, acts))
