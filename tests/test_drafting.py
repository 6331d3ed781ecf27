"""A draft is served as `bench` measured it, where it pays, and nowhere else; what stands in the way is one line."""

import hashlib
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from commands.compose import composed
from temper import drafting, metrics, serving, speculation

ROOT = Path(__file__).resolve().parent.parent
HEAD = Path("models/draft")
REPORTS: dict[str, dict[str, float]] = {
    "bf16": {"c1_tokens_per_second": 40.0, "c8_tokens_per_second": 200.0, "c32_tokens_per_second": 400.0},
    "ngram": {"c1_tokens_per_second": 44.0, "c8_tokens_per_second": 210.0, "domain_tokens_per_step": 1.2},
    "eagle3": {"c1_tokens_per_second": 60.0, "c8_tokens_per_second": 100.0, "domain_tokens_per_step": 1.5},
}
Edit = Callable[[dict[str, Any]], None]


@cache
def text(*overrides: str) -> str:
    return composed(list(overrides))


def settings(*overrides: str) -> DictConfig:
    found = OmegaConf.create(text(*overrides))
    assert isinstance(found, DictConfig)
    return found


def measured(**edited: dict[str, float]) -> dict[str, Any]:
    """What a run of the graph leaves of `bench` where this is called, `edited` in its figures: reports, and stages for dvc.lock."""
    sections = OmegaConf.to_container(settings().bench)
    assert isinstance(sections, dict)
    stages: dict[str, Any] = {
        "dpo": {"outs": [{"path": "models/dpo", "md5": "a" * 32 + ".dir", "size": 272_585_991}]},
        "draft@eagle3": {
            "deps": [{"path": "models/dpo", "md5": "a" * 32 + ".dir"}],
            "outs": [{"path": "models/draft", "md5": "c" * 32 + ".dir", "size": 40_000_000}],
        },
    }
    for name, report in REPORTS.items():
        file = Path(f"reports/bench/{name}.json")
        metrics.write(file, report | edited.get(name, {}))
        model = "draft" if name == "eagle3" else "dpo"
        (made,) = (out for stage in stages.values() for out in stage["outs"] if out["path"] == f"models/{model}")
        stages[f"bench@{name}"] = {
            "deps": [{"path": "scripts/bench.py", "md5": "0"}, {"path": made["path"], "md5": made["md5"]}],
            "params": {"params.yaml": {f"bench.{name}": sections[name]}},
            "outs": [{"path": str(file), "md5": hashlib.md5(file.read_bytes()).hexdigest()}],
        }
    return stages


def locked(stages: dict[str, Any]) -> None:
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": stages}))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with what `bench` measured."""
    monkeypatch.chdir(tmp_path)
    Path("conf").symlink_to(ROOT / "conf")
    Path("params.yaml").write_text(text())
    locked(measured())
    return tmp_path


def told(method: str, *overrides: str) -> dict[str, str]:
    found = drafting.arguments(method, settings(*overrides), HEAD)
    return {name.rpartition(".")[2]: value for name, value in pairwise(found) if name.startswith("--")}


def refused(method: str, *overrides: str) -> str:
    with pytest.raises(SystemExit, match=r"^serve\.draft: ") as error:
        drafting.arguments(method, settings(*overrides), HEAD)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.usefixtures("run")
def test_a_draft_is_served_as_it_was_measured_and_off_where_it_was_slower() -> None:
    assert told("ngram", "serve.limits.concurrent=8") == {
        "method": "ngram",
        "num_speculative_tokens": "3",
        "prompt_lookup_min": "2",
        "prompt_lookup_max": "4",
    }
    head = told("eagle3")
    assert (head["method"], head["model"], head["num_speculative_tokens"]) == ("eagle3", "models/draft", "3")
    assert head["num_speculative_tokens_per_batch_size"] == "[[1,1,3],[2,64,0]]"
    few = told("eagle3", "serve.limits.concurrent=4")
    assert few["num_speculative_tokens_per_batch_size"] == "[[1,1,3],[2,4,0]]"


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("last", "served", "expected"),
    [
        # Of 64 callers, 32 waited: no batch of more than 32 was measured, whatever came of it.
        (300.0, 64, "[[1,32,3],[33,64,0]]"),
        (900.0, 64, "[[1,32,3],[33,64,0]]"),
        (300.0, 32, None),
        (300.0, 16, None),
    ],
)
def test_a_draft_is_off_in_batches_larger_than_were_measured(last: float, served: int, expected: str | None) -> None:
    plain = {"c64_tokens_per_second": 400.0}
    locked(measured(bf16=plain, ngram={"c32_tokens_per_second": 500.0, "c64_tokens_per_second": last}))
    found = told("ngram", f"serve.limits.concurrent={served}", "bench.ngram.sequences=64")
    assert found.get("num_speculative_tokens_per_batch_size") == expected, (
        "the run of `bench` counts, not its settings now"
    )


