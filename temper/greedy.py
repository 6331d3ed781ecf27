"""Greedy answers by vLLM with and without speculation, and what its counters say of them, in a process that ends with it.

All prompts of a set are queued at once in an engine of this process, so that answers and counters follow from inputs alone. The
counters are those of the server's /metrics, from the same registry.
"""

from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from temper import params, speculation, stage, vllm
from temper.speculation import Counters, Greedy
from temper.vllm import Chat

LIKELIEST = 8  # tokens at each place of an answer, among which another greedy one must be found


class Answers(NamedTuple):
    greedy: list[Greedy]
    counted: Counters


def answers(
    model: Path, sets: dict[str, list[Chat]], max_tokens: int, dtype: str, seed: int, config: dict[str, Any] | None
) -> dict[str, Answers]:
    """The greedy answers to each set of chats, by its name; speculating as `config` says, which leaves out their likelihoods."""
    with ProcessPoolExecutor(1, get_context("spawn"), stage.bind_to_parent) as apart:
        try:
            return apart.submit(_answers, model, sets, max_tokens, dtype, seed, config).result()
        except BrokenProcessPool:
            raise SystemExit(
                f"{model}: vLLM was killed while it answered, mostly for want of memory: "
                "lower hardware.runtime.serve_memory_gb in conf/hardware"
            ) from None


def _answers(
    model: Path, sets: dict[str, list[Chat]], max_tokens: int, dtype: str, seed: int, config: dict[str, Any] | None
) -> dict[str, Answers]:
    runtime = params.runtime()
    vllm.prepare(runtime)
    tokenizer = vllm.Tokenizer(model)
    prompts = {name: [tokenizer.encode(tokenizer.render(chat)) for chat in chats] for name, chats in sets.items()}
    longest = max(len(ids) for of_set in prompts.values() for ids in of_set)
    settings = vllm.engine(dtype, longest + max_tokens, seed, runtime)

    from prometheus_client import generate_latest
    from vllm import LLM, SamplingParams, TokensPrompt

    sampling = SamplingParams(temperature=0.0, max_tokens=max_tokens, logprobs=None if config else LIKELIEST)
    engine = LLM(model=str(model), speculative_config=config, disable_log_stats=False, **settings)
    found, before = {}, Counters()
    for name, of_set in prompts.items():
        inputs = [TokensPrompt(prompt_token_ids=ids) for ids in of_set]
        outputs = engine.generate(inputs, sampling, use_tqdm=False)
        after = speculation.counters(generate_latest().decode())
        found[name] = Answers([_greedy(output.outputs[0]) for output in outputs], after - before)
        before = after
    return found


def _greedy(answer: Any) -> Greedy:
    places = answer.logprobs or []
    return Greedy(list(answer.token_ids), [{token: one.logprob for token, one in place.items()} for place in places])
