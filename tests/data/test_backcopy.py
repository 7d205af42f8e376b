import pytest
import torch

from actkit.core.errors import DataError
from actkit.data import bigram_backcopy


def test_after_a_trigger_the_token_before_it_is_repeated() -> None:
    task = bigram_backcopy(num_samples=301, length=23, vocabulary=13, num_triggers=2, seed=5)
    trigger_NT = task.is_trigger()
    rows, times = trigger_NT[:, :-1].nonzero().T
    assert len(rows) > 100 and len(task.triggers) == 2
    assert torch.equal(task.tokens_NT[rows, times + 1], task.tokens_NT[rows, times - 1])
    assert not trigger_NT[:, :2].any()
    assert (task.tokens_NT[:, 0] == 0).all() and (task.tokens_NT[:, 1:] > 0).all()


def test_other_tokens_follow_the_bigram() -> None:
    task = bigram_backcopy(num_samples=4000, length=17, vocabulary=6, num_triggers=1)
    last, new = task.tokens_NT[:, :-1], task.tokens_NT[:, 1:]
    torch.testing.assert_close(task.bigram_VV.sum(1), torch.ones(6, dtype=torch.float64))
    for token in set(range(6)) - set(task.triggers.tolist()):
        drawn = new[last == token]
        found = torch.bincount(drawn, minlength=6) / len(drawn)
        error = (task.bigram_VV[token] * (1 - task.bigram_VV[token]) / len(drawn)).sqrt()
        assert ((found - task.bigram_VV[token]).abs() <= 4 * error + 1e-9).all()


def test_the_seed_decides() -> None:
    one, same, other = (bigram_backcopy(num_samples=9, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.tokens_NT, same.tokens_NT)
    assert not torch.equal(one.bigram_VV, other.bigram_VV)


@pytest.mark.parametrize(
    "sizes", [{"length": 2}, {"num_samples": 0}, {"vocabulary": 5}, {"num_triggers": 0}], ids=str
)
def test_sizes_that_leave_no_task_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(DataError, match="need at least 1 sequence of 3 tokens"):
        bigram_backcopy(**sizes)
