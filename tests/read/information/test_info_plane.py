from collections.abc import Iterator
from math import log

import pytest
import torch
from torch import nn

from actkit.core.errors import InputError
from actkit.opening.checkpoints import Checkpoints
from actkit.read.information.info_plane import info_plane
from actkit.read.information.mutual_information import mutual_information
from tests import contract
from tests.core import tiny

X_ND = contract.acts(37, 5, dtype=torch.float32)
Y_N = torch.arange(37) % 2


def nets() -> list[nn.Sequential]:
    torch.manual_seed(0)
    made = [nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 2)) for _ in range(3)]
    nn.init.zeros_(made[2].get_parameter("2.weight"))
    return made


@pytest.mark.parametrize("method", ["ebab", "akde"])
def test_every_point_is_the_information_of_its_layer(method: str) -> None:
    checkpoints = Checkpoints(dict(zip((0, 10, 40), nets(), strict=True)))
    plane = info_plane(checkpoints, X_ND, Y_N, ["1:out", "2:out"], method)
    assert plane.steps == (0, 10, 40) and plane.sites == ("1:out", "2:out")
    assert plane.x_CL.shape == plane.y_CL.shape == (3, 2)
    for i, net in enumerate(nets()):
        hidden = net[1](net[0](X_ND)).detach()
        for j, layer in enumerate((hidden, net[2](hidden))):
            found = mutual_information(layer, Y_N, method)
            assert float(plane.x_CL[i, j]) == pytest.approx(found.x)
            assert float(plane.y_CL[i, j]) == pytest.approx(found.y)
    assert plane.summary()["2:out"] == 1, "the last network's output is constant"
    most = plane.x_CL[:, 0].max()
    assert plane.summary()["1:out"] == pytest.approx(float((most - plane.x_CL[2, 0]) / most))


def test_a_running_training_is_read_step_by_step() -> None:
    def train() -> Iterator[tuple[int, nn.Module]]:
        net = nets()[0]
        yield 5, net
        nn.init.zeros_(net.get_parameter("0.weight"))
        yield 7, net

    plane = info_plane(Checkpoints(train), X_ND, Y_N, "0:out")
    assert plane.steps == (5, 7) and plane.x_CL[0, 0] > 1 and plane.x_CL[1, 0] == 0
    assert plane.compression_L.tolist() == [1]


def test_tokens_carry_the_label_of_their_text_and_the_first_is_left_out() -> None:
    model = tiny.model()
    labels_B = torch.arange(len(tiny.PROMPTS)) % 2
    plane = info_plane(Checkpoints([model]), tiny.PROMPTS, labels_B, "resid_post.1")
    acts_ND, rows = model.run(tiny.PROMPTS, record="resid_post.1").flat("resid_post.1")
    later_N = rows.position > 0
    found = mutual_information(acts_ND[later_N], labels_B[rows.sample[later_N]])
    assert 0 < float(plane.y_CL[0, 0]) == pytest.approx(found.y)
    assert float(plane.x_CL[0, 0]) == pytest.approx(log(7 + 3 + 5 - 3))


def test_bad_input_is_refused_with_its_site() -> None:
    net = nets()[0]
    with pytest.raises(InputError, match="got 37 and 36 of y"):
        info_plane(Checkpoints([net]), X_ND, Y_N[:36], "1:out")
    broken_ND = X_ND.clone()
    broken_ND[3] = torch.nan
    with pytest.raises(InputError, match="rows of 2:out must be finite, 1 hold NaN"):
        info_plane(Checkpoints([net]), broken_ND, Y_N, "2:out")
    with pytest.raises(InputError, match="method must be one of"):
        info_plane(Checkpoints([net]), X_ND, Y_N, "1:out", "mine")
