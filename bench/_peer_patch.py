"""Run inside a peer's environment: patch every part of an IOI pair, print seconds and values.

Called as `_peer_patch.py PEER FOLDER JOB`, JOB a JSON object: clean and corrupt token ids, the ids
of answer and wrong answer, and what is patched, "resid" or "heads". Each peer patches as its own
documentation does: TransformerLens with `transformer_lens.patching`, nnsight with one trace for
each version ("nnsight") or one trace with 15 invokes ("nnsight-batched").
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

INVOKES = 15


def main(peer: str, folder: str, text: str) -> None:
    torch.set_num_threads(2)
    job = json.loads(text)
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    clean, corrupt = (torch.tensor(job[side]) for side in ("clean", "corrupt"))
    plus, minus = job["ids"]

    def gap(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, plus] - logits[0, -1, minus]

    start = {"tl": transformer_lens, "nnsight": nnsight, "nnsight-batched": batched}[peer]
    patch = start(net, tokenizer, folder, clean, corrupt, gap, job["parts"])
    with torch.no_grad():
        patch(2)  # a warm-up of two layers
        started = time.perf_counter()
        values = patch(net.config.num_hidden_layers)
        seconds = time.perf_counter() - started
    print(json.dumps({"seconds": seconds, "values": values.tolist()}))


Patch = Callable[[int], torch.Tensor]
Gap = Callable[[torch.Tensor], torch.Tensor]


def transformer_lens(
    net: Any, tokenizer: Any, folder: str, clean: Any, corrupt: Any, gap: Gap, parts: str
) -> Patch:
    import pandas as pd
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(
        folder, hf_model=net, tokenizer=tokenizer, device="cpu", dtype=torch.float32
    )
    run = {"resid": patching.get_act_patch_resid_pre,
           "heads": patching.get_act_patch_attn_head_out_all_pos}[parts]  # fmt: skip
    setter = {"resid": patching.layer_pos_patch_setter,
              "heads": patching.layer_head_vector_patch_setter}[parts]  # fmt: skip
    name = {"resid": "resid_pre", "heads": "z"}[parts]
    across = clean.shape[1] if parts == "resid" else net.config.num_attention_heads

    def patch(layers: int) -> torch.Tensor:
        _, cache = bridge.run_with_cache(clean)
        if layers == net.config.num_hidden_layers:
            return torch.as_tensor(run(bridge, corrupt, cache, gap))
        few = pd.DataFrame([[b, i] for b in range(layers) for i in range(across)],
                           columns=["layer", "other"])  # fmt: skip
        return torch.as_tensor(patching.generic_activation_patch(
            bridge, corrupt, cache, gap, setter, name, index_df=few))  # fmt: skip

    return patch


def nnsight(*job: Any) -> Patch:
    return traced(1, *job)


def batched(*job: Any) -> Patch:
    return traced(INVOKES, *job)


def traced(
    invokes: int, net: Any, tokenizer: Any, _: str, clean: Any, corrupt: Any, gap: Gap, parts: str
) -> Patch:
    from nnsight import LanguageModel, save

    lm = LanguageModel(net, tokenizer=tokenizer)
    heads, size = net.config.num_attention_heads, net.config.head_dim
    across = clean.shape[1] if parts == "resid" else heads

    def cells(layers: int) -> list[tuple[int, int]]:
        return [(b, i) for b in range(layers) for i in range(across)]

    def patch(layers: int) -> torch.Tensor:
        with lm.trace(clean):
            kept = save([
                (block.input if parts == "resid" else block.self_attn.o_proj.input).clone()
                for block in lm.model.layers
            ])  # fmt: skip
        found = []
        every = cells(layers)
        for at in range(0, len(every), invokes):
            values = []
            with lm.trace() as tracer:
                out = save([])
                for layer, i in every[at : at + invokes]:
                    with tracer.invoke(corrupt):
                        if parts == "resid":
                            lm.model.layers[layer].input[:, i] = kept[layer][:, i]
                        else:
                            own = slice(i * size, (i + 1) * size)
                            z = lm.model.layers[layer].self_attn.o_proj.input
                            z[..., own] = kept[layer][..., own]
                        out.append(gap(lm.lm_head.output))
            values = list(out)
            found += values
        return torch.stack(found).view(layers, across)

    return patch


if __name__ == "__main__":
    main(*sys.argv[1:])
