"""Which axis is which: by the module that made a tensor, as the user says it, or refused.

Oracles are permutations written by hand on what plain torch returns.

Shapes: B batch, T tokens, C channels, Y and X places, D width, N rows.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import actkit as ak
from actkit.core.errors import SiteError
from actkit.core.sites.axes import Axes, AxesByModule
from actkit.core.sites.layout import rows_back, rows_first
from actkit.model import Model
from tests.core import tiny


class Permute(nn.Module):
    """Turns the axes around; it has no weights."""

    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class ChannelsLast(nn.Module):
    """A block as ConvNeXt's: depthwise convolution, then LayerNorm and Linear on the last axis."""

    def __init__(self, width: int, first_out: bool) -> None:
        super().__init__()
        self.dw = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm, self.up, self.act = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU()
        self.down, self.first_out = nn.Linear(4 * width, width), first_out

    def forward(self, x: Tensor) -> Tensor:
        y = self.dw(x).permute(0, 2, 3, 1)
        y = self.down(self.act(self.up(self.norm(y))))
        out: Tensor = x + y.permute(0, 3, 1, 2) if self.first_out else x.permute(0, 2, 3, 1) + y
        return out


class Stages(nn.Module):
    """A stem, a block, a head over the mean of all places."""

    def __init__(self, first_out: bool = True) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.stem = nn.Conv2d(3, 8, 1)
        self.block = ChannelsLast(8, first_out)
        self.head, self.places = nn.Linear(8, 5), (2, 3) if first_out else (1, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.block(self.stem(x)).mean(self.places))
        return scores


IMAGES = tiny.uneven(2, 3, 5, 6)


def outputs(net: nn.Module, path: str, *args: Any) -> Tensor:
    """What a module returns, by a hook written by hand."""
    found: list[Any] = []
    handle = net.get_submodule(path).register_forward_hook(lambda *a: found.append(a[2]))
    with torch.no_grad():
        net(*args)
    handle.remove()
    return torch.as_tensor(found[0])


@pytest.mark.parametrize("first_out", [True, False])
def test_rows_are_places_and_units_are_channels_on_either_side(first_out: bool) -> None:
    net = Stages(first_out).eval()
    m = Model(net)
    names = ["stem", "block.dw", "block.norm", "block.up", "block.act", "block.down", "block"]
    rec = m.run(IMAGES, record=[f"{n}:out" for n in names])
    for name in names:
        want = outputs(net, name, IMAGES)
        first = name in ("stem", "block.dw") or (name == "block" and first_out)
        want = want.permute(0, 2, 3, 1) if first else want
        acts_ND, rows = rec.flat(f"{name}:out")
        assert torch.equal(acts_ND, want.flatten(0, 2))
        assert rows.grid == (5, 6)
        assert rows.sample.tolist() == [b for b in range(2) for _ in range(30)]
        assert rows.position.tolist() == [*range(30)] * 2


def test_statistics_and_stores_read_the_same_rows(tmp_path: Path) -> None:
    net = Stages(first_out=False).eval()
    m, seen = Model(net), list[Tensor]()

    class Keep:
        def update(self, acts: Tensor, rows: Any) -> None:
            seen.append(acts)

        def merge(self, other: Any) -> None: ...

    want = outputs(net, "block", IMAGES).flatten(0, 2)
    fed = m.observe([IMAGES], {"block:out": [Keep()]})
    assert len(fed) == 1 and torch.equal(torch.cat(seen), want)
    store = m.harvest([IMAGES], ["block:out"], tmp_path / "store", dtype="float32")
    assert torch.equal(torch.as_tensor(store["block:out"][:]), want)


@pytest.mark.parametrize("first_out", [True, False])
def test_an_edit_of_channels_is_that_of_a_hook_by_hand(first_out: bool) -> None:
    net = Stages(first_out).eval()
    m, v = Model(net), torch.linspace(-1, 2, 8)
    place = v[:, None, None] if first_out else v

    def by_hand(change: Callable[[Tensor], Tensor]) -> Tensor:
        handle = net.block.register_forward_hook(lambda *a: change(a[2]))
        try:
            return torch.as_tensor(net(IMAGES))
        finally:
            handle.remove()

    with torch.no_grad():
        added = by_hand(lambda x: x + place)
        at_last = (slice(None), slice(None), 4, 5) if first_out else (slice(None), 4, 5)

        def zeroed(x: Tensor) -> Tensor:
            x = x.clone()
            x[at_last] = 0.0
            return x

        one_place = by_hand(zeroed)
    assert_close(m.run(IMAGES, edits=[ak.add("block:out", v)]).output, added)
    edit = ak.set("block:out", 0.0, ak.Where(tokens=29))
    assert_close(m.run(IMAGES, edits=[edit]).output, one_place)


