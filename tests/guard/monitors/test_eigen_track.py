import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from actkit.core.errors import InputError
from actkit.guard.monitors.eigen_track import EigenTrack
from actkit.read.spectra.mp_spectrum import mp_descriptors
from tests._evidence import Evidence
from tests.contract import check_copies, check_same, check_seeded, check_unchanged


def stream(seed: int, collapses: bool, high: int = 10, low: int = 2) -> Tensor:
    """Return (90, 41) activations whose signal falls from `high` dimensions to `low` mid-way.

    Or it rises, at the mirrored step: then each window alone says nothing about the kind.
    """
    gen = torch.Generator().manual_seed(seed)
    turn = int(torch.randint(35, 56, (1,), generator=gen))
    rank_T = torch.full((90,), high)
    rank_T[turn:] = low
    if not collapses:
        rank_T = rank_T.flip(0)
    signal = torch.randn(90, high, generator=gen) * (torch.arange(high) < rank_T[:, None])
    mixing = torch.randn(high, 41, generator=gen) * 2.5 / high**0.5
    noise = torch.randn(90, 41, generator=gen)
    acts_TD: Tensor = signal @ mixing + noise + torch.linspace(-2, 5, 41)
    return acts_TD


@pytest.mark.paper("structure-redundancy-large-language")
def test_collapse_of_rank_is_told_from_its_recovery(evidence: Evidence) -> None:
    labels = [int(seed % 2 == 0) for seed in range(140)]
    steps = [mp_descriptors(stream(s, bool(labels[s])), 16, stride=4) for s in range(140)]
    gen = torch.Generator().manual_seed(0)
    shuffled = [steps_WF[torch.randperm(len(steps_WF), generator=gen)] for steps_WF in steps]

    def auroc(detector: EigenTrack, given: list[Tensor]) -> float:
        scored = detector.fit(given[:60], labels[:60]).score(given[60:])
        last = [float(probs_W[-1]) for probs_W in scored]
        return float(roc_auc_score(labels[60:], last))

    for detector in (EigenTrack(cell="gru"), EigenTrack(cell="lstm")):
        whole, mixed = auroc(detector, steps), auroc(detector, shuffled)
        evidence(f"AUROC at the last step, {detector.cell}", measured=whole, at_least=0.95)
        evidence(f"AUROC lost by shuffling windows in time, {detector.cell}",
                 measured=whole - mixed, at_least=0.1)  # fmt: skip


def planted(num: int = 12) -> tuple[list[Tensor], list[Tensor]]:
    """Return sequences of 7 to 11 steps whose second of 3 descriptors is high while all is well."""
    gen = torch.Generator().manual_seed(0)
    steps, labels = [], []
    for i in range(num):
        label_W = (torch.arange(7 + i % 5) >= 3 + i % 4).float()
        x = torch.randn(len(label_W), 3, generator=gen) * torch.tensor([9.0, 0.1, 0.01]) + 40
        x[:, 1] -= label_W
        steps.append(x)
        labels.append(label_W)
    return steps, labels


def test_labels_of_steps_are_learnt_as_steps() -> None:
    steps, labels = planted()
    for probs_W, label_W in zip(EigenTrack().fit(steps, labels).score(steps), labels, strict=True):
        assert ((probs_W > 0.5) == label_W.bool()).all()


def test_a_step_depends_neither_on_later_steps_nor_on_other_sequences() -> None:
    steps, labels = planted()
    detector = EigenTrack(epochs=5).fit(steps, labels)
    whole = detector.score(steps)
    torch.testing.assert_close(detector.score([steps[4]])[0], whole[4])
    torch.testing.assert_close(detector.score([steps[4][:3]])[0], whole[4][:3])


def test_padding_of_short_sequences_is_no_step_to_learn_from() -> None:
    """One step of Adam moves the bias by its rate, towards the labels of most steps."""
    steps = [torch.ones(num, 2) for num in (1, 1, 1, 1, 40)]
    before, after = (
        EigenTrack(width=1, epochs=1, rate=rate).fit(steps, [1] * 5).score(steps)
        for rate in (1e-9, 1e-2)
    )
    assert all((late > early).all() for early, late in zip(before, after, strict=True))


def test_scale_and_offset_of_descriptors_do_not_matter() -> None:
    steps, labels = planted()
    moved = [1000 * x - 5 for x in steps]
    one = EigenTrack(epochs=5).fit(steps, labels).score(steps)
    other = EigenTrack(epochs=5).fit(moved, labels).score(moved)
    check_same(other, one, rtol=1e-2)


def test_fit_is_seeded_forgets_and_leaves_its_data() -> None:
    steps, labels = planted()
    check_seeded(lambda seed: EigenTrack(epochs=3, seed=seed).fit(steps, labels).score(steps))
    check_unchanged(lambda: EigenTrack(epochs=2).fit(steps, labels).score(steps), steps, labels)
    once = EigenTrack(epochs=3).fit(steps, labels)
    again = EigenTrack(epochs=3).fit([-x for x in steps[:5]], [0, 1, 0, 1, 1]).fit(steps, labels)
    check_same(again.score(steps), once.score(steps))
    check_copies(once, lambda detector: detector.score(steps))


def test_a_constant_descriptor_says_nothing() -> None:
    steps, labels = planted()
    detector = EigenTrack(epochs=3).fit([0 * x + 3 for x in steps], labels)
    assert all(probs_W.isfinite().all() for probs_W in detector.score(steps))


def test_bad_input_is_refused() -> None:
    steps, labels = planted()
    with pytest.raises(InputError, match="fit must come before score"):
        EigenTrack().score(steps)
    for given, of, message in (
        ([], [], "need .W, F."),
        ([torch.ones(3)], [1], "need .W, F."),
        ([torch.ones(3, 2), torch.ones(3, 4)], [0, 1], "share F"),
        ([torch.full((3, 2), torch.nan)], [1], "finite, got 6"),
        (steps, labels[1:], "got 11 for 12"),
        (steps[:1], [2], "0 or 1"),
        (steps[:1], [labels[0][1:]], "or 7 of them"),
    ):
        with pytest.raises(InputError, match=message):
            EigenTrack(epochs=1).fit(given, of)
    with pytest.raises(InputError, match="fitted on 3"):
        EigenTrack(epochs=1).fit(steps, labels).score([torch.ones(4, 2)])
    for settings in ({"cell": "rnn"}, {"width": 0}, {"epochs": 0}, {"rate": 0.0}):
        with pytest.raises(InputError, match="cell must be"):
            EigenTrack(**settings)
