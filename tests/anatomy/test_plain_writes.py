"""Parts behind which a norm stands do not write what their last map returns."""

import pytest

from actkit.anatomy.plain_writes import check_plain_writes
from actkit.core.errors import InputError
from actkit.find.neurons.value_vectors import value_vectors
from actkit.model import Model
from tests.core import tiny, tiny_zoo


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2"])
@pytest.mark.parametrize("point", ["attn_out", "mlp_out"])
def test_a_norm_behind_a_part_is_told(name: str, point: str) -> None:
    m = Model(tiny_zoo.network(name), tiny.tokenizer())
    with pytest.raises(InputError, match=r"in layer 1 a norm stands behind it: .*norm.*\("):
        check_plain_writes(m, point, 1)


@pytest.mark.parametrize("name", ["llama", "qwen3", "phi3", "gpt2", "gpt_neox", "opt"])
@pytest.mark.parametrize("point", ["attn_out", "mlp_out"])
def test_parts_that_write_as_they_are(name: str, point: str) -> None:
    check_plain_writes(Model(tiny_zoo.network(name), tiny.tokenizer()), point, 1)


def test_value_vectors_are_no_directions_there() -> None:
    m = Model(tiny_zoo.network("gemma3"), tiny.tokenizer())
    with pytest.raises(InputError, match="in layer 0 a norm stands behind it"):
        value_vectors(m, top_k=2)
