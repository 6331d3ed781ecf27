"""Greedy answers and likelihoods of one model, by vLLM in this process: each depends on its own prompt alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import progress, vllm

Tokens = list[int]


@dataclass(frozen=True)
class Scored:
    """A text whose likelihood is asked for, after another."""

    context: Tokens
    continuation: Tokens


class Prober:
    """`longest` is the most tokens of a prompt and what follows it; `runtime` as of params.runtime."""

    def __init__(self, model: Path, longest: int, dtype: str, seed: int, runtime: dict[str, Any]) -> None:
        from vllm import LLM

        self._engine = LLM(model=str(model), **vllm.engine(dtype, longest, seed, runtime))

    def answers(self, prompts: Sequence[Tokens], most: Sequence[int]) -> list[vllm.Answer]:
        """The likeliest next token again and again, up to `most` of each prompt."""
        found = self._greedy(prompts, most, with_text=True)
        return [vllm.Answer(answer.text, answer.finish_reason == "length") for answer in found]

    def continuations(self, prompts: Sequence[Tokens], most: Sequence[int]) -> list[Tokens]:
        """As `answers`, as token ids."""
        return [list(answer.token_ids) for answer in self._greedy(prompts, most, with_text=False)]

    def nats(self, scored: Sequence[Scored]) -> list[float]:
        """The log-likelihood of each continuation, in nats."""
        from vllm import SamplingParams, TokensPrompt

        if not scored:
            return []
        inputs = [TokensPrompt(prompt_token_ids=one.context + one.continuation) for one in scored]
        # vLLM gives log-probabilities of a prompt only along with a token.
        options = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._engine.generate(inputs, options, use_tqdm=progress.on_terminal())
        return [_sum(output.prompt_logprobs, one) for output, one in zip(outputs, scored, strict=True)]

    def _greedy(self, prompts: Sequence[Tokens], most: Sequence[int], *, with_text: bool) -> list[Any]:
        from vllm import SamplingParams, TokensPrompt

        if not prompts:
            return []
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in prompts]
        options = [SamplingParams(temperature=0.0, max_tokens=count, detokenize=with_text) for count in most]
        outputs = self._engine.generate(inputs, options, use_tqdm=progress.on_terminal())
        return [output.outputs[0] for output in outputs]


def begins(tokenizer: vllm.Tokenizer) -> str:
    """The token that the tokenizer puts before a text, if it does: engines are told not to, for templates bring their own."""
    ids, first = tokenizer.wrapped("a")["input_ids"], tokenizer.wrapped.bos_token_id
    return str(tokenizer.wrapped.bos_token) if first is not None and ids and ids[0] == first else ""


def _sum(logprobs: Any, scored: Scored) -> float:
    places = logprobs[len(scored.context) :]
    return float(sum(place[token].logprob for place, token in zip(places, scored.continuation, strict=True)))
