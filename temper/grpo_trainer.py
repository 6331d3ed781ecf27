"""TRL's GRPO trainer, with answers that share the computation of their prompt and a sampler whose weights are proven."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import TrainerCallback
from trl import GRPOTrainer
from trl.trainer.utils import entropy_from_logits, selective_log_softmax, split_tensor_dict

from temper import rollouts, shared_prompts


class Trainer(GRPOTrainer):
    """`sampler` is None where TRL samples itself."""

    sampler: rollouts.Rollouts | None = None
    _buffered_inputs: list[Any] | None
    policy_logps: Tensor
    """Of the last forward pass that has gradients, before its update: (rows, tokens)."""

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """TRL's, without the shuffle of rows that would scatter a prompt's answers over micro-batches."""
        if self._step % self.args.steps_per_generation == 0 or self._buffered_inputs is None:
            batch = self._generate_and_score_completions(generation_batch)
            self._buffered_inputs = split_tensor_dict(batch, self.args.steps_per_generation)
        return self._buffered_inputs[self._step % self.args.steps_per_generation]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        """TRL's; what was sampled elsewhere was sampled from a policy that differs by rounding, for which the ratio makes up."""
        batch = super()._generate_and_score_completions(inputs)
        if self.sampler:
            batch["old_per_token_logps"] = batch["sampling_per_token_logps"]
        return batch

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **more: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        if shared_prompts.possible(self):
            logps, entropies = shared(
                model, input_ids, attention_mask.bool(), logits_to_keep, self.temperature, compute_entropy
            )
            found = logps, entropies, None
        else:
            found = super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **more
            )
        if torch.is_grad_enabled():
            self.policy_logps = found[0].detach()
        return found

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        loss: Tensor = super()._compute_loss(model, inputs)
        if self.sampler:
            self.verify(inputs["sampling_per_token_logps"], inputs["completion_mask"].bool())
        return loss

    def verify(self, sampled: Tensor, mask: Tensor) -> None:
        """Hold the sampler's log-probabilities of its tokens against the policy's; exits where it computes with other weights.

        That it was handed the policy's is known by their digest; what vLLM made of them, under names of its own, is not.
        """
        assert self.sampler
        # All answers of a micro-batch may be masked, and every process has to come to the same end.
        difference = (self.policy_logps - sampled).abs().where(mask, 0)
        means = self.accelerator.gather(difference.sum() / mask.sum().clamp(min=1))
        worst, tolerance = means.max().item(), self.sampler.tolerance
        self._metrics["train"]["sync/logp_difference/mean"].append(means.mean().item())
        self._metrics["train"]["sync/logp_difference/max"].append(
            self.accelerator.gather(difference.max()).max().item()
        )
        if not worst <= tolerance:
            raise rollouts.out_of_sync(
                self,
                f"its log-probabilities are {worst:.3g} nats a token from the trainer's (at most {tolerance:g})",
            )


class Close(TrainerCallback):
    """Ends the engine with the training, before its memory is needed for merging."""

    def __init__(self, sampler: rollouts.Rollouts) -> None:
        self.sampler = sampler

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.sampler.engine.close()


def shared(
    model: Any, ids: Tensor, mask: Tensor, answered: int, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities, and entropies in nats, of the last `answered` tokens of each row: (rows, answered), 0 where masked."""
    prompts = [row[kept] for row, kept in zip(ids[:, :-answered], mask[:, :-answered], strict=True)]
    answers = [row[kept] for row, kept in zip(ids[:, -answered:], mask[:, -answered:], strict=True)]
    logits = shared_prompts.logits(model, prompts, answers) / temperature
    lengths = [len(answer) for answer in answers]
    logps = _padded(selective_log_softmax(logits[None], torch.cat(answers)[None])[0].split(lengths), answered)
    if not with_entropy:
        return logps, None
    with torch.no_grad():
        return logps, _padded(entropy_from_logits(logits).split(lengths), answered)


def _padded(rows: Sequence[Tensor], length: int) -> Tensor:
    return torch.stack([pad(row, (0, length - len(row))) for row in rows])
