"""Load on a server: vLLM's own benchmark client, as a closed or an open loop, and its figures under flat names."""

import asyncio
import contextlib
import io
import os
import random
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from temper import records
from temper.records import Row

Chat = list[dict[str, str]]
PERCENTILES = (50, 90, 99)
TIMED = ("latencies", "ttfts", "output_lens")  # of each request, in vLLM's result
STEADY = ("tokens_per_second", "requests_per_second", "ttft_p50_ms", "e2e_p50_ms")
"""Figures that are also given as the least and the most of the repeats."""
ENDS: dict[str, Any] = {"least": min, "most": max}


def rows(path: Path) -> list[Row]:
    """The rows of a file that a server can be asked; exits when there are none."""
    found = [row for row in records.read(path) if row.get("kind", "call") in ("call", "chat")]
    if not found:
        raise SystemExit(f"{path}: no rows, expected at least one to send: raise split.test or ingest.limit")
    return found


def prompts(rows: list[Row], count: int, seed: int) -> list[Chat]:
    """`count` chats without their answers, drawn from `rows` in a seeded order, again and again where there are fewer."""
    chosen = random.Random(seed)
    drawn: list[Row] = []
    while len(drawn) < count:
        drawn += chosen.sample(rows, len(rows))
    return [row["messages"][:-1] for row in drawn[:count]]


def beginnings(path: Path, count: int, seed: int) -> list[str]:
    """Of `count` of the texts in a file the first half of the words, to go on from; of all where there are fewer.

    As a turn of a chat they would ask a model that was tuned for a task for nothing, and it would say so in a token.
    """
    found = list(records.read(path))
    if not found:
        raise SystemExit(f"{path}: no passages, expected at least one to send: raise general.passages")
    drawn = random.Random(seed).sample(found, min(count, len(found)))
    texts = [row["text"].split(" ") for row in drawn]
    return [" ".join(words[: (len(words) + 1) // 2]) for words in texts]


def run(
    url: str,
    model: str,
    chats: list[Chat],
    *,
    max_tokens: int,
    concurrency: int | None = None,
    rate: float = float("inf"),
    seed: int = 0,
    ends: bool = False,
) -> Row:
    """vLLM's result for `chats`, streamed, each answer exactly `max_tokens` long, or with `ends` at most that long.

    A closed loop has at most `concurrency` of them under way, and sends the next when one has ended. An open loop sends `rate` a
    second, spaced as a Poisson process is, whether the server keeps up or not; arrivals follow from `seed`.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    import numpy
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    # The client honours proxy variables, which the loopback interface must not go through.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    requests = [
        SampleRequest(prompt="", prompt_len=0, expected_output_len=max_tokens, chat_messages=chat) for chat in chats
    ]
    # Its arrivals come from numpy's global state.
    numpy.random.seed(seed)
    work = benchmark(
        task_type=TaskType.GENERATION,
        endpoint_type="openai-chat",
        api_url=f"{url}/v1/chat/completions",
        base_url=url,
        model_id=model,
        model_name=model,
        tokenizer=None,
        input_requests=requests,
        logprobs=None,
        request_rate=rate,
        burstiness=1.0,
        disable_tqdm=True,
        num_warmups=0,
        profile=False,
        selected_percentile_metrics=[],
        selected_percentiles=[],
        ignore_eos=not ends,
        goodput_config_dict={},
        max_concurrency=concurrency,
        lora_modules=None,
        extra_headers=None,
        extra_body={"temperature": 0.0},
        ready_check_timeout_sec=0,
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(asyncio.run(work))


def check(result: Row, place: str, max_tokens: int) -> None:
    """Exit naming `place` when a request failed or an answer came out short: what was measured would be other work."""
    failed = [error for error in result["errors"] if error]
    if failed or result["failed"]:
        last = (failed or ["no message"])[0].strip().splitlines()[-1]
        raise SystemExit(f"{result['failed']} of {len(result['errors'])} requests failed at {place}: {last}")
    if any(length != max_tokens for length in result["output_lens"]):
        found = sorted(set(result["output_lens"]))
        raise SystemExit(
            f"answers of {found} tokens at {place}, expected {max_tokens}: lower load.max_tokens in conf/bench"
        )


def figures(repeats: list[Row], name: str) -> dict[str, float]:
    """A level's figures as `<name>_…`: rates are medians over the repeats, percentiles are of all their requests together.

    Times are milliseconds. ttft is from sending to the first token, e2e to the last. itl lies between two pieces of one answer,
    which hold a token each, or several where a draft was accepted. tpot is the time of a token after the first, on an answer's
    average.
    """
    each = [_figures([one]) for one in repeats]
    found = _figures(repeats)
    for key in ("tokens_per_second", "requests_per_second"):
        found[key] = statistics.median(one[key] for one in each)
    spread = {f"{key}_{end}": pick(one[key] for one in each) for key in STEADY for end, pick in ENDS.items()}
    lengths = gathered(one["input_lens"] for one in repeats)
    about = {"requests": len(lengths), "prompt_tokens": statistics.fmean(lengths)}
    return {f"{name}_{key}": value for key, value in (found | spread | about).items()}


def _figures(results: list[Row]) -> dict[str, float]:
    seconds = sum(one["duration"] for one in results)
    waits = {
        "ttft": gathered(one["ttfts"] for one in results),
        "itl": gathered(gap for one in results for gap in one["itls"]),
        "e2e": gathered(one["latencies"] for one in results),
        "tpot": gathered(map(token_times, results)),
    }
    times = {f"{name}_p{p}_ms": 1000 * percentile(values, p) for name, values in waits.items() for p in PERCENTILES}
    times["tpot_mean_ms"] = 1000 * time_of_a_token(results)
    rates = {
        "tokens_per_second": sum(one["total_output_tokens"] for one in results) / seconds,
        "requests_per_second": sum(one["completed"] for one in results) / seconds,
    }
    return rates | times


def time_of_a_token(results: list[Row]) -> float:
    """Seconds of a token after the first, on the average of all such tokens; 0 where no answer has one."""
    each = [one for result in results for one in zip(*(result[key] for key in TIMED), strict=True)]
    tokens = sum(length - 1 for _, _, length in each)
    return sum(latency - first for latency, first, _ in each) / tokens if tokens else 0.0


def token_times(result: Row) -> list[float]:
    """Seconds of a token after the first, on the average of each answer that has more than one."""
    each = zip(*(result[key] for key in TIMED), strict=True)
    return [(latency - first) / (tokens - 1) for latency, first, tokens in each if tokens > 1]


def gathered(lists: Iterable[list[float]]) -> list[float]:
    return [value for values in lists for value in values]


def percentile(values: list[float], percent: int) -> float:
    """Linear between the two nearest ranks, as numpy's default; 0 for no values."""
    ranked = sorted(values) or [0.0]
    place = (len(ranked) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)
