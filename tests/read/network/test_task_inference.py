from math import isnan, nan

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from actkit.core.errors import InputError
from actkit.model import Model
from actkit.read.network.task_inference import (
    FamilyProbe,
    Prompts,
    TaskInferenceResult,
    TaskMixture,
    task_inference,
)
from tests import contract
from tests._evidence import Evidence

TASKS_KD = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.2, -0.1], [4.0, 0.0, 1.0], [-1.0, 1.0, 2.0]])
MIXTURE = TaskMixture(TASKS_KD, share=0.3, noise=0.7, scale=1.4)


class Mix(nn.Module):
    """Answers with any share of the discrete family: the g of the mixture plus a shift."""

    def __init__(self, mixture: TaskMixture, shift: float = 0.0) -> None:
        super().__init__()
        self.mixture, self.shift = mixture, shift

    def forward(self, x_BND: Tensor, y_BN: Tensor, query_BQD: Tensor) -> Tensor:
        given = x_BND.double(), y_BN.double()
        g_B1 = self.mixture.posterior(*given)[:, None] + self.shift
        disc_BD, ridge_BD = self.mixture.discrete(*given), self.mixture.ridge(*given)
        weights_BD = g_B1 * disc_BD + (1 - g_B1) * ridge_BD
        return (query_BQD.double() @ weights_BD[..., None])[..., 0]


