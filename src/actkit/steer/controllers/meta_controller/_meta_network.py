"""The network that proposes, holds and decodes codes which control another one's activations.

Shapes: B batch, T steps, D width, Z code, R rank, H hidden units.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Codes:
    """What was read from sequences.

    Attributes:
        code_BTZ: The codes that are held.
        beta_BT: How far each step takes its proposal over, in [0, 1].
        mean_BTZ: Of the proposals, which are normally distributed.
        log_std_BTZ: Of the proposals.
    """

    code_BTZ: Tensor
    beta_BT: Tensor
    mean_BTZ: Tensor
    log_std_BTZ: Tensor

    def divergence(self) -> Tensor:
        """Return the mean KL(proposal, N(0, I)) of a step, in nats.

        Example:
            >>> one = torch.ones(1, 1, 1)
            >>> Codes(one, one[0], mean_BTZ=2 * one, log_std_BTZ=0 * one).divergence()
            tensor(2.)
        """
        variance_BTZ = (2 * self.log_std_BTZ).exp()
        kl_BTZ = 0.5 * (self.mean_BTZ.square() + variance_BTZ - 1) - self.log_std_BTZ
        return kl_BTZ.sum(-1).mean()


class MetaNetwork(nn.Module):
    """Encoder, switching unit and decoder.

    Proposals see the whole sequence. The switching unit sees a step's state, which knows the
    past only, and the code that is held, so that it also serves where there is no future yet.
    """

    def __init__(self, width: int, num_codes: int, rank: int, num_hidden: int, seed: int) -> None:
        """Draw the first weights; the global random state stays as it is.

        Args:
            width: D.
            num_codes: Z.
            rank: R, of U.
            num_hidden: H.
            seed: Of the weights.
        """
        super().__init__()
        self.num_codes, self.rank = num_codes, rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.whole = nn.GRU(width, num_hidden, batch_first=True, bidirectional=True)
            self.propose = nn.Linear(2 * num_hidden + width, 2 * num_codes)
            self.watch = nn.Linear(width, num_hidden)
            self.recall = nn.Linear(num_codes, num_hidden, bias=False)
            self.switch = nn.Linear(num_hidden, 1)
            self.decode = nn.Linear(num_codes, 2 * rank * width)
        # codes that are held at first learn what lasts, not the next step
        nn.init.constant_(self.switch.bias, -1.0)

    def encode(self, e_BTD: Tensor, gen: torch.Generator | None = None) -> Codes:
        """Return the codes of sequences; proposals are drawn if there is a generator."""
        whole_BTH = self.whole(e_BTD)[0]
        mean_BTZ, log_std_BTZ = self.propose(torch.cat([whole_BTH, e_BTD], -1)).chunk(2, -1)
        drawn_BTZ = mean_BTZ
        if gen is not None:
            noise_BTZ = torch.randn(mean_BTZ.shape, generator=gen).to(mean_BTZ)
            drawn_BTZ = mean_BTZ + log_std_BTZ.exp() * noise_BTZ
        code_BTZ, beta_BT = self.hold(drawn_BTZ, e_BTD)
        return Codes(code_BTZ, beta_BT, mean_BTZ, log_std_BTZ)

    def beta(self, watched_BH: Tensor, held_BZ: Tensor) -> Tensor:
        """Return how far to take a proposal over, (B, 1)."""
        beta_B1: Tensor = self.switch((watched_BH + self.recall(held_BZ)).tanh()).sigmoid()
        return beta_B1

    def hold(self, drawn_BTZ: Tensor, e_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Return z_t = beta_t drawn_t + (1 - beta_t) z_{t-1} and beta; z is 0 before the start."""
        held_BZ, codes, betas = torch.zeros_like(drawn_BTZ[:, 0]), [], []
        for drawn_BZ, watched_BH in zip(
            drawn_BTZ.unbind(1), self.watch(e_BTD).unbind(1), strict=True
        ):
            beta_B1 = self.beta(watched_BH, held_BZ)
            held_BZ = beta_B1 * drawn_BZ + (1 - beta_B1) * held_BZ
            codes.append(held_BZ)
            betas.append(beta_B1[:, 0])
        return torch.stack(codes, 1), torch.stack(betas, 1)

    def control(self, e_BTD: Tensor, code_BTZ: Tensor) -> Tensor:
        """Return U_t e_t, with U_t of rank R decoded from z_t."""
        left, right = self.decode(code_BTZ).unflatten(-1, (2, self.rank, -1)).unbind(-3)
        inner_BTR = torch.einsum("btrd,btd->btr", right, e_BTD)
        return torch.einsum("btrd,btr->btd", left, inner_BTR)
