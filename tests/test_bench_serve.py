"""The arithmetic of `make bench-serve`, what it starts, and once each with the real engines on tiny models."""

import argparse
import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serve, serve_client, serve_start
from benchmarks.serve import Setting
from commands import serve as command
from temper import envs, load, measured, metrics
from temper.records import Row
from tests.test_bench import RAW
from tests.test_serve import llama, vllm

LOOPS = ((8, 8), (32, 32))


def runs(*rates: tuple[float, float]) -> list[dict[str, float]]:
    """Of repeats, at 8 and 32."""
    other = {f"c{level}_{name}": 1.0 for level in (8, 32) for name in ("ttft_p50_ms", "e2e_p50_ms")}
    return [other | {"c8_tokens_per_second": eight, "c32_tokens_per_second": many} for eight, many in rates]


def test_a_ratio_is_of_medians() -> None:
    found = {"ours": runs((90, 180), (99, 300), (100, 190)), "bare": runs((100, 200), (100, 200), (90, 200))}
    assert serve.ratio(found, "ours", "bare", 8) == pytest.approx(0.99)
    assert serve.ratio(found, "ours", "bare", 32) == pytest.approx(0.95)
    assert serve.gain(found, "ours", "bare", LOOPS) == pytest.approx((0.99 * 0.95) ** 0.5)
    values = serve.rates("gateway", found)
    assert values["gateway_ours_c8_tokens_per_second"] == 99
    assert (values["gateway_ours_c8_tokens_per_second_least"], values["gateway_ours_c8_tokens_per_second_most"]) == (
        90,
        100,
    )


def test_settings_that_helped_are_taken_together_the_best_one_last(monkeypatch: pytest.MonkeyPatch) -> None:
    speed = {
        "default": 100,
        "eager": 90,
        "batch_512": 103,
        "threads": 150,
        "batch_8192": 110,
        "ours": 160,
        "together": 180,
    }
    started: list[tuple[str, Setting | None]] = []

    def one_server(_served: Any, _loops: Any, name: str, setting: Setting | None) -> dict[str, dict[str, float]]:
        started.append((name, setting))
        rate = float(speed[name])
        return {name: runs((rate, rate))[0] | {"start_seconds": 30.0}}

    monkeypatch.setattr(serve, "one_server", one_server)
    monkeypatch.setattr(serve_start, "prepared", lambda overrides: nullcontext())
    names = ["eager", "batch_8192", "threads", "batch_512"]
    values = serve.settings(argparse.Namespace(settings=names, repeats=3))
    together = dict(started)["together"]
    assert together is not None
    assert together.arguments == ["--max-num-batched-tokens", "512", "--max-num-batched-tokens", "8192"]
    assert "VLLM_CPU_OMP_THREADS_BIND" in together.environment
    assert values["settings_together"] == "batch_512 batch_8192 threads"
    assert (values["settings_best"], values["settings_times_default"]) == ("together", pytest.approx(1.8))
    assert values["settings_eager_times_default_once"] == pytest.approx(0.9)
    # What did not help once is not measured again.
    assert [name for name, _ in started].count("eager") == 1
    started.clear()
    values = serve.settings(argparse.Namespace(settings=["default"], repeats=2))
    assert sorted(name for name, _ in started) == ["default", "default", "ours", "ours"]
    assert (values["settings_best"], values["settings_times_default"]) == ("ours", pytest.approx(1.6))


def test_quants_are_read_from_their_retention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, kept, withheld in (("gptq", 0.98, ""), ("awq", 0.9, "exact_kept 0.9 < 0.97"), ("gguf", 0.99, "")):
        found = {"exact_kept": kept, "withheld": withheld, "released": not withheld}
        metrics.write(tmp_path / f"reports/retention/{name}.json", found)
    (tmp_path / "params.yaml").write_text(Path("params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    values = serve.quants(argparse.Namespace())
    assert values["quants_exact_kept"] == 0.98
    assert values["quants_awq_withheld"] == "exact_kept 0.9 < 0.97"
    assert "quants_awq_exact_kept" not in values
    metrics.write(
        tmp_path / "reports/retention/gguf.json", {"withheld": "", "released": True, "unjudged": "exact_kept"}
    )
    assert "quants_gguf_exact_kept" not in serve.quants(argparse.Namespace())
    metrics.write(
        tmp_path / "reports/retention/gptq.json", {"withheld": "", "released": True, "unjudged": "exact_kept"}
    )
    with pytest.raises(SystemExit, match="no released quant whose exact answers were judged"):
        serve.quants(argparse.Namespace())


def test_a_part_is_measured_once_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[list[str]] = []

    def start(arguments: Any) -> dict[str, Any]:
        calls.append(arguments.settings)
        return {"start_times_bare": 1.02}

    monkeypatch.setattr(serve, "OUT", tmp_path / "serve.json")
    monkeypatch.setattr(serve, "ROWS", tmp_path / "serve.json")
    monkeypatch.setitem(serve.PARTS, "start", start)
    metrics.write(tmp_path / "serve.json", {"llama_times_own": 0.99, "start_old": 1})
    for repeats in ("3", "3", "5"):
        monkeypatch.setattr(sys, "argv", ["serve", "--parts", "start", "--repeats", repeats, "--settings", "eager"])
        serve.main()
    values = metrics.read(tmp_path / "serve.json")
    assert calls == [["eager"], ["eager"]]
    assert "start: measured already" in capsys.readouterr().out
    assert (values["llama_times_own"], values["start_times_bare"], values["start_times_bare_target"]) == (
        0.99,
        1.02,
        1.1,
    )
    assert "start_old" not in values
    assert values["start_command"] == "python -m benchmarks.serve --parts start --repeats 5 --settings eager"


def test_contenders_take_turns_after_a_round_that_only_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, Any]] = []

    def run(url: str, _model: str, _chats: Any, **how: Any) -> Row:
        order.append((url, how["concurrency"]))
        return RAW | {"output_throughput": 1.0}

    monkeypatch.setattr(load, "run", run)
    monkeypatch.setattr(serve_client.levels, "forget", lambda url: None)
    monkeypatch.setattr(load, "prompts", lambda rows, count, seed: [seed])
    given = {
        "contenders": {name: {"url": name, "model": "m"} for name in "ab"},
        "repeats": 2,
        "loops": [(1, 2), (8, 8)],
    }
    found = serve_client.in_turn(given | {"max_tokens": 3, "ends": False, "seed": 1}, [])
    assert "".join(url for url, concurrency in order if concurrency == 1) == "baabba"
    assert len(found["a"]) == len(found["b"]) == 2
    assert found["a"][0]["c8_tokens_per_second"] == 3.0