class Opaque(nn.Module):
    """No module inside tells where its units are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1) * 2


def test_what_nothing_proves_is_refused_where_rows_are_asked() -> None:
    net = nn.Sequential(Opaque())
    m, doubled = Model(net), IMAGES.permute(0, 2, 3, 1) * 2
    rec = m.run(IMAGES, record="0:out")
    assert torch.equal(rec["0:out"], doubled)  # the tensor can be had
    reason = (
        r"which axes of 0:out are samples, places and units is not known .*ak\.open\(net, axes="
    )
    for ask in (rec.flat, rec.rows_of, rec.rows_first, rec.axes_of):
        with pytest.raises(SiteError, match=reason):
            ask("0:out")
    with pytest.raises(SiteError, match=reason):
        m.observe([IMAGES], {"0:out": []})
    for edit in (
        ak.add("0:out", torch.ones(3)),
        ak.set("0:out", 0.0, ak.Where(units=1)),
        ak.set("0:out", 0.0, ak.Where(tokens=1)),
        ak.apply("0:out", torch.sin),
    ):
        with pytest.raises(SiteError, match=reason):
            m.run(IMAGES, edits=[edit])


def test_edits_that_ask_for_no_axis_need_none() -> None:
    m, doubled = Model(nn.Sequential(Opaque())), IMAGES.permute(0, 2, 3, 1) * 2
    other = m.run(IMAGES.flip(0), record="0:out")
    for edit, want in (
        (ak.scale("0:out", 0.5), doubled / 2),
        (ak.set("0:out", 3.0), torch.full_like(doubled, 3.0)),
        (ak.clamp("0:out", -0.1, 0.2), doubled.clamp(-0.1, 0.2)),
        (ak.swap("0:out", other), doubled.flip(0)),
    ):
        assert torch.equal(m.run(IMAGES, edits=[edit]).output, want)


def test_the_user_can_say_it_for_runs_edits_statistics_and_stores(tmp_path: Path) -> None:
    net = nn.Sequential(Opaque())
    m, doubled = ak.open(net, axes={"?:out": "BYXC"}), IMAGES.permute(0, 2, 3, 1) * 2
    acts_ND, rows = m.run(IMAGES, record="0:out").flat("0:out")
    assert torch.equal(acts_ND, doubled.flatten(0, 2)) and rows.grid == (5, 6)
    v = torch.tensor([1.0, -2.0, 0.5])
    assert torch.equal(m.run(IMAGES, edits=[ak.add("0:out", v)]).output, doubled + v)
    store = m.harvest([IMAGES], ["0:out"], tmp_path / "store", dtype="float32")
    assert torch.equal(torch.as_tensor(store["0:out"][:]), doubled.flatten(0, 2))
    other = ak.open(net, axes={"0:*": "BCXY"})
    acts_ND, rows = other.run(IMAGES, record="0:out").flat("0:out")
    assert torch.equal(acts_ND, doubled.permute(0, 2, 3, 1).flatten(0, 2)) and rows.grid == (6, 3)


def test_what_is_said_beats_what_is_proven_and_must_fit() -> None:
    net = Stages().eval()
    m = ak.open(net, axes={"stem:out": "BYXC", "block:out": "BTD"})
    rec = m.run(IMAGES, record=["stem:out", "block:out"])
    assert rec.flat("stem:out")[0].shape == (2 * 8 * 5, 6)
    with pytest.raises(SiteError, match=r"told to have the axes BTD, got shape \(2, 8, 5, 6\)"):
        rec.flat("block:out")


@pytest.mark.parametrize("axes", ["", "BXY", "TD", "BTT", "BTDD", "BTDC", "btd", "BBTD", "BQD"])
def test_what_is_no_axes_is_refused_when_it_is_said(axes: str) -> None:
    with pytest.raises(SiteError, match=f"axes are letters, .*got '{axes}' for '0:out'"):
        ak.open(nn.Sequential(nn.ReLU()), axes={"0:out": axes})


# -- three axes ----------------------------------------------------------------------------------


class Sequence(nn.Module):
    """A recurrent network that reads (T, B, D) or (B, T, D), and a head on every token."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.rnn = nn.LSTM(3, 4, num_layers=2, batch_first=batch_first)
        self.head = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.rnn(x)[0])
        return scores


