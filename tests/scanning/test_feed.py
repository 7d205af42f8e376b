from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import pytest
import torch
import transformers as tf
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

import actkit as ak
from actkit.core.errors import InputError
from actkit.model import Model
from actkit.scanning.feed import LENGTH, Feed
from tests.core import tiny

IMAGES: dict[str, Any] = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 37,
    "image_size": 20, "patch_size": 5,
}  # fmt: skip


def words(number: int, start: int = 0) -> str:
    return " ".join(f"w{(7 * i + start) % 88 + 1}" for i in range(number))


def ids(number: int, start: int = 0) -> list[int]:
    return [(7 * i + start) % 88 + 1 for i in range(number)]


def joined(blocks: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(blocks))


def encoder() -> Model:
    """Open a tiny BERT whose tokenizer has tokens around a text: 87 and 88."""
    config = tf.BertConfig(
        vocab_size=91, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=37, max_position_embeddings=40,
    )  # fmt: skip
    tokenizer = tiny.tokenizer()
    tokenizer.cls_token, tokenizer.sep_token = "w87", "w88"
    return Model(tf.BertModel(config), tokenizer, name="tiny-bert")


def vit(processor: Any = None) -> Model:
    return Model(tf.ViTModel(tf.ViTConfig(**IMAGES)), None, processor, name="tiny-vit")


# -- text ----------------------------------------------------------------------------------------


def test_texts_are_packed_into_blocks_that_fit_the_network() -> None:
    feed = Feed(tiny.model(), [words(100), words(45, 3)], 1000)
    blocks = list(feed)
    assert [len(b) for b in blocks] == [64, 64, 17], "the tiny network's context has 64 tokens"
    assert joined(blocks) == ids(100) + ids(45, 3)
    assert str(feed) == "all 145 tokens of the given list in 3 samples"
    network = tiny.gpt2()
    network.config.n_positions = 1000
    assert len(next(iter(Feed(Model(network, tiny.tokenizer()), [words(400)])))) == LENGTH == 128


def test_no_more_tokens_than_asked_for_and_it_says_so() -> None:
    feed = Feed(tiny.model(), [words(300)], 150)
    assert joined(feed) == ids(150)
    assert str(feed) == (
        "the first 150 tokens of the given list in 3 samples, the rest was not read"
    )


@pytest.mark.parametrize("limit", [128, 129])
def test_all_is_said_only_if_it_was_all(limit: int) -> None:
    feed = Feed(tiny.model(), [words(129)], limit)
    assert len(joined(feed)) == limit
    assert str(feed).startswith("all 129" if limit == 129 else "the first 128")


def test_a_stream_without_end_is_read_as_far_as_needed() -> None:
    read = 0

    def endless() -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            yield words(10)

    feed = Feed(tiny.model(), endless(), 70)
    assert len(joined(feed)) == 70 and read <= 20
    assert str(feed).startswith("the first 70 tokens of the given generator")


def test_an_encoder_sees_its_special_tokens_which_do_not_count() -> None:
    feed = Feed(encoder(), [words(100)], 90)
    blocks = list(feed)
    assert [len(b) for b in blocks] == [40, 40, 16], "its context has 40 tokens"
    assert all(b[0] == 87 and b[-1] == 88 for b in blocks)
    assert joined(b[1:-1] for b in blocks) == ids(90)
    assert str(feed).startswith("the first 90 tokens")


def test_a_decoders_blocks_begin_as_its_texts_do() -> None:
    """Where the tokenizer puts a token in front; what it puts behind would end the text."""
    m = tiny.model()
    m.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="w87 $A w88", special_tokens=[("w87", 87), ("w88", 88)]
    )
    blocks = list(Feed(m, [words(100)], 90))
    assert [len(b) for b in blocks] == [64, 28], "its context has 64 tokens"
    assert [b[0] for b in blocks] == [87, 87] and joined(b[1:] for b in blocks) == ids(90)


def test_token_lists_are_samples_as_they_are() -> None:
    given = [[5, 6, 7], [8], [9, 10, 11, 12]]
    feed = Feed(encoder(), given, 100)
    assert list(feed) == given and str(feed) == "all 8 tokens of the given list in 3 samples"
    assert list(Feed(encoder(), given, 6)) == [[5, 6, 7], [8], [9, 10]]


def test_one_string_is_one_text() -> None:
    assert list(Feed(tiny.model(), words(3))) == [ids(3)]


def test_a_files_name_is_told(tmp_path: Any) -> None:
    (tmp_path / "notes.txt").write_text(words(9))
    feed = Feed(tiny.model(), ak.data.load(tmp_path / "notes.txt"))
    assert list(feed) == [ids(9)]
    assert str(feed) == f"all 9 tokens of {tmp_path / 'notes.txt'} in 1 sample"