@pytest.mark.usefixtures("run")
def test_a_draft_that_pays_in_no_batch_that_is_served_is_refused() -> None:
    locked(measured(ngram={"c1_tokens_per_second": 30.0}))
    assert "pays at no batch measured up to serve.limits.concurrent=1 (1: 0.75× (off)" in refused(
        "ngram", "serve.limits.concurrent=1"
    )


@pytest.mark.usefixtures("run")
def test_a_draft_that_pays_nowhere_is_not_served() -> None:
    locked(measured(eagle3={"c1_tokens_per_second": 30.0}))
    said = "slower than no draft at every concurrency measured (1: 0.75× (off), 8: 0.50× (off)): set it to null"
    assert said in refused("eagle3")


@pytest.mark.usefixtures("run")
def test_a_head_must_beat_what_costs_nothing() -> None:
    locked(measured(eagle3={"domain_tokens_per_step": 1.15}))
    assert "1.15 tokens a step, n-gram lookup yields 1.2: set it to ngram" in refused("eagle3")
    locked(measured(ngram={"c1_tokens_per_second": 70.0}))
    assert "slower than n-gram lookup at every concurrency measured (1: 0.86× (off)" in refused("eagle3")
    told("ngram")


def without(name: str) -> Edit:
    def edit(stages: dict[str, Any]) -> None:
        del stages[name]

    return edit


def retrained(stages: dict[str, Any]) -> None:
    stages["dpo"]["outs"][0]["md5"] = "e" * 32 + ".dir"


def with_another_head(stages: dict[str, Any]) -> None:
    stages["draft@eagle3"]["outs"][0]["md5"] = "e" * 32 + ".dir"


def written_by_hand(stages: dict[str, Any]) -> None:
    metrics.write("reports/bench/eagle3.json", {"c1_tokens_per_second": 999.0})


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (without("bench@eagle3"), r"dvc\.lock has no bench@eagle3: run `make bench`, or set it to null"),
        (without("bench@ngram"), r"dvc\.lock has no bench@ngram"),
        (without("bench@bf16"), r"dvc\.lock has no bench@bf16"),
        (retrained, r"bench@bf16 read another models/dpo than dvc\.lock has now: run `make bench`"),
        (with_another_head, r"bench@eagle3 read another models/draft than dvc\.lock has now"),
        (written_by_hand, r"reports/bench/eagle3\.json: not what dvc\.lock has of bench@eagle3"),
    ],
)
def test_what_was_not_measured_is_not_served(edit: Edit, said: str) -> None:
    stages = measured()
    edit(stages)
    locked(stages)
    assert re.match(rf"serve\.draft: {said}", refused("eagle3"))


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["bench.eagle3.speculation.tokens=5"],
            "`bench` measured bench.eagle3.speculation.tokens=3, now it is 5: put it back",
        ),
        (["hardware=gpu1"], "`bench` measured on hardware=cpu, not on gpu1: measure it there, or set it to null"),
        (["serve.dtype=float32"], "`bench` measured it in bfloat16, serve.dtype is float32"),
        (["bench=bf16"], "'eagle3': choose null or one of ngram, eagle3, which conf/bench measures"),
    ],
)
def test_another_draft_than_was_measured_is_not_served(overrides: list[str], said: str) -> None:
    assert said in refused("eagle3", *overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["serve.draft=medusa"], r"^serve\.draft: 'medusa': choose null or one of ngram, eagle3$"),
        (["serve=llama.cpp", "serve.draft=ngram"], r"^serve\.draft: 'ngram': llama\.cpp is told of none here"),
        (["serve=sglang", "serve.draft=ngram"], r"^serve\.draft: 'ngram': sglang is told of none here"),
        (
            ["serve.model=models/sft", "serve.draft=ngram"],
            r"^serve\.draft: 'ngram' was measured with the release, not",
        ),
    ],
)
def test_a_draft_that_nothing_could_serve_is_said_at_once(tmp_path: Path, overrides: list[str], said: str) -> None:
    (tmp_path / "params.yaml").write_text(text(*overrides))
    with pytest.raises(SystemExit, match=said) as error:
        serving.load(tmp_path / "params.yaml")
    assert "\n" not in str(error.value)


def test_every_method_that_can_be_served_is_measured() -> None:
    assert {name for name, section in settings().bench.items() if section.speculation} == set(speculation.METHODS)