def doubled(num: int, share: float | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    prompts = MIXTURE.draw(num, 7, 1, share, seed)
    return prompts.x_BND.double(), prompts.y_BN.double()


def test_the_exact_posterior_equals_numpy_prompt_by_prompt() -> None:
    x_BND, y_BN = doubled(9)
    found_B = MIXTURE.posterior(x_BND, y_BN)
    disc_BD, ridge_BD = MIXTURE.discrete(x_BND, y_BN), MIXTURE.ridge(x_BND, y_BN)
    tasks = TASKS_KD.double().numpy()
    for b in range(9):
        x, y = x_BND[b].numpy(), y_BN[b].numpy()
        like = [multivariate_normal.pdf(y, x @ w, 0.49 * np.eye(7)) for w in tasks]
        cov = 0.49 * np.eye(7) + 1.96 * x @ x.T
        anything = multivariate_normal.pdf(y, np.zeros(7), cov)
        evidence = 0.3 * np.mean(like)
        assert float(found_B[b]) == pytest.approx(evidence / (evidence + 0.7 * anything))
        assert disc_BD[b].numpy() == pytest.approx(like @ tasks / np.sum(like))
        precision = x.T @ x / 0.49 + np.eye(3) / 1.96
        assert ridge_BD[b].numpy() == pytest.approx(np.linalg.solve(precision, x.T @ y / 0.49))
    g_B1 = found_B[:, None]
    torch.testing.assert_close(MIXTURE.weights(x_BND, y_BN), g_B1 * disc_BD + (1 - g_B1) * ridge_BD)


@pytest.mark.paper("understanding-catastrophic-forgetting-language")
def test_on_continuous_tasks_the_exact_predictor_scales_with_the_labels(evidence: Evidence) -> None:
    gamma = 1.7
    x_BND, y_BN = doubled(200, share=0.0)
    rare = TaskMixture(TASKS_KD, share=1e-200, noise=0.7, scale=1.4)
    wide = TaskMixture(TASKS_KD, share=1e-200, noise=0.7 * gamma, scale=1.4 * gamma)
    moved = wide.weights(x_BND, gamma * y_BN) / gamma - rare.weights(x_BND, y_BN)
    evidence("labels, noise and prior times 1.7: change of the exact weights / 1.7",
             measured=moved.abs().max(), at_most=1e-8)  # fmt: skip
    moved = rare.weights(x_BND, gamma * y_BN) / gamma - rare.weights(x_BND, y_BN)
    evidence("labels times 1.7: change of the ridge weights / 1.7", measured=moved.abs().max(),
             at_most=1e-8)  # fmt: skip
    # 1.7 times a discrete task is none of them, so the mixture's answer must move.
    x_BND, y_BN = doubled(200, share=1.0)
    moved = MIXTURE.weights(x_BND, gamma * y_BN) / gamma - MIXTURE.weights(x_BND, y_BN)
    evidence("prompts of discrete tasks: largest change of the mixture's weights",
             measured=moved.abs().max(), at_least=0.1)  # fmt: skip
    shift = MIXTURE.posterior(x_BND, y_BN) - MIXTURE.posterior(x_BND, gamma * y_BN)
    evidence("and how far its mean posterior of the discrete family falls", measured=shift.mean(),
             at_least=0.1)  # fmt: skip


def test_an_exact_network_has_the_exact_posterior_and_a_shifted_one_the_shift() -> None:
    prompts = MIXTURE.draw(60, 7, 5, seed=1)
    exact = task_inference(Model(Mix(MIXTURE)), prompts, MIXTURE)
    torch.testing.assert_close(exact.implied_B, exact.bayes_B)
    assert exact.correlation == pytest.approx(1)
    assert exact.errors["model"] == pytest.approx(exact.errors["bayes"])
    assert exact.errors["bayes"] < min(exact.errors["ridge"], exact.errors["discrete"])
    shifted = task_inference(Model(Mix(MIXTURE, 0.4)), prompts, MIXTURE)
    torch.testing.assert_close(shifted.implied_B - exact.implied_B, torch.full((60,), 0.4).double())
    assert shifted.implied_B.max() > 1.3  # it is not limited to a probability
    assert shifted.summary()["implied"] <= 1
    given = prompts.x_BND.double(), prompts.y_BN.double()
    apart_BD = MIXTURE.discrete(*given) - MIXTURE.ridge(*given)
    apart_B = (prompts.query_BQD.double() @ apart_BD[..., None]).square().mean((1, 2))
    torch.testing.assert_close(exact.separation_B, apart_B)


def test_each_family_alone_is_known() -> None:
    for share in (0.0, 1.0):
        prompts = MIXTURE.draw(400, 12, 3, share=share, seed=2)
        assert prompts.discrete_B is not None and (prompts.discrete_B == (share == 1)).all()
        found = task_inference(Model(Mix(MIXTURE)), prompts, MIXTURE)
        assert abs(float(found.bayes_B.mean()) - share) < 0.2
    prompts = MIXTURE.draw(4000, 5, 2, seed=3)
    assert prompts.discrete_B is not None
    assert float(prompts.discrete_B.double().mean()) == pytest.approx(0.3, abs=0.03)
    # Calibration: the mean of a posterior is the share of what it is the posterior of.
    bayes_B = MIXTURE.posterior(prompts.x_BND, prompts.y_BN)
    assert float(bayes_B.mean()) == pytest.approx(0.3, abs=0.03)
    contract.check_seeded(lambda seed: MIXTURE.draw(5, 4, 3, seed=seed))


class Interleaved(nn.Module):
    """Takes x1 y1 x2 y2 ... q1 q2 in one sequence and answers at every token."""

    def __init__(self, inner: Mix, num_points: int) -> None:
        super().__init__()
        self.inner, self.num, self.carry = inner, num_points, nn.Identity()

    def forward(self, token_BTD: Tensor) -> Tensor:
        token_BTD = self.carry(token_BTD)
        points = token_BTD[:, : 2 * self.num]
        query_BQD = token_BTD[:, 2 * self.num :, :3]
        answer_BQ = self.inner(points[:, ::2, :3], points[:, 1::2, 3], query_BQD)
        return nn.functional.pad(answer_BQ, (2 * self.num, 0))[..., None]


def test_other_inputs_are_encoded_and_the_last_tokens_activations_come_along() -> None:
    prompts = MIXTURE.draw(6, 7, 2, seed=4)

    def encode(x_BND: Tensor, y_BN: Tensor, query_BQD: Tensor) -> Tensor:
        token_BTD = torch.zeros(6, 16, 4)
        token_BTD[:, 0:14:2, :3], token_BTD[:, 1:14:2, 3] = x_BND, y_BN
        token_BTD[:, 14:, :3] = query_BQD
        return token_BTD

    model = Model(Interleaved(Mix(MIXTURE), 7))
    found = task_inference(model, prompts, MIXTURE, site="carry:out", encode=encode)
    plain = task_inference(Model(Mix(MIXTURE)), prompts, MIXTURE)
    torch.testing.assert_close(found.implied_B, plain.implied_B)
    assert found.acts_BQW is not None and plain.acts_BQW is None
    assert torch.equal(found.acts_BQW[..., :3], prompts.query_BQD)


def test_without_answers_errors_are_nan_and_without_a_difference_the_share_is() -> None:
    prompts = MIXTURE.draw(5, 7, 2, seed=5)
    bare = Prompts(prompts.x_BND, prompts.y_BN, torch.zeros_like(prompts.query_BQD))
    found = task_inference(Model(Mix(MIXTURE)), bare, MIXTURE)
    assert all(isnan(e) for e in found.errors.values())
    assert found.implied_B.isnan().all() and isnan(found.correlation)
    contract.check_unchanged(
        lambda: task_inference(Model(Mix(MIXTURE)), prompts, MIXTURE),
        prompts.x_BND, prompts.y_BN, prompts.query_BQD, MIXTURE.tasks_KD,
    )  # fmt: skip


def test_one_answer_far_off_does_not_rule_the_correlation() -> None:
    implied_B, bayes_B = torch.tensor([-50.0, 0.25, nan, 9.0]), torch.tensor([0.0, 0.25, 0.5, 1.0])
    found = TaskInferenceResult(implied_B, bayes_B, bayes_B, {}, None)
    assert found.correlation == pytest.approx(1)
    assert found.summary()["implied"] == pytest.approx((0 + 0.25 + 1) / 3)


class Fixed(nn.Module):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Tensor) -> Tensor:
        return self.output


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(5, 1), r"5 prompts of 2 queries, got shape \(5, 1\)"),
        (torch.zeros(4, 2), r"5 prompts of 2 queries, got shape \(4, 2\)"),
        (torch.zeros(5, 9, 3), r"got shape \(5, 9, 3\)"),
        (torch.full((5, 2), nan), "finite, got 10 NaN or infinite"),
    ],
    ids=["too few queries", "too few prompts", "several numbers", "not finite"],
)
def test_answers_that_do_not_fit_are_refused(output: Tensor, message: str) -> None:
    prompts = MIXTURE.draw(5, 7, 2)
    with pytest.raises(InputError, match=message):
        task_inference(Model(Fixed(output)), prompts, MIXTURE)


