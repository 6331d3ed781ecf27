"""Dollars for a million tokens, and when two models may be compared by them."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands import cost as command
from commands.compose import composed
from temper import cost, metrics
from temper.cost import Api, Cost, Power, Price

POWER = Power(250.0, "https://example.org")
COSTS = Cost(Price(0.36, "2026-05-07", "https://example.org"), 0.5, {"Small": Api(0.5, 2.0, "", "")}, 0.03, POWER)
REPORT = {
    "c1_tokens_per_second": 10.0,
    "c8_tokens_per_second": 40.0,
    "c8_requests_per_second": 2.0,
    "c8_prompt_tokens": 100.0,
    "open70_tokens_per_second": 30.0,
}


def test_a_server_costs_its_machine_over_what_it_is_asked_for() -> None:
    # 36,000 tokens an hour, half of them asked for: $0.36 for 18,000.
    assert cost.served(REPORT, 1, COSTS) == pytest.approx(20)
    assert cost.served(REPORT, 8, COSTS) == pytest.approx(5)
    assert cost.levels(REPORT) == [1, 8]


def test_an_api_is_paid_for_prompts_too() -> None:
    # Five tokens of a prompt for each of an answer.
    assert cost.asked(COSTS.apis["Small"], REPORT) == pytest.approx(2.0 + 0.5 * 100 / 20)


@pytest.mark.parametrize("share", [0.0, 1.5])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(SystemExit, match=r"^cost\.utilisation: .*conf/cost"):
        Cost(COSTS.price, share, {}, 0.03, POWER).check()


def test_shipped_prices_have_a_date_and_a_source() -> None:
    for hardware in ("cpu", "cpu-bf16", "gpu1", "gpu8", "gpu8-offload"):
        shipped = json_of(composed([f"hardware={hardware}"]))["cost"]
        for price in (shipped["price"], *shipped["apis"].values()):
            assert price["source"].startswith("https://")
            assert price["date"].startswith("20")
        assert shipped["power"]["watts"] > 0
        assert shipped["power"]["source"].startswith("https://")


def test_a_training_takes_energy_and_dollars_of_each_device() -> None:
    assert cost.energy(1800, 2, COSTS) == pytest.approx(0.25)  # two of 250 W for half an hour
    assert cost.paid(1800, 2, COSTS) == pytest.approx(0.36)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (-0.02, 0.02, command.MATCHED),
        (-0.10, 0.10, command.UNDECIDED),  # no difference found among few rows is not yet one quality
        (-0.02, 0.06, command.UNDECIDED),
        (0.01, 0.20, command.APART),
        (-0.20, -0.01, command.APART),
        (0.01, 0.02, command.MATCHED),
    ],
)
def test_one_quality_wants_the_whole_interval_within_the_margin(low: float, high: float, word: str) -> None:
    assert command.verdict(low, high, 0.03) == word


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a released run of one model, and in the tree one of another."""
    monkeypatch.chdir(tmp_path)
    settings = composed_at_root(["bench=bf16", "model=llama3.1-8b"])
    write(tmp_path, settings, exact=0.80, rate=40.0)
    subprocess.run(["git", "init", "-q"], check=True)
    commit("v1.0.0")
    write(tmp_path, composed_at_root(["bench=bf16", "model=qwen3-14b"]), exact=0.81, rate=20.0)
    return tmp_path


ROOT = Path(__file__).resolve().parent.parent


