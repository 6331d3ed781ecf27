"""The load test's requests, figures and errors."""

import sys
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from scripts import bench
from temper import load, vllm

ROWS = [{"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "null"}]} for name in "abc"]
RAW: dict[str, Any] = {
    "failed": 0,
    "completed": 2,
    "errors": ["", ""],
    "output_lens": [3, 3],
    "output_throughput": 300.0,
    "request_throughput": 4.7,
    "ttfts": [0.040, 0.060],
    "itls": [[0.010, 0.020], [0.030, 0.040]],
}


def settings(concurrency: list[int], requests: list[int]) -> bench.Bench:
    return bench.Bench("bfloat16", concurrency, requests, max_tokens=8, warmup=1, seed=17)


def test_figures_are_milliseconds_under_their_concurrency() -> None:
    values = load.figures(RAW, 8, max_tokens=3)
    assert values["c8_tokens_per_second"] == 300.0
    assert values["c8_requests"] == 2
    assert values["c8_ttft_p50_ms"] == pytest.approx(50)
    assert values["c8_itl_p50_ms"] == pytest.approx(25)
    assert values["c8_itl_p99_ms"] == pytest.approx(39.7)


def test_a_failed_request_fails_the_stage_with_its_error() -> None:
    raw = RAW | {"failed": 1, "completed": 1, "errors": ["", "Traceback\n  …\nConnectionResetError: gone"]}
    with pytest.raises(SystemExit) as error:
        load.figures(raw, 32, max_tokens=3)
    message = str(error.value)
    assert "\n" not in message
    for word in ("1 of 2", "concurrency 32", "ConnectionResetError: gone"):
        assert word in message


def test_answers_of_another_length_are_no_measurement() -> None:
    with pytest.raises(SystemExit, match=r"answers of \[2, 3\] tokens at concurrency 8, expected 3"):
        load.figures(RAW | {"output_lens": [3, 2]}, 8, max_tokens=3)


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (50, 2.5), (99, 3.97), (100, 4.0)])
def test_percentiles_are_linear_between_ranks(percent: int, expected: float) -> None:
    assert load.percentile([4.0, 1.0, 3.0, 2.0], percent) == pytest.approx(expected)


def test_requests_hold_no_answer_and_repeat_only_when_all_were_used() -> None:
    chats = load.prompts(ROWS, 7, seed=1)
    assert all([turn["role"] for turn in chat] == ["user"] for chat in chats)
    asked = [chat[0]["content"] for chat in chats]
    assert len(asked) == 7
    assert set(asked[:3]) == set(asked[3:6]) == set("abc")
    assert chats == load.prompts(ROWS, 7, seed=1)


def test_each_level_has_its_number_of_requests() -> None:
    assert bench.paired(settings([1, 8], [16, 64]), "bf16") == [(1, 16), (8, 64)]


@pytest.mark.parametrize(("concurrency", "requests"), [([1, 8], [16]), ([0], [4]), ([8], [4]), ([], [])])
def test_levels_that_cannot_be_measured_are_refused(concurrency: list[int], requests: list[int]) -> None:
    with pytest.raises(SystemExit, match=r"^bench\.bf16: .*conf/bench$"):
        bench.paired(settings(concurrency, requests), "bf16")


def test_a_gpu_wants_vllm_for_gpus_before_a_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SystemExit("asked")

    (tmp_path / "params.yaml").write_text(composed([]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "bf16", "dpo"])
    monkeypatch.setattr(vllm, "require_build", refuse)
    with pytest.raises(SystemExit, match=r"^asked$"):
        bench.main()