@pytest.mark.parametrize("size", [(5, 2), (4, 4)])
@pytest.mark.parametrize("batch_first", [True, False])
def test_recurrent_networks_say_which_axis_is_time(
    batch_first: bool, size: tuple[int, int]
) -> None:
    """Also where there are as many tokens as samples."""
    length, batch = size
    x_TBD = tiny.uneven(length, batch, 3)
    net = Sequence(batch_first).eval()
    x = x_TBD.transpose(0, 1) if batch_first else x_TBD
    with torch.no_grad():
        out, (state_LBD, _) = net.rnn(x)
    want_BTD = out if batch_first else out.transpose(0, 1)
    m = Model(net)
    rec = m.run(x, record=["rnn:out", "rnn:out.1.0"])
    acts_ND, rows = rec.flat("rnn:out")
    assert torch.equal(acts_ND, want_BTD.flatten(0, 1))
    assert rows.sample.tolist() == [b for b in range(batch) for _ in range(length)]
    assert rows.position.tolist() == [*range(length)] * batch
    states, rows = rec.flat("rnn:out.1.0")
    assert torch.equal(states, state_LBD.transpose(0, 1).flatten(0, 1))
    assert rows.sample.tolist() == [b for b in range(batch) for _ in range(2)]


def test_an_edit_of_one_sample_meets_that_sample_where_time_comes_first() -> None:
    net, x = Sequence(batch_first=False).eval(), tiny.uneven(5, 2, 3)
    with torch.no_grad():
        out = net.rnn(x)[0]
        out[:, 1] = 0.25
        want = net.head(out)
    edit = ak.set("rnn:out", 0.25, ak.Where(rows=1))
    assert_close(Model(net).run(x, edits=[edit]).output, want)
    with torch.no_grad():
        out = net.rnn(x)[0]
        out[3] += torch.arange(4.0)
        want = net.head(out)
    edit = ak.add("rnn:out", torch.arange(4.0), where=ak.Where(tokens=3))
    assert_close(Model(net).run(x, edits=[edit]).output, want)


def test_what_stands_beside_a_network_that_reads_time_first_is_refused() -> None:
    """The head has (T, B, D), but it would have (B, T, D) were the two turned before it."""
    m, x = Model(Sequence(batch_first=False).eval()), tiny.uneven(5, 2, 3)
    with pytest.raises(SiteError, match=r"a module beside it reads \(token, sample, width\)"):
        m.run(x, record="head:out").flat("head:out")
    told = ak.open(m.module, axes={"head:*": "TBD"})
    acts_ND, _ = told.run(x, record="head:out").flat("head:out")
    assert torch.equal(acts_ND, outputs(m.module, "head", x).transpose(0, 1).flatten(0, 1))


@pytest.mark.parametrize("batch_first", [True, False])
def test_parts_of_torchs_transformer_have_its_axes(batch_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 9, batch_first=batch_first, dropout=0.0)
    torch.manual_seed(8)
    net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train()
    x_TBD = tiny.uneven(5, 3, 6)
    x = x_TBD.transpose(0, 1) if batch_first else x_TBD
    names = ["layers.1.linear1:out", "layers.0.norm2:out", "layers.1:out", "layers.0.self_attn:out"]
    rec = Model(net).run(x, record=names)
    for name in names:
        acts_ND, rows = rec.flat(name)
        own = rec[name] if batch_first else rec[name].transpose(0, 1)
        assert torch.equal(acts_ND, own.flatten(0, 1))
        assert rows.sample.tolist() == [b for b in range(3) for _ in range(5)]


def test_a_convolution_over_time_has_its_channels_in_the_middle() -> None:
    torch.manual_seed(9)
    net = nn.Sequential(nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.ReLU(), nn.MaxPool1d(2)).eval()
    x, m, v = tiny.uneven(2, 3, 9), Model(net), torch.linspace(-1, 1, 4)
    rec = m.run(x, record=["*:out"])
    for i in range(4):
        acts_ND, rows = rec.flat(f"{i}:out")
        assert torch.equal(acts_ND, outputs(net, str(i), x).transpose(1, 2).flatten(0, 1))
        length = 4 if i == 3 else 8
        assert rows.position.tolist() == [*range(length)] * 2
    got = m.run(x, edits=[ak.add("1:out", v)]).output
    with torch.no_grad():
        assert_close(got, net[3](net[2](net[1](net[0](x)) + v[:, None])))


