"""What a call of `generate` tells of the prompt, of its rows, and of what will be written.

Shapes: B rows of the prompt, T tokens.
"""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from actkit.core.compat import generation_setting
from actkit.core.errors import EditError, InputError
from actkit.core.run.fed import Told
from actkit.core.run.inputs import Batch

ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
"""Settings under which several tokens are tried at once, and some taken back."""


def told_by_run(batch: Batch) -> Told:
    """Return what is told of one pass over a batch."""
    return Told(batch.tokens, valid=batch.valid, past=batch.past, rows=batch.num_samples)


def told_by_user(batch: Batch) -> Told:
    """Return what a user tells of a loop of their own: its prompt, which is fed first."""
    embeds = batch.kwargs.get("inputs_embeds") if batch.tokens is None else None
    prompt = batch.tokens if embeds is None else embeds
    if prompt is None:
        raise EditError(
            "a prompt that is told must be token ids, text or a batch with input_ids or "
            "inputs_embeds"
        )
    return Told(
        batch.tokens,
        embeds=embeds,
        valid=batch.valid,
        width=prompt.shape[1],
        rows=batch.num_samples,
        pieces=True,
        turns=True,
    )


def told_by_generate(module: nn.Module, args: tuple[Any, ...], given: Mapping[str, Any]) -> Told:
    """Return what a call of transformers' `generate` tells.

    Args:
        module: Whose `generate` is called.
        args: Positional arguments: the prompt, if any.
        given: Keyword arguments.
    """
    names = ("inputs", "input_ids", "inputs_embeds")
    prompts = [v for v in (*args[:1], *(given.get(n) for n in names)) if isinstance(v, Tensor)]
    main = next(iter(prompts), None)
    if main is None:
        main = next((v for v in given.values() if isinstance(v, Tensor)), None)
    if main is None:
        return Told(reason="generate was called without a prompt")
    sequences = (generation_setting(module, given, n) or 1 for n in _SEQUENCES)
    tried = [n for n in ASSISTED if generation_setting(module, given, n)]
    is_ids = main.dim() == 2 and not main.is_floating_point()
    ids = main if is_ids else None
    ids = given["input_ids"] if ids is None and _is_ids(given.get("input_ids")) else ids
    embeds = given.get("inputs_embeds")
    width = next((x.shape[1] for x in (embeds, ids) if isinstance(x, Tensor)), None)
    mask = given.get("attention_mask")
    fits = isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape == (len(main), width)
    return Told(
        tokens=ids if embeds is None else None,
        embeds=embeds,
        valid=mask.bool() if fits and isinstance(mask, Tensor) else None,
        width=width,
        rows=len(main),
        each=max(sequences),
        pieces=generation_setting(module, given, "prefill_chunk_size") is not None,
        writes=True,
        reason=f"with {tried[0]} several tokens are tried at once" if tried else "",
    )


_SEQUENCES = ("num_beams", "num_return_sequences")
NEW_TOKENS = 40
"""How many tokens are written at most where nothing tells."""


def generation_settings(
    module: nn.Module, tokenizer: Any, max_new_tokens: int | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of a call of `generate`: the given ones, completed and never overruled.

    Args:
        module: Whose `generate` is called.
        tokenizer: What its `stop_strings` are looked up with, and which token pads.
        max_new_tokens: How many tokens to write at most; None if nothing was asked for.
        given: What else was asked for.
    """
    settings = dict(given)
    config = settings.get("generation_config")

    def asked(name: str) -> Any:
        return settings.get(name, getattr(config, name, None))

    if max_new_tokens is not None:
        settings["max_new_tokens"] = max_new_tokens
    elif all(asked(name) is None for name in ("max_new_tokens", "max_length", "max_time")):
        settings["max_new_tokens"] = NEW_TOKENS
    if config is None:
        settings.setdefault("do_sample", False)
    if asked("pad_token_id") is None and not _hands_on(module):
        found = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
        settings["pad_token_id"] = next((int(i) for i in found if i is not None), 0)
    if generation_setting(module, settings, "stop_strings") is not None:
        settings.setdefault("tokenizer", tokenizer)
    if config is not None:  # transformers takes a config or single settings, not both
        own = {k: v for k, v in settings.items() if hasattr(config, k)}
        settings = {k: v for k, v in settings.items() if k not in own}
        settings["generation_config"] = copy.deepcopy(config)
        settings["generation_config"].update(**own)
    return settings


def _hands_on(module: Any) -> bool:
    """Say whether a network's `generate` hands settings on to that of a part, beside its own.

    BLIP's says itself what pads, and takes no second word on it.
    """
    taken = inspect.signature(module.generate).parameters
    named = [p for p in taken.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return bool(named) and "generation_config" not in taken


def behind_prompt(written: Tensor, prompt: Tensor | None) -> Tensor:
    """Return what a call of `generate` wrote behind its prompt, (B, T).

    Args:
        written: What it returned.
        prompt: What it begins with, (B, T); None if it returns what is new alone.

    Raises:
        InputError: It begins with something else, so that what is new is not known.
    """
    if prompt is None:
        return written
    each, width = len(written) // len(prompt), prompt.shape[1]
    given = prompt.to(written.device).repeat_interleave(each, 0)
    if not written[:, :width].equal(given):
        raise InputError(
            f"generate needs a network that returns its prompt of {width} tokens and what it wrote "
            "behind it, this one's begins with other tokens: call model.module.generate inside "
            "model.edited(edits)"
        )
    return written[:, width:]


def token_ids(written: Any) -> Tensor:
    """Return what a call of `generate` wrote if it is text, (B, T).

    Raises:
        InputError: It is something else: a network for sound writes waves, or several codes for
            each step.
    """
    if isinstance(written, Tensor) and _is_ids(written):
        return written
    shape = f" {tuple(written.shape)} of {written.dtype}" if isinstance(written, Tensor) else ""
    raise InputError(
        "generate needs a network that writes token ids (B, T), this one wrote "
        f"{type(written).__name__}{shape}: call model.module.generate inside model.edited(edits)"
    )


def keeps_several_beams(module: nn.Module, given: Mapping[str, Any]) -> bool:
    """Say whether a call of `generate` reorders its rows with every token."""
    return (generation_setting(module, given, "num_beams") or 1) > 1


def _is_ids(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 2 and not value.is_floating_point()
