"""Arithmetic of training and of sampling, in floating-point operations and in seconds.

A forward pass takes two operations a weight that a token is multiplied with, and a backward pass twice that: one product for the
gradient of the input, one for that of the weight (Kaplan et al. 2020, arXiv:2001.08361, section 2.1). Frozen weights have no
gradient of their own, so an adapter's run takes 4N where a full one takes 6N. Attention's scores and sums come on top
(Chowdhery et al. 2022, PaLM, arXiv:2204.02311, appendix B), halved, since a token sees only those before it.
"""

from dataclasses import dataclass

from temper.memory import Job, weights
from temper.model_shape import Shape


@dataclass(frozen=True)
class Rate:
    """Of one device."""

    flops: float
    """Operations a second that it reaches in practice."""
    bandwidth: float
    """Bytes a second that it reads from its memory."""


def forward(shape: Shape, length: int) -> float:
    """Operations a token in a sequence of `length`."""
    return 2.0 * multiplied(shape) + attention(shape, length)


def multiplied(shape: Shape) -> int:
    """Weights that a token is multiplied with: all linear maps and the output head; the embedding is looked up."""
    return shape.linear() + shape.embedding()


def attention(shape: Shape, length: int) -> float:
    return 2.0 * shape.layers * shape.queries * length


def trained(job: Job) -> float:
    """Operations a token of a forward and a backward pass."""
    matrices, scores = 2.0 * multiplied(job.shape), attention(job.shape, job.length)
    again = matrices + scores if job.checkpointing else 0.0
    if job.adapter:
        return 2 * matrices + 3 * scores + 6.0 * job.trainable + again
    return 3 * (matrices + scores) + again


def sampled(job: Job, prompts: int, prompt: float, answers: int, answer: float, batch: int, rate: Rate) -> float:
    """Seconds to read `prompts` of `prompt` tokens and write `answers` of `answer` tokens, `batch` of them at a time.

    Each step of a batch reads all weights and the cache of its sequences once, or multiplies, whichever takes longer.
    """
    length = prompt + answer
    read = prompts * prompt * forward(job.shape, round(prompt)) / rate.flops
    batch = min(batch, answers)
    step = max(
        (weights(job) + batch * length * job.shape.kv_bytes(job.width)) / rate.bandwidth,
        batch * forward(job.shape, round(length)) / rate.flops,
    )
    return read + answers / batch * answer * step
