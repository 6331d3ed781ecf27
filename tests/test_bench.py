"""What a load test asks, its figures and errors, and the stage that runs it."""

import sys
from pathlib import Path
from typing import Any

import pytest

from commands.compose import composed
from scripts import bench
from temper import load, records, vllm

ROWS = [{"messages": [{"role": "user", "content": name}, {"role": "assistant", "content": "null"}]} for name in "abc"]
RAW: dict[str, Any] = {
    "failed": 0,
    "completed": 2,
    "duration": 2.0,
    "errors": ["", ""],
    "input_lens": [10, 30],
    "output_lens": [3, 3],
    "total_output_tokens": 6,
    "ttfts": [0.040, 0.060],
    "itls": [[0.010, 0.020], [0.030, 0.040]],
    "latencies": [0.070, 0.130],
}


def test_figures_are_milliseconds_under_their_level() -> None:
    values = load.figures([RAW], "c8")
    assert values["c8_tokens_per_second"] == 3.0
    assert values["c8_requests_per_second"] == 1.0
    assert (values["c8_requests"], values["c8_prompt_tokens"]) == (2, 20)
    assert values["c8_ttft_p50_ms"] == pytest.approx(50)
    assert values["c8_itl_p50_ms"] == pytest.approx(25)
    assert values["c8_itl_p99_ms"] == pytest.approx(39.7)
    assert values["c8_e2e_p90_ms"] == pytest.approx(124)
    # Of a token after the first: (70 − 40) / 2 and (130 − 60) / 2.
    assert values["c8_tpot_p50_ms"] == pytest.approx(25)
    unlike = RAW | {"output_lens": [3, 8], "total_output_tokens": 11}
    assert load.figures([unlike], "c8")["c8_tpot_mean_ms"] == pytest.approx((30 + 70) / (2 + 7))


def test_rates_are_medians_of_repeats_with_their_spread_and_percentiles_of_all_requests() -> None:
    slow = RAW | {"duration": 6.0, "ttfts": [0.100, 0.100]}
    fast = RAW | {"duration": 1.0}
    values = load.figures([RAW, slow, fast], "c8")
    assert values["c8_tokens_per_second"] == 3.0
    assert (values["c8_tokens_per_second_least"], values["c8_tokens_per_second_most"]) == (1.0, 6.0)
    assert (values["c8_ttft_p50_ms_least"], values["c8_ttft_p50_ms_most"]) == (pytest.approx(50), pytest.approx(100))
    assert values["c8_requests"] == 6
    assert values["c8_ttft_p99_ms"] == pytest.approx(100)


def test_a_failed_request_fails_the_stage_with_its_error() -> None:
    raw = RAW | {"failed": 1, "completed": 1, "errors": ["", "Traceback\n  …\nConnectionResetError: gone"]}
    with pytest.raises(SystemExit) as error:
        load.check(raw, "bench.bf16, c32", max_tokens=3)
    message = str(error.value)
    assert "\n" not in message
    for word in ("1 of 2", "bench.bf16, c32", "ConnectionResetError: gone"):
        assert word in message


def test_answers_of_another_length_are_no_measurement() -> None:
    with pytest.raises(SystemExit, match=r"answers of \[2, 3\] tokens at bench.bf16, c8, expected 3"):
        load.check(RAW | {"output_lens": [3, 2]}, "bench.bf16, c8", max_tokens=3)


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


def test_general_text_is_gone_on_with_from_its_half(tmp_path: Path) -> None:
    records.write(tmp_path / "general.jsonl", [{"id": name, "text": f"Passage {name} goes on."} for name in "abc"])
    found = load.beginnings(tmp_path / "general.jsonl", 2, seed=1)
    assert len(found) == 2 and found == load.beginnings(tmp_path / "general.jsonl", 2, seed=1)
    every = load.beginnings(tmp_path / "general.jsonl", 9, seed=1)
    assert sorted(every) == ["Passage a", "Passage b", "Passage c"]
    records.write(tmp_path / "general.jsonl", [])
    with pytest.raises(SystemExit, match=r"general\.jsonl: no passages, .*general\.passages$"):
        load.beginnings(tmp_path / "general.jsonl", 2, seed=1)


def test_a_gpu_wants_vllm_for_gpus_before_a_row_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise SystemExit("asked")

    (tmp_path / "params.yaml").write_text(composed([]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["bench", "bf16", "dpo", "dpo"])
    monkeypatch.setattr(vllm, "require_build", refuse)
    with pytest.raises(SystemExit, match=r"^asked$"):
        bench.main()
