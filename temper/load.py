"""Load on a server: vLLM's own benchmark client as a closed loop, and its figures under flat names."""

import asyncio
import contextlib
import io
import os
import random

from temper.records import Row

PERCENTILES = (50, 99)


def prompts(rows: list[Row], count: int, seed: int) -> list[list[dict[str, str]]]:
    """`count` chats without their answers, drawn from `rows` in a seeded order, again and again where there are fewer."""
    chosen = random.Random(seed)
    drawn: list[Row] = []
    while len(drawn) < count:
        drawn += chosen.sample(rows, len(rows))
    return [row["messages"][:-1] for row in drawn[:count]]


def run(
    url: str, model: str, chats: list[list[dict[str, str]]], *, concurrency: int, max_tokens: int, warmup: int
) -> Row:
    """vLLM's result for `chats` streamed with at most `concurrency` at once, each answer exactly `max_tokens` long."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm.benchmarks.datasets import SampleRequest
    from vllm.benchmarks.serve import TaskType, benchmark

    # The client honours proxy variables, which the loopback interface must not go through.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    requests = [
        SampleRequest(prompt="", prompt_len=0, expected_output_len=max_tokens, chat_messages=chat) for chat in chats
    ]
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
        request_rate=float("inf"),
        burstiness=1.0,
        disable_tqdm=True,
        num_warmups=warmup,
        profile=False,
        selected_percentile_metrics=[],
        selected_percentiles=[],
        ignore_eos=True,
        goodput_config_dict={},
        max_concurrency=concurrency,
        lora_modules=None,
        extra_headers=None,
        extra_body={"temperature": 0.0},
    )
    with contextlib.redirect_stdout(io.StringIO()):
        return dict(asyncio.run(work))


def figures(result: Row, concurrency: int, max_tokens: int) -> dict[str, float]:
    """A level's figures as `c<concurrency>_…`; exits when a request failed or an answer came out short.

    Times are milliseconds: ttft from sending to the first token, itl between two tokens of one answer.
    """
    failed = [error for error in result["errors"] if error]
    if failed or result["failed"]:
        last = (failed or ["no message"])[0].strip().splitlines()[-1]
        raise SystemExit(
            f"{result['failed']} of {len(result['errors'])} requests failed at concurrency {concurrency}: {last}"
        )
    if set(result["output_lens"]) != {max_tokens}:
        found = sorted(set(result["output_lens"]))
        raise SystemExit(
            f"answers of {found} tokens at concurrency {concurrency}, expected {max_tokens}: lower bench max_tokens"
        )
    waits = {"ttft": result["ttfts"], "itl": [gap for gaps in result["itls"] for gap in gaps]}
    times = {f"{name}_p{p}_ms": 1000 * percentile(values, p) for name, values in waits.items() for p in PERCENTILES}
    rates = {
        "tokens_per_second": result["output_throughput"],
        "requests_per_second": result["request_throughput"],
        "requests": result["completed"],
    }
    return {f"c{concurrency}_{name}": value for name, value in (rates | times).items()}


def percentile(values: list[float], percent: int) -> float:
    """Linear between the two nearest ranks, as numpy's default; 0 for no values."""
    ranked = sorted(values) or [0.0]
    place = (len(ranked) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (ranked[above] - ranked[below]) * (place - below)
