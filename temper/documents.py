"""Attention within the documents of a row, one after the other: a masked kernel computes what lies between them too.

For documents of n tokens in rows of N that is n / N of the work, and half of it since what follows a token is left out. The same
numbers come out up to the order of sums.

A document begins where positions do not go on by 1. One that begins at a position p > 0 goes on from the first p tokens of the last
one that began at 0, which is how answers share a prompt.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from temper.labelled_logits import IGNORED

NAME = "documents"  # of the attention, among transformers' own


def isolate(model: Any) -> None:
    """Have `model` (a causal language model, or PEFT's around one) take a batch as one row and attend within its documents.

    Padding has to be at either end of what it pads. A model that does not fit is left as it is.
    """
    adapter = getattr(model, "active_peft_config", None)
    if fits(model) and not (adapter and adapter.is_prompt_learning):
        _attend(model.config)
        model.register_forward_pre_hook(_in_one_row, with_kwargs=True)


def fits(model: Any) -> bool:
    """Whether `model` attends to all that came before, as PyTorch has it: no windows, and no positions of images."""
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    return config._attn_implementation == "sdpa" and not windows and not hasattr(config, "text_config")


@contextmanager
def within(model: Any) -> Iterator[None]:
    """`model`, which has to fit, with its attention within documents for a while."""
    before = model.config._attn_implementation
    _attend(model.config)
    try:
        yield
    finally:
        model.config._attn_implementation = before


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    position_ids: Tensor,
    **settings: Any,
) -> tuple[Tensor, None]:
    """As transformers' interface has it: from (1, heads, tokens, size) to (1, tokens, heads, size)."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    found = spans(position_ids[0])
    sizes = [size for size, _ in found]
    # On a CPU the kernel's backward pass in bf16 takes twice the time of that in fp32.
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    parts = (states.to(dtype).split(sizes, dim=2) for states in (query, key, value))
    attended, root = [], (key, value)
    with torch.autocast(query.device.type, enabled=False):
        for (size, position), asking, *own in zip(found, *parts, strict=True):
            root = root if position else (own[0], own[1])
            (keys, values), mask = _seen(root, own, size, position)
            attended.append(sdpa_attention_forward(module, asking, keys, values, mask, **settings)[0])
    return torch.cat(attended, dim=1).to(query.dtype), None


def _seen(
    root: Sequence[Tensor], own: Sequence[Tensor], size: int, position: int
) -> tuple[Sequence[Tensor], Tensor | None]:
    """Keys and values that a document sees, and its mask; none where it sees itself alone, up to each token."""
    if not position:
        return own, None
    together = [torch.cat([before[:, :, :position], after], 2) for before, after in zip(root, own, strict=True)]
    mask = torch.ones(size, position + size, dtype=torch.bool, device=own[0].device).tril(position)
    return together, mask[None, None]


def spans(positions: Tensor) -> list[tuple[int, int]]:
    """Sizes of the documents in a row and where their positions begin; neighbours at 0, as padding is, count as one."""
    before, after = positions[:-1], positions[1:]
    is_zero = (before == 0) & (after == 0)
    begins = (after != before + 1) & ~is_zero
    begins[:-1] |= is_zero[:-1] & (positions[2:] == 1)
    starts = [0, *(begins.nonzero().squeeze(1) + 1).tolist()]
    sizes = [end - start for start, end in pairwise([*starts, len(positions)])]
    # What a row begins with begins there, whatever its position.
    return list(zip(sizes, [0, *positions[starts[1:]].tolist()], strict=True))


def _attend(config: Any) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    config._attn_implementation = NAME  # for which transformers makes no mask


def _in_one_row(
    model: Any, arguments: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Labels of all rows lie side by side then, so that logits are computed for no other token (temper.labelled_logits)."""
    if named.get("position_ids") is None:
        mask = named.get("attention_mask", torch.ones_like(named["input_ids"]))
        named["position_ids"] = (mask.cumsum(1) - 1) * mask
    if named.get("labels") is not None:
        # Else the last token of a row would have to tell the first of the next.
        named["labels"] = named["labels"].index_fill(1, torch.tensor([0], device=named["labels"].device), IGNORED)
    flat = {
        name: named[name].reshape(1, -1)
        for name in ("input_ids", "position_ids", "labels")
        if named.get(name) is not None
    }
    return arguments, named | flat | {"attention_mask": None}