def test_samples_that_were_regrouped_are_not_counted_as_samples() -> None:
    """Windows of an image (as in Swin) and tokens that were flattened into the first axis."""

    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.flat = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            windows = self.mix(x.reshape(len(x) * 3, -1, 4))
            rows: Tensor = self.flat(windows.reshape(-1, 4))
            return rows.reshape(len(x), -1, 4)

    x = tiny.uneven(2, 6, 4)
    net = Windows()
    m, v = Model(net), torch.arange(4.0)
    rec = m.run(x, record=["mix:out", "flat:out"])
    for name, found in (("mix:out", 6), ("flat:out", 12)):
        with pytest.raises(SiteError, match=f"{name} need an axis that counts the 2 samples, got"):
            rec.flat(name)
        with pytest.raises(SiteError, match="counts the 2 samples"):
            m.run(x, edits=[ak.set(name, 0.0, ak.Where(rows=1))])
        with pytest.raises(SiteError, match="counts the 2 samples"):
            m.observe([x], {name: []})
        assert rec[name].shape[0] == found
    # units are known all the same, so an edit of all rows acts
    with torch.no_grad():
        want = net(x) + v
    assert_close(m.run(x, edits=[ak.add("flat:out", v)]).output, want)


def test_the_first_axis_is_not_asked_of_statistics_that_the_user_told_of() -> None:
    net = nn.Sequential(nn.Flatten(0, 1), nn.Linear(4, 3))
    m, x = ak.open(net, axes={"1:out": "BD"}), tiny.uneven(2, 6, 4)
    acts_ND, rows = m.run(x, record="1:out").flat("1:out")
    assert acts_ND.shape == (12, 3) and rows.sample.tolist() == [*range(12)]


# -- what is proven ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "axes"),
    [
        (nn.Conv3d(3, 4, 1), (2, 4, 5, 6, 7), "BCZYX"),
        (nn.Linear(3, 4), (2, 5, 6, 4), "BYXC"),
        (nn.Linear(3, 4), (2, 7, 4), "BTD"),
        (nn.Linear(3, 4), (2, 4), "BD"),
        (nn.BatchNorm1d(4), (2, 4), "BD"),
        (nn.BatchNorm1d(4), (2, 4, 9), "BCT"),
        (nn.GroupNorm(2, 4), (2, 4, 5, 6), "BCYX"),
        (nn.GroupNorm(2, 4), (2, 4, 5), "BCT"),
        (nn.AdaptiveAvgPool2d(3), (2, 4, 3, 3), "BCYX"),
        (nn.Dropout2d(), (2, 4, 3, 3), "BCYX"),
        (nn.UpsamplingNearest2d(4), (2, 4, 3, 3), "BCYX"),
        (nn.Upsample(4), (2, 4, 3, 3), "BCYX"),
        (nn.InstanceNorm2d(4), (2, 4, 3, 3), "BCYX"),
        (nn.RMSNorm(4), (2, 3, 5, 4), "BYXC"),
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (2, 4, 5, 6), "BCYX"),
        # both axes are as wide as the convolution, and there is nothing else inside
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (2, 4, 5, 4), "BCYX"),
        # concatenated channels are as wide as nothing inside
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), (2, 11, 5, 6), "BCYX"),
        # an embedding of patches: the convolution's channels were turned behind the places
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), Permute(0, 2, 1)), (2, 30, 4), "BTD"),
        (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 9)), (2, 5, 6, 9), "BYXC"),
    ],
)  # fmt: skip
def test_axes_by_module(module: nn.Module, shape: tuple[int, ...], axes: str) -> None:
    found = AxesByModule(module).at(":out", "", ()).of(torch.zeros(shape))
    assert found.replace("D", "C") == axes.replace("D", "C")


