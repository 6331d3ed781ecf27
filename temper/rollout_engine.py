"""The sampling side of temper/rollouts.py, in the `serve` environment: python -m temper.rollout_engine '{"model": …}'.

A line of JSON in, a line of JSON out, until its input ends: {"weights": folder} loads, {"prompts": […], "seeds": […]} samples.
The engine runs in this process, so that its scheduler sees all prompts at once and answers depend on nothing but them.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from temper import stage, vllm


class Sampler:
    """`settings`: model, dtype, length (tokens of prompt and answer), max_tokens, temperature, seed, runtime."""

    def __init__(self, settings: dict[str, Any]) -> None:
        from vllm import LLM

        engine = vllm.engine(settings["dtype"], settings["length"], settings["seed"], settings["runtime"])
        # Log-probabilities of what is sampled from, at its temperature, as the trainer computes them. Answers share their prompt.
        engine |= {"logprobs_mode": "processed_logprobs", "enable_prefix_caching": True}
        self.settings = settings
        self.engine = LLM(model=settings["model"], **engine)

    def load(self, folder: Path) -> dict[str, Any]:
        self.engine.collective_rpc("reload_weights", kwargs={"weights_path": str(folder)})
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
            "completion_ids": [list(answer.token_ids) for answer in answers],
            "logprobs": [
                [place[token].logprob for token, place in zip(answer.token_ids, answer.logprobs, strict=True)]
                for answer in answers
            ],
        }


def main(settings: dict[str, Any]) -> None:
    stage.bind_to_parent()
    replies = os.fdopen(os.dup(1), "w")
    # What vLLM prints is no reply.
    os.dup2(2, 1)
    vllm.prepare(settings["runtime"])
    sampler = Sampler(settings)
    for line in sys.stdin:
        request = json.loads(line)
        answer = sampler.load(Path(request["weights"])) if "weights" in request else sampler.sample(**request)
        replies.write(json.dumps(answer) + "\n")
        replies.flush()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
