"""Attention within the documents of packed sequences, one after the other: a masked kernel computes what lies between them too.

For documents of n tokens in sequences of N that is n / N of the work, and half of it since what follows a token is left out. The
same numbers come out up to the order of sums.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from temper.labelled_logits import IGNORED

NAME = "documents"  # of the attention, among transformers' own


def isolate(model: Any) -> None:
    """Have `model` (a causal language model, or PEFT's around one) take a batch as one row and attend within its documents.

    Documents are told apart by positions that begin anew. Padding has to follow what it pads, as it does in training. Models
    that attend otherwise than to all that came before are left as they are: those with windows, and with virtual tokens.
    """
    from transformers import AttentionInterface

    # A model of text and images has positions of its own kind.
    config = model.config
    windows = set(getattr(config, "layer_types", None) or ["full_attention"]) != {"full_attention"}
    adapter = getattr(model, "active_peft_config", None)
    if windows or hasattr(config, "text_config") or (adapter and adapter.is_prompt_learning):
        return
    AttentionInterface.register(NAME, attention)
    config._attn_implementation = NAME  # for which transformers makes no mask
    model.register_forward_pre_hook(_in_one_row, with_kwargs=True)


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

    sizes = lengths(position_ids[0])
    parts = (states.float().split(sizes, dim=2) for states in (query, key, value))
    # The kernel's backward pass in bf16 takes twice the time of that in fp32.
    with torch.autocast(query.device.type, enabled=False):
        attended = [
            sdpa_attention_forward(module, q, k, v, None, **settings)[0] for q, k, v in zip(*parts, strict=True)
        ]
    return torch.cat(attended, dim=1).to(query.dtype), None


def lengths(positions: Tensor) -> list[int]:
    """Of the documents in a row, by the positions of its tokens; neighbours at position 0, as padding is, count as one."""
    before, after = positions[:-1], positions[1:]
    is_zero = (before == 0) & (after == 0)
    begins = (after != before + 1) & ~is_zero
    begins[:-1] |= is_zero[:-1] & (positions[2:] == 1)
    bounds = [0, *(begins.nonzero().squeeze(1) + 1).tolist(), len(positions)]
    return [end - start for start, end in pairwise(bounds)]


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
