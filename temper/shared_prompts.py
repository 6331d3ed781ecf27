"""Answers that share the computation of their prompt: m + G·n tokens in the place of G·(m + n), for G answers of n tokens to m.

The same numbers come out up to the order of sums (prefix sharing: Liu et al. 2025, arXiv:2506.05433).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from temper import documents


def possible(trainer: Any) -> bool:
    """Whether a trainer's model, and how it is spread, allow for a row of our own."""
    spread = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    return documents.fits(trainer.model) and not (spread or trainer.aux_loss_enabled)


def row(prompts: Sequence[Tensor], answers: Sequence[Tensor]) -> dict[str, Tensor]:
    """What a causal language model takes: each distinct prompt once, followed by its answers.

    Its logits are those from which each token of each answer follows, in the order of `answers`: (1, tokens, vocabulary).
    """
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(tuple(prompt.tolist()), []).append(number)
    ids: list[Tensor] = []
    positions: list[Tensor] = []
    sources: dict[int, Tensor] = {}
    at = 0
    for of_prompt in numbers.values():
        prompt = prompts[of_prompt[0]]
        size, device = len(prompt), prompt.device
        ids, positions = [*ids, prompt], [*positions, torch.arange(size, device=device)]
        at += size
        last = at - 1
        for number in of_prompt:
            place = torch.arange(len(answers[number]), device=device)
            ids, positions = [*ids, answers[number]], [*positions, size + place]
            sources[number] = torch.where(place == 0, last, at + place - 1)
            at += len(place)
    together = {"input_ids": torch.cat(ids)[None], "position_ids": torch.cat(positions)[None]}
    return together | {"logits_to_keep": torch.cat([sources[number] for number in range(len(answers))])}


def logits(model: Any, prompts: Sequence[Tensor], answers: Sequence[Tensor]) -> Tensor:
    """Logits from which each token of each answer follows, one answer after the other: (tokens, vocabulary)."""
    # Data parallelism hides the configuration.
    with documents.within(getattr(model, "module", model)):
        found: Tensor = model(**row(prompts, answers), use_cache=False).logits[0]
    return found


@contextmanager
def instead(model: Any, prompts: Sequence[Tensor], answers: Sequence[Tensor]) -> Iterator[None]:
    """Have `model` compute the row of these, whatever it is given.

    It gives logits as if each answer stood in a row of its own, after the last token of its prompt and before padding, whose logits
    mean nothing: (answers, longest + 1, vocabulary).
    """
    arguments = row(prompts, answers) | {"use_cache": False}
    sizes = torch.tensor([len(answer) for answer in answers], device=answers[0].device)
    column = torch.arange(int(sizes.max()) + 1, device=sizes.device)
    place = (sizes.cumsum(0) - sizes)[:, None] + column.minimum(sizes[:, None] - 1)

    def apart(_: Any, __: Any, output: Any) -> Any:
        output.logits = output.logits[0][place]
        return output

    hooks = (
        model.register_forward_pre_hook(lambda *_: ((), arguments), with_kwargs=True),
        model.register_forward_hook(apart),
    )
    try:
        with documents.within(model):
            yield
    finally:
        for hook in hooks:
            hook.remove()