def composed_at_root(overrides: list[str]) -> str:
    line = [
        sys.executable,
        "-c",
        "import sys; from commands.compose import composed; print(composed(sys.argv[1:]), end='')",
    ]
    return subprocess.run([*line, *overrides], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def write(root: Path, settings: str, exact: float, rate: float) -> None:
    (root / "params.yaml").write_text(settings)
    interval = {"exact": exact, "exact_low": exact - 0.01, "exact_high": exact + 0.01}
    metrics.write(root / "reports/evaluate/dpo.json", interval)
    metrics.write(root / "reports/bench/bf16.json", REPORT | {"c8_tokens_per_second": rate})
    metrics.write(root / "reports/timing/bench/bf16.json", {"hardware": "a machine"})
    lock = {"stages": {"mix": {"outs": [{"path": "data/mix/test.jsonl", "md5": "abc"}]}}}
    (root / "dvc.lock").write_text(json.dumps(lock))


def add_quants(root: Path) -> None:
    """Measure three quants that serve faster than their model: one keeps enough, one does not, of one nobody knows."""
    settings = json_of((root / "params.yaml").read_text())
    for name, rate in (("gptq", 25.0), ("awq", 80.0), ("gguf", 160.0)):
        settings["bench"][name] = settings["bench"]["bf16"] | {"model": name}
        metrics.write(root / f"reports/bench/{name}.json", REPORT | {"c8_tokens_per_second": rate})
    (root / "params.yaml").write_text(json.dumps(settings | {"served": ["bf16", "gptq", "awq", "gguf"]}))
    kept = {"released": True, "withheld": "", "exact_kept": 0.984, "unchanged": 0.86, "unjudged": ""}
    metrics.write(root / "reports/retention/gptq.json", kept)
    lost = {"released": False, "withheld": "exact_kept 0.844 < 0.97"}
    metrics.write(root / "reports/retention/awq.json", kept | lost)


def commit(tag: str) -> None:
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost"]
    for given in (["add", "--all"], ["commit", "-qm", tag], ["tag", tag]):
        subprocess.run([*git, *given], check=True)


def json_of(text: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(text))  # type: ignore[return-value]


def test_two_models_of_one_quality_are_compared_by_their_cheapest(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command.main(["v1.0.0"])
    said = capsys.readouterr().out
    assert "Qwen3-14B on a machine, 81.0% exact (80.0–82.0)" in said
    assert "on a machine, 80.0% exact" in said
    assert "this tree and v1.0.0: one quality: -1.0 points (-2.4 to +0.4)" in said
    assert "this tree $2.800, v1.0.0 $1.400" in said  # 0.1008 / (3600 × 20 × 0.5) × 1e6
    assert "Claude Haiku 4.5" in said


def test_a_quant_that_is_withheld_is_shown_as_such_and_is_nobodys_cheapest(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add_quants(tree)
    commit("quants")
    command.main(["quants"])
    lines = capsys.readouterr().out.splitlines()
    shares = "98% of exact answers kept, 86% unchanged"
    for variant, note in (
        ("gptq", shares),
        ("awq", "withheld: exact_kept 0.844 < 0.97"),
        ("gguf", "withheld: not measured"),
    ):
        ends = [line.rstrip().endswith(note) for line in lines if line.split()[:1] == [variant]]
        assert ends == [True, False] * 2, f"{variant}: once in each of two tables"
    # gptq's: 0.1008 / (3600 × 25 × 0.5) × 1e6
    assert "cheapest this tree $2.240, quants $2.240" in lines[-1]


def test_scores_on_other_test_rows_are_not_compared(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "dvc.lock").write_text((tree / "dvc.lock").read_text().replace("abc", "def"))
    command.main(["v1.0.0"])
    assert f"this tree and v1.0.0: {command.OTHER}{command.BY_TOKENS}\n" in capsys.readouterr().out
    commit("same-model")
    (tree / "dvc.lock").write_text((tree / "dvc.lock").read_text().replace("def", "ghi"))
    command.main(["same-model"])
    assert f"this tree and same-model: {command.OTHER}\n" in capsys.readouterr().out


def test_what_the_message_sets_has_every_base_asked_the_same() -> None:
    (override,) = re.findall(r"-S ([\w.]+=\w+)", command.BY_TOKENS)
    both = [json_of(composed_at_root([f"model={name}", override])) for name in ("llama3.1-8b", "qwen3-14b")]
    stages = ("ingest", "dedup", "quality", "pii", "split", "contamination", "mix")
    assert [both[0][stage] for stage in stages] == [both[1][stage] for stage in stages]
    assert both[0]["ingest"]["max_tokens"] is None, "with a limit, ingest reads the tokenizer of the base"


def test_a_revision_from_before_power_was_asked_is_read(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = json_of((tree / "params.yaml").read_text())
    del settings["cost"]["power"]
    (tree / "params.yaml").write_text(json.dumps(settings))
    commit("old")
    command.main(["old"])
    assert "this tree and old: one quality: +0.0 points" in capsys.readouterr().out
    del settings["cost"]
    (tree / "params.yaml").write_text(json.dumps(settings))
    with pytest.raises(SystemExit, match=r"^this tree: params\.yaml: no section 'cost'"):
        command.main([])


def test_a_revision_that_has_no_run_is_named(tree: Path) -> None:
    with pytest.raises(SystemExit, match=r"^v9: .*name a revision whose run has ended"):
        command.main(["v9"])
