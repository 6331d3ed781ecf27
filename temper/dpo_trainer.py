"""TRL's DPO trainer, with both answers of a pair after one computation of their prompt, and logits of answers alone."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer

from temper import shared_prompts


class Trainer(DPOTrainer):
    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """TRL's, over columns that hold answers: all that it reads of the others is the number of tokens, by `attention_mask`."""
        if not shared_prompts.possible(self):
            return super()._compute_loss(model, inputs, return_outputs)
        prompts, answers = parted(inputs)
        with shared_prompts.instead(self.accelerator.unwrap_model(model), prompts, answers):
            return super()._compute_loss(model, inputs | columns(prompts, answers), return_outputs)


def parted(inputs: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """Prompt and answer of each row of a batch (rows, tokens), without padding."""
    names = ("input_ids", "attention_mask", "completion_mask")
    rows = list(zip(*(inputs[name] for name in names), strict=True))
    return [ids[(seen == 1) & (answer == 0)] for ids, seen, answer in rows], [
        ids[answer == 1] for ids, _, answer in rows
    ]


def columns(prompts: list[Tensor], answers: list[Tensor]) -> dict[str, Tensor]:
    """A batch of the last token of each prompt and its answer: (rows, longest answer + 1)."""
    ids = [torch.cat([prompt[-1:], answer]) for prompt, answer in zip(prompts, answers, strict=True)]
    marks = [torch.ones_like(row).index_fill(0, row.new_tensor([0]), 0) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "completion_mask": pad_sequence(marks, batch_first=True),
    }
