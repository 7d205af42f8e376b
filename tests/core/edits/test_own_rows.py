"""What an operation is for one row that runs by itself is what it is for that row in a batch."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import pytest
import torch
import transformers as tf
from torch import Tensor

import actkit as ak
from actkit.core.edits.edit import Edit
from actkit.core.edits.operation import Operation, value_of_row
from actkit.core.edits.operations import Add, Scale, Set, Swap
from actkit.core.errors import EditError
from actkit.model import Model
from actkit.steer.vectors.persona import Remove
from tests.core import tiny

B, T, D = 3, 5, 7
VALID = torch.arange(T) >= torch.tensor([[0], [2], [1]])
ONE, ROWS, ALL = tiny.uneven(D), tiny.uneven(B, D), tiny.uneven(B, T, D)
STRENGTHS = torch.tensor([0.5, -1.0, 2.0])
OPERATIONS: dict[str, Operation] = {
    "a vector": Add(ONE, 0.5),
    "a vector, strengths": Add(ONE, STRENGTHS),
    "vectors": Add(ROWS, STRENGTHS),
    "vectors of tokens": Add(ALL),
    "a value": Set(ONE),
    "values": Set(ROWS),
    "values of tokens": Set(ALL),
    "a factor": Scale(0.5),
    "factors of units": Scale(ONE),
    "factors of rows": Scale(STRENGTHS[:, None]),
    "factors of both": Scale(ROWS),
    "another run": Swap(ALL),
    "another run's row": Swap(ALL[:1]),
    "a strength": Remove(torch.eye(D)[:2], strength=0.5),
    "strengths": Remove(torch.eye(D)[:2], strength=STRENGTHS),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_row_by_itself_is_that_row_of_the_batch(name: str) -> None:
    operation, x = OPERATIONS[name], tiny.uneven(B, T, D, seed=3)
    whole = operation.like(x, "BTD")(x)
    for row, valid_T in enumerate(VALID):
        own = operation.of_row(row, valid_T, "BTD")
        part = x[row : row + 1, valid_T]
        assert own.extent(3)[0] == 1
        assert torch.equal(own.like(part, "BTD")(part)[0], whole[row, valid_T])


@dataclass(frozen=True, eq=False)
class Toward(Operation):
    """Put in one vector for each row, and do not say which is whose."""

    identifier: ClassVar[str] = "test_own_rows.toward"
    rows_BD: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the rows' vectors."""
        return self.rows_BD[:, None].expand_as(x).clone()

    def extent(self, num_axes: int) -> tuple[int, ...]:
        """Return how many rows there are."""
        return (len(self.rows_BD), 1, self.rows_BD.shape[-1])


@dataclass(frozen=True, eq=False)
class ToldToward(Toward):
    """The same, and says it."""

    identifier: ClassVar[str] = "test_own_rows.told_toward"

    def of_row(self, row: int, valid_T: Tensor, axes: str) -> Self:
        """Return the operation with one vector."""
        return replace(self, rows_BD=value_of_row(self.rows_BD, row, valid_T, axes))


def test_rows_that_run_one_by_one_need_to_know_what_is_theirs() -> None:
    config: Any = tf.FNetConfig(
        vocab_size=70, hidden_size=24, num_hidden_layers=2, intermediate_size=37
    )
    torch.manual_seed(0)
    net: Any = tf.FNetModel(config)
    m, site = Model(net.eval()), "encoder.layer.0.output.LayerNorm:out"
    vectors, inputs = tiny.uneven(2, 24), [[7, 3, 11, 2, 5], [60, 4]]
    rec = m.run(inputs, record=site, edits=[Edit(site, ToldToward(vectors))])
    for row in range(2):
        own = rec[site][row][rec.rows.valid[row]]
        assert torch.equal(own, vectors[row].expand_as(own))
    assert torch.equal(rec[site], m.run(inputs, site, [ak.set(site, vectors)])[site])
    with pytest.raises(EditError, match="has values for 2 rows of which it does not say which"):
        m.run(inputs, edits=[Edit(site, Toward(vectors))])