def test_what_is_no_prompt_or_no_mixture_is_refused() -> None:
    x_BND, y_BN, query_BQD = torch.ones(4, 3, 2), torch.ones(4, 3), torch.ones(4, 5, 2)
    for given in (
        (x_BND[0], y_BN, query_BQD),
        (x_BND, y_BN[:, 1:], query_BQD),
        (x_BND, y_BN, query_BQD[1:]),
        (x_BND, y_BN, query_BQD[..., 1:]),
    ):
        with pytest.raises(InputError, match=r"x \(B, N, D\), y \(B, N\)"):
            Prompts(*given)
    with pytest.raises(InputError, match="finite, got 3 NaN"):
        Prompts(x_BND, y_BN.index_fill(0, torch.tensor(1), nan), query_BQD)
    with pytest.raises(InputError, match="one width, got 2 and 3"):
        task_inference(Model(Mix(MIXTURE)), Prompts(x_BND, y_BN, query_BQD), MIXTURE)
    for tasks_KD, numbers in (
        (torch.ones(2), (0.5, 1.0, 1.0)),
        (torch.ones(0, 3), (0.5, 1.0, 1.0)),
        (torch.ones(2, 3), (1.0, 1.0, 1.0)),
        (torch.ones(2, 3), (0.5, 0.0, 1.0)),
        (torch.ones(2, 3), (0.5, 1.0, -1.0)),
    ):
        with pytest.raises(InputError, match="a share in"):
            TaskMixture(tasks_KD, *numbers)


def test_the_probe_finds_a_planted_family_and_not_shuffled_labels() -> None:
    gen = torch.Generator().manual_seed(0)
    discrete_M = torch.rand(300, generator=gen) < 0.4
    acts_MW = 50 + 3 * torch.randn(300, 7, generator=gen)
    acts_MW[:, 2] += 20 * discrete_M
    probe = FamilyProbe().fit(acts_MW[:200], discrete_M[:200])
    said_M = probe.posterior(acts_MW[200:])
    assert ((said_M > 0.5) == discrete_M[200:]).double().mean() > 0.97
    assert said_M.shape == (100,) and (said_M >= 0).all() and (said_M <= 1).all()
    order = torch.randperm(200, generator=gen)
    control_M = FamilyProbe().fit(acts_MW[:200], discrete_M[:200][order]).posterior(acts_MW[200:])
    assert 0.3 < ((control_M > 0.5) == discrete_M[200:]).double().mean() < 0.7
    contract.check_copies(probe, lambda p: p.posterior(acts_MW))


def test_a_probe_refuses_one_family_wrong_labels_and_use_before_fit() -> None:
    acts_MW = contract.acts(20)
    for labels_M, message in (
        (torch.ones(20, dtype=torch.bool), "20 discrete of 20"),
        (torch.zeros(20, dtype=torch.bool), "0 discrete of 20"),
        (torch.ones(19, dtype=torch.bool), r"got \(20, 5\) and \(19,\)"),
    ):
        with pytest.raises(InputError, match=message):
            FamilyProbe().fit(acts_MW, labels_M)
    with pytest.raises(InputError, match="must be fitted"):
        FamilyProbe().posterior(acts_MW)
