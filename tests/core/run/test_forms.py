"""Inputs as users hold them: columns, arrays, loaders, packed sequences, images, sentences.

Shapes: B batch, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import actkit as ak
from actkit import data
from actkit.core.errors import InputError, SiteError
from actkit.core.sweep.stream import num_batches
from actkit.model import Model
from tests.core import tiny
from tests.core.sweep.test_observe import Kept

TEXTS = ["w1 w2 w3 w4", "w5 w6", "w7"]


@pytest.fixture(scope="module")
def m() -> Model:
    return tiny.model()


@pytest.mark.parametrize(
    "texts",
    [
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS, index=[9, 4, 2]),
    ],
    ids=["tuple", "array", "objects", "series"],
)
def test_columns_of_text(m: Model, texts: Any) -> None:
    want = m.run(TEXTS, record="resid_post.2")
    assert torch.equal(m.run(texts, record="resid_post.2")["resid_post.2"], want["resid_post.2"])
    fed = m.observe(texts, {"resid_post.2": [Kept()]}, batch_size=2)
    assert fed["resid_post.2"][0].result()["sample"].tolist() == [0, 0, 0, 0, 1, 1, 2]


def test_gaps_in_a_column_are_named(m: Model) -> None:
    with pytest.raises(InputError, match="a prompt must be text, got nan at index 1"):
        m.run(pd.Series(["w1", float("nan")], dtype=object), record="embeddings")
    frame = pd.DataFrame({"text": TEXTS, "n": [1, 2, 3]})
    for read in (m.run, lambda d: m.observe(d, {"embeddings": [Kept()]})):
        with pytest.raises(InputError, match=r"one column of a data frame, got all of \['text'"):
            read(frame)


class Images(nn.Module):
    """Takes images, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny.Cnn().eval()

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.net(x)
        return scores


class Scaled(Images):
    """Takes images, and a scale for each if it is given one."""

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        scores: Tensor = self.net(x)
        return scores if scale is None else scores * scale[:, None]


X, Y = tiny.uneven(5, 3, 4, 6), torch.tensor([4, 0, 3, 1, 2])


@pytest.mark.parametrize("kind", ["loader", "dataset"])
def test_labels_of_a_loader_are_left_out(kind: str, tmp_path: Path) -> None:
    m = Model(Images().eval())
    pairs = TensorDataset(X, Y)
    given: Any = DataLoader(pairs, batch_size=2) if kind == "loader" else pairs
    want = m.run(X).output.detach()
    fed = m.observe(given, {"net.head:out": [Kept()]}, batch_size=2)
    assert_close(fed["net.head:out"][0].result()["acts"], want)
    store = m.harvest(given, "net.head:out", tmp_path, dtype="float32", batch_size=2)
    assert_close(store["net.head:out"][:], want)
    assert store["sample"][:].tolist() == [0, 1, 2, 3, 4]
    assert_close(m.run((X, Y)).output, want)


def test_labels_never_become_an_argument() -> None:
    m = Model(Scaled().eval())
    loader = DataLoader(TensorDataset(X, Y), batch_size=2)
    with pytest.raises(InputError, match=r"must fit forward\(x, scale\), got 2 values: say what"):
        m.observe(loader, {"net.head:out": [Kept()]})
    assert_close(m.run((X, Y)).output, Scaled().eval()(X, Y))  # a tuple of the user's is meant
    rows: Any = [{"x": x, "scale": y} for x, y in zip(X, Y, strict=True)]
    scaled: DataLoader[Any] = DataLoader(rows, batch_size=2)
    fed = m.observe(scaled, {":out": [Kept()]})
    assert_close(fed[":out"][0].result()["acts"], Scaled().eval()(X, Y).detach())


def test_a_network_that_requires_two_inputs_gets_two() -> None:
    m = Model(tiny.Named())
    loader = DataLoader(TensorDataset(X.flatten(1), X.flatten(1) * 2, Y), batch_size=3)
    fed = m.observe(loader, {":out.sum": [Kept()]})
    assert_close(fed[":out.sum"][0].result()["acts"], X.flatten(1) * 3)


