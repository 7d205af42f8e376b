"""Run in an environment of other versions: print as JSON how much faster a sweep is than hooks.

Both put what the clean prompt has at one block and token into the run of the corrupt one, for
every block and token, as in patching; of the hooks' runs every ninth is timed.
"""

import json
import platform
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import actkit as ak
from bench._measure import paired

STEP, PAIRS = 9, 3


def main() -> None:
    torch.set_num_threads(2)
    model = ak.open("smollm2")
    trial = ak.trace.tasks.ioi(1, corrupt="swap").on(model)
    clean = model.run(trial.clean, record="resid_post.*")
    blocks = list(model.module.model.layers)
    places = [(b, t) for b in range(len(blocks)) for t in range(trial.length)]
    edits = [[ak.swap(f"resid_post.{b}", clean, where=ak.Where(tokens=t))] for b, t in places]

    def sweep() -> Tensor:
        return model.sweep(trial.corrupt, edits, trial.metric)[:, 0]

    def hooks(step: int = STEP) -> Tensor:
        values = []
        for b, t in places[::step]:
            handle = blocks[b].register_forward_hook(_put(t, clean[f"resid_post.{b}"]))
            with torch.no_grad():
                logits = model.module(**trial.corrupt.kwargs, use_cache=False).logits
            handle.remove()
            values.append(trial.metric(logits[:, -1:]))
        return torch.cat(values)

    gap = float((sweep()[::STEP] - hooks()).abs().max())
    timed = len(places[::STEP]) / len(places)
    answer = {
        "ratios": [1 / (timed * r) for r in paired(sweep, hooks, PAIRS)],
        "runs": len(places),
        "gap": gap,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }
    print(json.dumps(answer))


def _put(token: int, clean_BTD: Tensor) -> Any:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        stream = output[0] if isinstance(output, tuple) else output
        stream = stream.clone()
        stream[:, token] = clean_BTD[:, token]
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    return hook


if __name__ == "__main__":
    main()
