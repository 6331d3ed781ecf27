"""The sampling side of temper/rollouts.py, in the `serve` environment: python -m temper.rollout_engine '{"model": …}'.

A line of JSON in, a line of JSON out, until its input ends: {"weights": file} loads, {"prompts": […], "seeds": […]} samples.
The engine runs in this process, so that its scheduler sees all prompts at once and answers depend on nothing but them.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from temper import stage, vllm

if TYPE_CHECKING:
    from torch import Tensor


class Sampler:
    """`settings`: model, dtype, length (tokens of prompt and answer), max_tokens, temperature, seed, runtime."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import LLM

        engine = vllm.engine(settings["dtype"], settings["length"], settings["seed"], settings["runtime"])
        # Log-probabilities of what is sampled from, at its temperature, as the trainer computes them. Answers share their prompt.
        engine |= {"logprobs_mode": "processed_logprobs", "enable_prefix_caching": True}
        # A share of the device that vLLM wants free at the start, when the trainer may be there; what it takes is serve_memory_gb.
        engine |= {"gpu_memory_utilization": 0.01}
        self.settings, self.digest = settings, ""
        self.engine = LLM(model=settings["model"], **engine)

    def load(self, weights: str) -> dict[str, Any]:
        (self.digest,) = self.engine.collective_rpc(take, args=(weights,))
        # Its keys and values are of the weights before.
        self.engine.reset_prefix_cache()
        return {}

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> dict[str, Any]:
        from vllm import SamplingParams, TokensPrompt

        shape = {"temperature": self.settings["temperature"], "max_tokens": self.settings["max_tokens"], "logprobs": 0}
        options = [SamplingParams(seed=seed, detokenize=False, **shape) for seed in seeds]
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        answers = [output.outputs[0] for output in self.engine.generate(inputs, options, use_tqdm=False)]
        return {
            "digest": self.digest,
            "completion_ids": [list(answer.token_ids) for answer in answers],
            "logprobs": [
                [place[token].logprob for token, place in zip(answer.token_ids, answer.logprobs, strict=True)]
                for answer in answers
            ],
        }


def take(worker: Any, weights: str) -> str:
    """Have a worker of vLLM load the weights in this file; returns the digest of what it asked for.

    A function with a path, as what vLLM could send to a worker in another process: an iterator it could not.
    """
    import torch

    taken: dict[str, Tensor] = {}

    def handed() -> "Iterator[tuple[str, Tensor]]":
        for name, tensor in torch.load(weights, mmap=True).items():
            taken[name] = tensor
            yield name, tensor

    worker.reload_weights(weights_iterator=handed())
    return digest(taken)


def digest(weights: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, types, shapes and bytes of tensors on the CPU; those of different tensors are hashed side by side."""
    import torch

    def line(name: str) -> str:
        tensor = weights[name]
        content = hashlib.sha256(tensor.reshape(-1).view(torch.uint8).numpy()).hexdigest()
        return f"{name} {tensor.dtype} {list(tensor.shape)} {content}\n"

    with ThreadPoolExecutor() as pool:
        return hashlib.sha256("".join(pool.map(line, sorted(weights))).encode()).hexdigest()


def main(settings: dict[str, Any]) -> None:
    stage.bind_to_parent()
    replies = os.fdopen(os.dup(1), "w")
    # What vLLM prints is no reply.
    os.dup2(2, 1)
    vllm.prepare(settings["runtime"])
    sampler = Sampler(settings)
    for line in sys.stdin:
        request = json.loads(line)
        answer = sampler.load(**request) if "weights" in request else sampler.sample(**request)
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