def test_loaders_of_text_and_of_tokens(m: Model) -> None:
    want = m.observe(TEXTS, {"resid_post.1": [Kept()]}, batch_size=2)["resid_post.1"][0].result()
    loaders: list[Any] = [
        DataLoader(TEXTS, batch_size=2),  # type: ignore[arg-type]
        DataLoader(list(zip(TEXTS, Y, strict=False)), batch_size=2),  # type: ignore[arg-type]
    ]
    for loader in loaders:
        found = m.observe(loader, {"resid_post.1": [Kept()]})["resid_post.1"][0].result()
        assert torch.equal(found["sample"], want["sample"])
        assert_close(found["acts"], want["acts"])
    ids = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]])
    tokens = DataLoader(TensorDataset(ids, Y[:3]), batch_size=2)
    found = m.observe(tokens, {"embeddings": [Kept()]})["embeddings"][0].result()
    assert found["token"].tolist() == list(range(1, 10))
    masked = DataLoader(TensorDataset(ids, torch.ones_like(ids), Y[:3]), batch_size=2)
    with pytest.raises(InputError, match="say what they are with a dict"):
        m.observe(masked, {"embeddings": [Kept()]})


class Stream(IterableDataset[str]):
    def __iter__(self) -> Iterator[str]:
        yield from TEXTS


def test_a_dataset_that_streams(m: Model) -> None:
    fed = m.observe(Stream(), {"embeddings": [Kept()]}, batch_size=2)
    assert fed["embeddings"][0].result()["token"].tolist() == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (TEXTS, 2), (tuple(TEXTS), 2), (iter(TEXTS), 2), (lambda: TEXTS, None), ("w1", 1),
        ((t for t in TEXTS), None), ([{"x": 1}, {"x": 2}, {"x": 3}], 3), (data.load(TEXTS), 2),
        (TensorDataset(X, Y), 3), (DataLoader(TensorDataset(X, Y), batch_size=4), 2),
        (pd.Series(TEXTS), 2),
    ],
)  # fmt: skip
def test_the_number_of_batches_is_told_where_it_is_known(given: Any, number: int | None) -> None:
    assert num_batches(given, 2) == number


# ---- images ------------------------------------------------------------------------------------


def test_lists_of_images_are_stacked() -> None:
    m = Model(Images().eval())
    for images in ([*X], [x.numpy() for x in X]):
        assert_close(m.run(images).output, m.run(X).output)
    with pytest.raises(InputError, match=r"one shape, got \[\(3, 4, 5\), \(3, 4, 6\)\]"):
        m.run([X[0], X[1, :, :, :5]])


def test_photos_of_eight_bits_say_what_to_do(lite0: Model) -> None:
    photos = data.photos(32)
    with pytest.raises(InputError, match=r"got uint8 of shape \(20, 3, 32, 32\): scale them as"):
        lite0.run(photos.images)
    scaled = lite0.run(data.normalise(photos.images)).output
    with torch.no_grad():
        assert_close(scaled, lite0.module((photos.images.float() - 127) / 128))


def test_networks_that_take_eight_bits_are_left_alone() -> None:
    class Own(Images):
        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.net(x.float() / 255)
            return scores

    images = torch.randint(0, 255, (2, 3, 4, 6), dtype=torch.uint8)
    own = Own().eval()
    assert_close(Model(own).run(images).output, own(images))


def test_a_vision_transformer_never_gets_unscaled_photos() -> None:
    import transformers as tf

    config = tf.ViTConfig(
        hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        image_size=16, patch_size=8,
    )  # fmt: skip
    net: Any = tf.ViTModel(config)
    net.eval()
    images = torch.randint(0, 255, (2, 3, 16, 16), dtype=torch.uint8)
    with pytest.raises(InputError, match="images must be floating point, got uint8"):
        Model(net).run(images)
    processor = tf.ViTImageProcessor(size={"height": 16, "width": 16})
    m = Model(net, processor=processor)
    want = net(**processor([*images], return_tensors="pt")).last_hidden_state
    assert_close(m.run(images).output.last_hidden_state, want)


# ---- sentences, packed sequences, frozen outputs -----------------------------------------------


class Reader(nn.Module):
    """The first part of a SentenceTransformer, as that package builds it."""

    def __init__(self, auto_model: nn.Module, tokenizer: Any) -> None:
        super().__init__()
        self.auto_model, self.tokenizer = auto_model, tokenizer

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        own = {k: v for k, v in features.items() if k in ("input_ids", "attention_mask")}
        features["token_embeddings"] = self.auto_model(**own).last_hidden_state
        return features


