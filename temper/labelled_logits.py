"""Logits where a label is: over a vocabulary of tens of thousands, those of prompts and padding take more time than a layer.

transformers' own arguments do it: `logits_to_keep`, positions along the sequence, and `shift_labels`, labels that are shifted
already. The loss is the same, since positions without a label add nothing to it.
"""

from typing import Any

IGNORED = -100  # transformers' label of what is not trained on


def narrow(model: Any) -> None:
    """Have `model` (a causal language model, or PEFT's around one) compute logits where some row of a batch has a label."""
    # A model of text and images shifts its labels itself; virtual tokens shift where a label is.
    adapter = getattr(model, "active_peft_config", None)
    if not hasattr(model.config, "text_config") and not (adapter and adapter.is_prompt_learning):
        # On the outermost model, since PEFT calls the forward function of the one inside, past its hooks.
        model.register_forward_pre_hook(_narrowed, with_kwargs=True)


def _narrowed(model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    from torch.nn.functional import pad

    if named.get("labels") is None:
        return arguments, named
    shifted = pad(named["labels"], (0, 1), value=IGNORED)[:, 1:]
    kept = (shifted != IGNORED).any(dim=0).nonzero().squeeze(1)
    if not len(kept):
        return arguments, named
    return arguments, named | {"logits_to_keep": kept, "shift_labels": shifted[:, kept]}