def test_bundled_prose_is_the_default_of_a_network_with_a_tokenizer() -> None:
    feed = Feed(tiny.model(), None, 70)
    assert len(joined(feed)) == 70
    assert str(feed).startswith("the first 70 tokens of the bundled prose in 2 samples")


# -- images and batches --------------------------------------------------------------------------


def photos(number: int, height: int = 20, seed: int = 0) -> Tensor:
    gen = torch.Generator().manual_seed(seed)
    return torch.randint(256, (number, 3, height, 20), dtype=torch.uint8, generator=gen)


def test_images_are_scaled_and_batched_by_their_size() -> None:
    small, large = photos(5), photos(3, 30)
    feed = Feed(vit(), [*small, *large], batch_size=2)
    batches = list(feed)
    assert [tuple(b.shape) for b in batches] == [
        (2, 3, 20, 20), (2, 3, 20, 20), (1, 3, 20, 20), (2, 3, 30, 20), (1, 3, 30, 20),
    ]  # fmt: skip
    assert torch.equal(torch.cat(batches[:3]), (small.float() - 127) / 128)
    assert str(feed) == "all 8 images of the given list, scaled by (x - 127) / 128"
    (whole,) = Feed(vit(), small)
    assert torch.equal(whole, (small.float() - 127) / 128), "a batch of 8-bit images is images"


def test_a_networks_own_processor_scales_its_images() -> None:
    seen: list[int] = []

    def processor(images: list[Tensor], return_tensors: str) -> dict[str, Tensor]:
        seen.append(len(images))
        return {"pixel_values": torch.stack(images) / 255}

    feed = Feed(vit(processor), photos(5), batch_size=4)
    batches = list(feed)
    assert seen == [4, 1]
    assert torch.equal(batches[1].kwargs["pixel_values"][0], photos(5)[4] / 255)
    assert str(feed) == "all 5 images of the given Tensor, scaled by its processor"


def test_the_photos_are_the_default_of_a_network_that_sees() -> None:
    (first, *rest) = Feed(vit(), None)
    assert first.shape == (8, 3, 20, 20), "the network's own size"
    assert sum(map(len, rest)) == 12
    conv = Model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert next(iter(Feed(conv, None))).shape == (8, 3, 224, 224)


@pytest.mark.parametrize(
    "given", [torch.zeros(4, 5), {"input_ids": torch.ones(1, 3).long()}, ak.Call(torch.zeros(2, 3))]
)
def test_one_batch_is_passed_on_as_it_is(given: Any) -> None:
    feed = Feed(tiny.model(), given)
    (found,) = feed
    assert found is given and feed.kind == "batches"
    assert str(feed) == f"the 1 input of the given {type(given).__name__}"


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data", "rule"),
    [
        (tiny.model(), [], "at least one sample, got none in the given list"),
        (tiny.model(), 3, "an iterable of samples, got int"),
        (Model(tiny.gpt2()), None, "GPT2LMHeadModel takes input_ids: pass data"),
        (Model(nn.Linear(3, 2)), None, "Linear takes neither: pass data"),
        (Model(nn.Sequential(nn.Conv2d(4, 2, 1))), None, "Sequential takes neither"),
    ],
)
def test_data_that_cannot_be_fed_are_refused(model: Model, data: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        Feed(model, data)


def test_texts_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(InputError, match="texts need a tokenizer and GPT2LMHeadModel has none"):
        list(Feed(Model(tiny.gpt2()), ["hello"]))


@pytest.mark.parametrize("sizes", [(0, 8), (-1, 8), (10, 0)])
def test_limits_below_one_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=rf"at least 1, got {sizes[0]} and {sizes[1]}"):
        Feed(tiny.model(), ["w1"], *sizes)


# -- which stacks, which data --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stacks", "reached"),
    [([""], [""]), (["encoder", "decoder"], ["encoder"]), (["", "vision"], [""]), (["x"], ["x"])],
)
def test_text_alone_reaches_the_main_stack_or_the_encoder(
    stacks: list[str], reached: list[str]
) -> None:
    assert list(Feed(tiny.model(), ["w1"]).reached(stacks)) == reached
    assert list(Feed(tiny.model(), {"input_ids": 0}).reached(stacks)) == stacks


def test_two_towers_need_batches() -> None:
    with pytest.raises(InputError, match="has the stacks text, vision, and tokens alone do not"):
        Feed(tiny.model(), ["w1"]).reached(["text", "vision"])


def test_the_hash_is_that_of_what_passed() -> None:
    def sha256(data: Any, limit: int = 100) -> str:
        feed = Feed(tiny.model(), data, limit)
        assert feed.sha256 == ""
        list(feed)
        return feed.sha256

    first = sha256([words(90)])
    assert len(first) == 64
    assert first == sha256([ids(64), ids(90)[64:]]), "equal samples, however they were given"
    assert first != sha256([words(90)], 89)
    assert first != sha256([words(90, 1)])
    assert first != sha256([words(45), words(45)])
