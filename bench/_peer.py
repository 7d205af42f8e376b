"""Run inside a peer's environment: print the ratios of its recording to the bare body as JSON."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BATCH, LENGTH, REPEATS = 8, 128, 7


def main(peer: str, folder: str) -> None:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.randint(3, 40000, (BATCH, LENGTH))
    job = {"tl": transformer_lens, "nnsight": nnsight}[peer](net, tokenizer, folder, ids)

    def bare() -> None:
        with torch.no_grad():
            net.model(input_ids=ids, use_cache=False)

    job(), bare()
    ratios = []
    for i in range(REPEATS):
        times = {}
        for name in ("job", "bare") if i % 2 else ("bare", "job"):
            start = time.perf_counter()
            job() if name == "job" else bare()
            times[name] = time.perf_counter() - start
        ratios.append(times["job"] / times["bare"])
    print(json.dumps(ratios))


def transformer_lens(
    net: Any, tokenizer: Any, folder: str, ids: torch.Tensor
) -> Callable[[], None]:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=net, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    layers = net.config.num_hidden_layers
    names = {f"blocks.{i}.hook_out" for i in range(layers)}

    def job() -> None:
        with torch.no_grad():
            _, cache = bridge.run_with_cache(
                ids, names_filter=names.__contains__, stop_at_layer=layers, return_type=None
            )
        if len(cache) < layers:
            raise RuntimeError(f"only {len(cache)} sites were cached")

    return job


def nnsight(net: Any, tokenizer: Any, folder: str, ids: torch.Tensor) -> Callable[[], None]:
    from nnsight import LanguageModel, save

    lm = LanguageModel(net, tokenizer=tokenizer)

    def job() -> None:
        with torch.no_grad(), lm.trace(ids) as tracer:
            saved = save([layer.output for layer in lm.model.layers])
            tracer.stop()
        if len(saved) != net.config.num_hidden_layers:
            raise RuntimeError(f"only {len(saved)} sites were saved")

    return job


if __name__ == "__main__":
    main(*sys.argv[1:])
