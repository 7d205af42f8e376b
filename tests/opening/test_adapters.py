"""A folder with an adapter of PEFT opens as its base with the adapter, or says what is wrong."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import actkit as ak
from actkit.core.errors import ModelError
from actkit.export.lower import save_peft
from actkit.model import Model
from actkit.opening import adapters, pretrained
from tests.core import tiny

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)
V = tiny.uneven(tiny.WIDTH)
IDS = torch.tensor([[7, 3, 11, 2, 5]])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny.llama().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def made_by_peft(base: Path, folder: Path) -> torch.Tensor:
    """Write an adapter as PEFT does, and return the logits it gives."""
    torch.manual_seed(3)
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(
        r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False, lora_dropout=0.2
    )
    adapted = peft.get_peft_model(network, config).eval()
    adapted.save_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = adapted(IDS).logits
    return logits


def test_an_adapter_of_peft_opens_with_its_base(base: Path, tmp_path: Path) -> None:
    want = made_by_peft(base, tmp_path / "adapter")
    m = ak.open(tmp_path / "adapter")
    assert m.name == "adapter" and not m.module.training
    assert all(not module.training for module in m.module.modules())
    with torch.no_grad():
        assert torch.equal(m.module(IDS).logits, want)
        assert (want - ak.open(base).module(IDS).logits).abs().max() > 0.1
    assert m.tokenizer is not None and m.tokenizer.decode([3]) == "w3"
    assert len(m.sites("resid_post.*")) == tiny.LAYERS
    rec = m.run("w7 w3", record="resid_post.1", edits=[ak.add("resid_post.1", V)])
    assert rec["resid_post.1"].shape == (1, 2, tiny.WIDTH)
    assert m.opener is not None and torch.equal(m.opener().module(IDS).logits, want)


def test_edits_saved_for_peft_open_again(base: Path, tmp_path: Path) -> None:
    m, edits = ak.open(base), [ak.add("resid_post.1", V), ak.project_out("attn_out.0", V)]
    save_peft(tmp_path / "edits", m, edits)
    again = ak.open(tmp_path / "edits")
    for prompt in tiny.PROMPTS:
        one = m.run(prompt, edits=edits, logits=True).logits
        two = again.run(prompt, logits=True).logits
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_a_bundled_network_is_a_base_by_its_name(smollm2: Model, tmp_path: Path) -> None:
    v = tiny.uneven(576)
    save_peft(tmp_path / "edits", smollm2, [ak.add("resid_post.7", v, 0.2)])
    told = json.loads((tmp_path / "edits" / "adapter_config.json").read_text())
    assert told["base_model_name_or_path"] == "smollm2"
    again = ak.open(tmp_path / "edits")
    one, two = (
        model.run("It was the best of times", edits=edits, logits=True).logits
        for model, edits in ((smollm2, [ak.add("resid_post.7", v, 0.2)]), (again, []))
    )
    torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_a_tokenizer_beside_the_adapter_comes_first(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path / "adapter")
    other = tiny.tokenizer()
    other.add_tokens("extra")
    other.save_pretrained(tmp_path / "adapter")
    assert len(ak.open(tmp_path / "adapter").tokenizer) == tiny.WORDS + 1
    assert ak.open(tmp_path / "adapter", tokenizer=other).tokenizer is other


def test_dtype_is_the_bases(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path / "adapter")
    m = ak.open(tmp_path / "adapter", dtype="bfloat16")
    assert m.module.get_submodule("base_model.model.lm_head").weight.dtype == torch.bfloat16


def test_the_hubs_own_cache_holds_adapters_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    repo = tmp_path / "hub" / "models--who--adapter"
    want = made_by_peft(base, repo / "snapshots" / "abc123")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    m = ak.open("who/adapter", cache_dir=str(tmp_path / "hub"))
    assert m.name == "who/adapter"
    with torch.no_grad():
        assert torch.equal(m.module(IDS).logits, want)


def config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "adapter_config.json"
        told = json.loads(path.read_text())
        change(told)
        path.write_text(json.dumps(told))

    return write


def no_json(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def other_names(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({k.replace("q_proj", "o_proj"): v for k, v in load_file(path).items()}, path)


def no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "no base": (
        config(lambda c: c.pop("base_model_name_or_path")),
        r"must name its base network, .*/adapter does not; open both yourself: ak\.open\(peft",
    ),
    "a base that is gone": (
        config(lambda c: c.update(base_model_name_or_path="/no/such/folder")),
        r"is an adapter of '/no/such/folder': no such folder .*; open both yourself",
    ),
    "no JSON": (no_json, r"cannot read .*adapter_config\.json: JSONDecodeError"),
    "another network": (other_names, "weights are those of another network"),
    "no weights": (no_weights, "cannot open the adapter .*/adapter"),
    "an unknown kind": (
        config(lambda c: c.update(peft_type="NOTHING")),
        "cannot open the adapter .*NOTHING",
    ),
    "other modules": (
        config(lambda c: c.update(target_modules=["nothing"])),
        "cannot open the adapter .*nothing",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_one_line(name: str, base: Path, tmp_path: Path) -> None:
    change, rule = WRONG[name]
    made_by_peft(base, tmp_path / "adapter")
    change(tmp_path / "adapter")
    with pytest.raises(ModelError, match=rule) as caught:
        ak.open(tmp_path / "adapter")
    assert "\n" not in str(caught.value)


def test_an_adapter_of_an_adapter_is_refused(base: Path, tmp_path: Path) -> None:
    made_by_peft(base, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    config(lambda c: c.update(base_model_name_or_path=str(tmp_path / "one")))(tmp_path / "two")
    with pytest.raises(ModelError, match=r"base must be a network, .*/one is an adapter"):
        ak.open(tmp_path / "two")


def test_a_turned_bit_in_edits_for_peft_is_refused(base: Path, tmp_path: Path) -> None:
    save_peft(tmp_path / "edits", ak.open(base), [ak.add("resid_post.1", V)])
    path = tmp_path / "edits" / "adapter_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-9] ^= 4
    path.write_bytes(bytes(data))
    with pytest.raises(ModelError, match="must be what was written"):
        ak.open(tmp_path / "edits")


def test_without_peft_it_is_said_how_to_get_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by_peft(base, tmp_path / "adapter")
    monkeypatch.setattr(pretrained, "find_spec", lambda n: None if n == "peft" else find_spec(n))
    with pytest.raises(ModelError, match=r"needs peft; run: pip install 'actkit\[peft\]'"):
        ak.open(tmp_path / "adapter")


def test_a_folder_with_a_network_is_no_adapter(base: Path) -> None:
    (base / "adapter_config.json").write_text("{}")
    assert not adapters.is_adapter(base)