class OwnNorm(nn.LayerNorm):
    """As timm's LayerNorm2d: torch's class, but it reads (B, C, Y, X)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def test_a_class_that_only_inherits_from_torchs_is_not_taken_for_it() -> None:
    axes = AxesByModule(OwnNorm(4)).at(":out", "", ())
    assert axes.of(torch.zeros(2, 4, 5, 6)) == "BCYX"
    assert axes.of(torch.zeros(2, 5, 6, 4)) == "BYXC"
    with pytest.raises(SiteError, match="several axes could hold its units"):
        axes.of(torch.zeros(2, 4, 5, 4))


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (Stages(), (2, 8, 5, 8), "several axes could hold its units"),
        (Stages(), (2, 11, 6, 7), "no axis is as wide as a module inside"),
        (nn.Conv2d(3, 4, 1), (4, 5, 6), "with 4 axes it would have samples"),
        (nn.LayerNorm((4, 5)), (2, 3, 6, 5, 7), "no axis is as wide"),
        (nn.Linear(3, 4), (4,), "rows need an axis of samples and one of units"),
    ],
)
def test_axes_that_are_not_known(module: nn.Module, shape: tuple[int, ...], reason: str) -> None:
    with pytest.raises(SiteError, match=reason):
        AxesByModule(module).at(":out", "", ()).of(torch.zeros(shape))


@pytest.mark.parametrize(
    "axes",
    ["BD", "BTD", "TBD", "BCT", "BCYX", "BYXC", "YXBC", "BCZYX", "BTHK", "BHTS", "BZYXC", ""],
)
def test_rows_come_back_where_they_were(axes: str) -> None:
    sizes = {"B": 2, "T": 3, "Z": 7, "Y": 4, "X": 5, "C": 6, "D": 6, "H": 8, "K": 9, "S": 10}
    x = tiny.uneven(*(sizes[a] for a in axes or "TBD"))
    rows = rows_first(x, axes)
    assert torch.equal(rows_back(rows, axes, x), x)
    if axes:
        assert rows.shape[0] == 2 and torch.isin(rows[1], x.select(axes.index("B"), 1)).all()


def test_axes_without_a_module_are_unknown() -> None:
    with pytest.raises(SiteError, match="is not known"):
        Axes("somewhere").of(torch.zeros(2, 3, 4, 5))


def test_three_axes_that_nothing_tells_are_a_text_where_no_channels_stand_in_the_middle() -> None:
    x = torch.zeros(2, 5, 7)
    own = nn.Sequential(nn.Identity(), nn.Linear(3, 4))
    assert AxesByModule(own).at("0:out", "0", ()).of(x) == "BTD"
    beside = nn.Sequential(nn.Identity(), nn.Conv1d(3, 4, 1), nn.Linear(9, 8))
    with pytest.raises(SiteError, match="no axis is as wide as a module inside"):
        AxesByModule(beside).at("0:out", "0", ()).of(x)


@pytest.mark.parametrize("axes", ["BCYX", "BYXC", "BCT", "BHTS"])
@pytest.mark.parametrize("memory", ["as its axes", "channels last", "part of a longer one"])
@pytest.mark.parametrize("side", [1, 4])
def test_rows_come_back_in_the_order_that_memory_had(axes: str, memory: str, side: int) -> None:
    # a 1 x 1 image has the same numbers in both orders, but kernels choose by the strides
    x = tiny.uneven(2, *[side] * (len(axes) - 1))
    if memory == "channels last":
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if memory == "part of a longer one":
        x = tiny.uneven(2, *[side + 1] * (len(axes) - 1))[:, 1:, ..., :-1]
    back = rows_back(rows_first(x, axes).clone(), axes, x)
    assert back.stride() == x.stride() and torch.equal(back, x)


def test_an_edit_that_changes_nothing_keeps_every_bit_of_an_image() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 48, 3), nn.Conv2d(48, 32, 3), nn.Conv2d(32, 8, 1)).eval()
    x = tiny.uneven(2, 3, 9, 9)
    with torch.no_grad():
        plain = net(x)
    edits = [ak.apply(f"{i}:out", torch.clone) for i in range(2)]
    assert torch.equal(Model(net).run(x, edits=edits).output, plain)


@pytest.mark.parametrize("axes", ["BTD", ""])
def test_numbers_that_memory_shares_come_back_apart(axes: str) -> None:
    x = tiny.uneven(2, 1, 5).expand(2, 3, 5)
    back = rows_back(rows_first(x, axes) + 1.0, axes, x)
    assert torch.equal(back, x + 1.0)
    back[:, 0] = 0.0
    assert torch.equal(back[:, 1:], x[:, 1:] + 1.0)


class Shorter(nn.Module):
    """Cuts the end off, as the padding of Wav2Vec2's positions does."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :-1]


def test_what_is_put_back_into_a_part_of_a_longer_tensor_changes_no_bit() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(3, 48, 4, padding=2), Shorter(), nn.GELU()).eval()
    x = 3 * tiny.uneven(2, 3, 12)
    with torch.no_grad():
        wanted = net(x)
    m = ak.open(net)
    for edit in (ak.apply("1:out", torch.clone), ak.add("1:out", torch.ones(48), scale=0.0)):
        assert torch.equal(m.run(x, edits=[edit]).output, wanted)
    copied = net[2](net[1](net[0](x)).clone())  # the order in memory is what rounds
    assert not torch.equal(copied, wanted)