def test_the_bare_engine_has_the_flags_of_make_serve_and_no_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(envs, "python", lambda env: Path(f"/{env}/python"))
    monkeypatch.setattr(command.vllm, "require_build", lambda preset: None)
    (tmp_path / "config.json").write_text("{}")
    with serve_start.prepared([f"serve.model={tmp_path}", "serve.limits.concurrent=7"]) as served:
        ours, bare = command.command(served), serve_start.bare(served).command
    without = [part for part in ours if part not in ("--middleware", command.MIDDLEWARE)]
    port = without.index("--port") + 1
    assert without[:port] + without[port + 1 :] == bare[:port] + bare[port + 1 :]
    assert "7" in bare
    (tmp_path / "m.gguf").write_bytes(b"")
    with serve_start.prepared(["serve=llama.cpp", f"serve.model={tmp_path}/m.gguf"]) as served:
        assert serve_start.bare(served).command[-1] == "--bare"


def test_the_readme_has_what_was_measured_of_serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "FOLDER", tmp_path)
    assert measured.table(measured.SERVING) == "Not measured yet."
    values: dict[str, Any] = {"machine": "a machine", "gateway_times_bare": 0.97, "settings_times_default": 1.6}
    values |= {f"gateway_{name}times_bare_{level}": 0.98 for name in ("", "unlogged_") for level in (1, 8, 32)}
    values |= {"settings_times_default_8": 1.6, "settings_times_default_32": 1.7, "settings_best": "ours"}
    values |= {"speculation_times_plain": 1.31, "speculation_best": "ngram", "speculation_lossless": 1}
    values |= {"speculation_ngram_lossless_ties": 2, "speculation_ngram_lossless_tokens": 2048}
    values |= {"quants_exact_kept": 0.98, "quants_gptq_exact_kept": 0.98, "quants_gguf_exact_kept": 1.01}
    metrics.write(tmp_path / "serve.json", values)
    faults = {"machine": "a machine", "load_wrong": 0, "load_answers": 5000, "load_minutes": 10.0, "load_callers": 16}
    faults |= {"load_memory_growth": 0.004, "failed": "", "connections": 1000, "kill_recovery_seconds": 31.4}
    metrics.write(tmp_path / "serve_faults.json", faults | {"kill_taken_for_whole": 0, "kill_streams": 8})
    table = measured.table(measured.SERVING)
    for part in (
        "| 0.98 / 0.98 / 0.98×; without its log 0.98 / 0.98 / 0.98× | 0.97× |",
        "| 1.60 / 1.70× (flags of `make serve`) | 1.5× |",
        "| 1.31× (ngram; lossless, 2 ties in 2,048 tokens) | 1.3×, lossless |",
        "| gguf 1.010, gptq 0.980 | 0.97 |",
        "| 10 minutes of load | 16 callers | 0 wrong of 5,000 answers, memory +0.4% | none, flat |",
        "| back after 31 s, 0 cut answers that looked whole | none |",
    ):
        assert part in table, part
    assert "llama-bench" not in table
    metrics.write(tmp_path / "serve.json", values | {"speculation_lossless": 0})
    assert "NOT lossless" in measured.table(measured.SERVING)


@pytest.mark.engine
def test_both_servers_of_vllm_are_measured_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = tmp_path / "test.jsonl"
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "null"}]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    monkeypatch.setattr(serve, "ROWS", rows)
    overrides = [*vllm(tmp_path), "serve.log.folder=null"]
    with (
        serve_start.prepared(overrides) as served,
        serve_start.ours(overrides) as ours,
        serve_start.bare(served) as bare,
    ):
        urls = {"ours": ours.url, "bare": bare.url}
        found = serve.client(urls, served.cfg.name, [(1, 2), (4, 4)], 2, max_tokens=8)
    for name in urls:
        assert [run["c4_requests"] for run in found[name]] == [4, 4]
        assert all(run["c1_tokens_per_second"] > 0 for run in found[name])


@pytest.mark.engine
def test_llama_cpps_own_loop_counts_its_tokens(tmp_path: Path) -> None:
    llama(tmp_path)
    in_quantize = [sys.executable, "-m", "temper.envs", "run", "quantize", "-m", "benchmarks.llama_bench"]
    numbers = ["2", "64", "16", "32", "3"]
    done = subprocess.run(
        [*in_quantize, f"{tmp_path}/model.gguf", *numbers], check=True, capture_output=True, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert (len(found["pp"]), len(found["tg"])) == (3, 3)
    assert min(found["pp"] + found["tg"]) > 0