class Mean(nn.Module):
    """Its second part: the mean over tokens."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"][..., None].float()
        total = (features["token_embeddings"] * mask).sum(1)
        features["sentence_embedding"] = total / mask.sum(1)
        return features


def test_sentence_transformers_take_text(minilm: Model) -> None:
    texts = ["A short one.", "Another sentence, which has a few more words than the first."]
    whole = nn.Sequential(Reader(minilm.module, minilm.tokenizer), Mean()).eval()
    m = ak.open(whole)
    assert m.tokenizer is minilm.tokenizer
    rec = m.run(texts, record="resid_post.2")
    bare = minilm.run(texts, record="resid_post.2")
    assert_close(rec.flat("resid_post.2")[0], bare.flat("resid_post.2")[0], rtol=1e-4, atol=1e-5)
    assert torch.equal(rec.rows.token[rec.rows.valid], bare.rows.token[bare.rows.valid])
    features = dict(minilm.tokenizer(texts, padding=True, return_tensors="pt"))
    with torch.no_grad():
        want = whole(features)["sentence_embedding"]
    assert_close(m.run(texts).output["sentence_embedding"], want)
    batch = m.encode(texts)
    m.run(batch)
    assert set(batch.args[0]) == {"input_ids", "attention_mask"}
    fed = m.observe(texts, {"1:out.sentence_embedding": [Kept()]}, batch_size=1)
    one_by_one = [r.tolist() for r in fed["1:out.sentence_embedding"][0].acts]
    assert_close(torch.tensor(one_by_one)[:, 0], want, rtol=1e-4, atol=1e-5)


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.lstm, self.out = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: Any) -> Tensor:
        _, (h, _) = self.lstm(x)
        scores: Tensor = self.out(h[-1])
        return scores


def test_packed_sequences_run() -> None:
    m, rows = Model(Reads().eval()), [tiny.uneven(4, 3), tiny.uneven(2, 3, seed=1)]
    packed = pack_sequence(rows)
    rec = m.run(packed, record="out:out")
    assert_close(rec["out:out"], torch.cat([m.run(r[None]).output for r in rows]))
    assert rec.rows_of("out:out").sample.flatten().tolist() == [0, 1]
    assert m.encode(packed).num_samples == 2
    with pytest.raises(SiteError, match="PackedSequence, whose rows belong to several samples"):
        m.run(packed, record="lstm:out")


@dataclass(frozen=True)
class Result:
    name: str
    scores: Tensor


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.inner, self.out = Makes(), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.inner(x).scores)
        return scores


class Makes(nn.Module):
    def forward(self, x: Tensor) -> Result:
        return Result("made", x * 2)


def test_frozen_outputs_are_read_and_edited() -> None:
    net, x = Frozen().eval(), tiny.uneven(4, 3)
    m = Model(net)
    for site in ("inner:out", "inner:out.scores"):
        assert torch.equal(m.run(x, record=site)[site], x * 2)
        assert_close(m.run(x, edits=[ak.add(site, torch.ones(3))]).output, net.out(x * 2 + 1))


def test_items_of_outputs_are_counted(m: Model) -> None:
    rows = [[1, 2, 3], [4, 5, 6]]
    net: Any = m.module
    with torch.no_grad():
        want = net(torch.tensor(rows))
        hidden = net.model(torch.tensor(rows))[0]
    assert torch.equal(m.run(rows, record="model:out.0")["model:out.0"], hidden)
    assert torch.equal(m.run(rows, record=":out.0")[":out.0"], want.logits)
    moved = m.run(rows, edits=[ak.scale("model:out.0", 2.0)], logits=True).logits
    assert moved is not None
    assert_close(moved, net.lm_head(hidden * 2))
    with pytest.raises(SiteError, match=r"layers\.0:out has no item 0, it is a tensor: leave \.0"):
        m.run(rows, record="model.layers.0:out.0")


@pytest.mark.parametrize("given", [b"w1 w2", bytearray(b"w1"), memoryview(b"w1")])
def test_bytes_are_no_token_ids(given: Any) -> None:
    """Each is a sequence of whole numbers, which a large vocabulary would take for tokens."""
    with pytest.raises(InputError, match="got bytes: decode them first"):
        tiny.model().run(given)


@pytest.mark.parametrize("given", [torch.ones(1, 3), np.ones((1, 3)), torch.ones(1, 3, 48)])
def test_numbers_with_a_point_are_no_token_ids(given: Any) -> None:
    with pytest.raises(InputError, match=r"must be whole numbers, got torch\.float"):
        tiny.model().run(given)
