"""Clusters of differences, and a softmax probe that tells from a state which one is needed.

Shapes: N examples, K clusters, L layers, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

RIDGE = 1e-3


def clustered(differences_ND: Tensor, num_clusters: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return (K, D) centroids of length one and (N,) labels, by k-means on directions."""
    from sklearn.cluster import KMeans

    units_ND = normalize(differences_ND.detach().cpu(), dim=-1)
    means = KMeans(num_clusters, n_init=4, random_state=seed).fit(units_ND.numpy())
    centroids_KD = torch.from_numpy(means.cluster_centers_).to(differences_ND)
    labels_N = torch.from_numpy(means.labels_).to(differences_ND.device).long()
    return normalize(centroids_KD, dim=-1), labels_N


def features(acts: Tensor, centre_D: Tensor) -> Tensor:
    """Return states (..., D) as the probe reads them: from the centre, of length one."""
    return normalize(acts - centre_D, dim=-1)


def fitted_probe(features_LND: Tensor, labels_LN: Tensor, num_clusters: int) -> Tensor:
    """Return the (L, K, D) weights of softmax regressions, one for each layer."""
    size = (len(features_LND), num_clusters, features_LND.shape[-1])
    weights_LKD = features_LND.new_zeros(size, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights_LKD], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits_LNK = features_LND @ weights_LKD.mT
        loss = cross_entropy(logits_LNK.flatten(0, 1), labels_LN.flatten()) * len(features_LND)
        loss = loss + RIDGE * weights_LKD.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weights_LKD.detach()


def held_out_accuracy(features_LMD: Tensor, labels_LM: Tensor, num_clusters: int) -> list[float]:
    """Return the share of right answers of a probe at each layer, on pairs that it did not see.

    Two rows in turn belong to one pair; every fourth pair is held out.
    """
    held_M = torch.arange(features_LMD.shape[1], device=features_LMD.device) // 2 % 4 == 0
    weights_LKD = fitted_probe(features_LMD[:, ~held_M], labels_LM[:, ~held_M], num_clusters)
    told_LM = (features_LMD[:, held_M] @ weights_LKD.mT).argmax(-1)
    shares: list[float] = (told_LM == labels_LM[:, held_M]).float().mean(-1).tolist()
    return shares


def refined(weights_KD: Tensor, feature_D: Tensor, label: int, rate: float) -> Tensor:
    """Return the weights after one gradient step on the cross-entropy of one example."""
    error_K = (weights_KD @ feature_D).softmax(-1)
    error_K[label] -= 1
    return weights_KD - rate * torch.outer(error_K, feature_D)
