"""The contamination drill: what leaks, what the gate says of it, and how two runs are compared."""

import contextlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from commands import contamination_drill as drill
from scripts import contamination
from temper import containment, metrics, record, records, shards
from temper.records import Row

SETTINGS: dict[str, Any] = {
    "ngram": 13,
    "max_items": 10,
    "coverage_ngram": 8,
    "max_coverage": 0.5,
    "minhash": {"shingle": 2, "min_words": 13, "bands": 32, "rows": 3, "min_jaccard": 0.5},
    "paraphrase": None,
    "max_own": 10000,
    "policy": "drop",
    "benchmarks": [],
}


def row(split: str, number: int) -> Row:
    turns = [("user", f"the {split} question number {number} asks about topic{number}"), ("assistant", "null")]
    return {
        "id": f"{split}{number}",
        "split": split,
        "messages": [{"role": role, "content": content} for role, content in turns],
    }


TEST = [row("test", number) for number in range(200)]
TRAIN = [row("train", number) for number in range(50)]


def test_the_stated_share_of_the_test_rows_leaks_and_at_least_one() -> None:
    assert len(drill.chosen(TEST, 0.01, seed=1)) == 2
    assert len(drill.chosen(TEST[:10], 0.01, seed=1)) == 1
    assert drill.chosen(TEST, 0.05, seed=1) == drill.chosen(TEST, 0.05, seed=1) != drill.chosen(TEST, 0.05, seed=2)
    with pytest.raises(SystemExit, match=r"--share is 1.5: choose a share"):
        drill.parsed(["--share", "1.5"])


def test_the_leaked_run_trains_on_as_many_rows() -> None:
    leaked = drill.chosen(TEST, 0.05, seed=1)
    rows = drill.substituted(TRAIN, leaked, seed=1)
    assert len(rows) == len(TRAIN)
    assert [one for one in leaked if one not in rows] == []
    assert {one["id"] for one in rows} - {one["id"] for one in leaked} < {one["id"] for one in TRAIN}


def test_the_gate_catches_every_leaked_row_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    leaked = drill.chosen(TEST, 0.05, seed=1)
    records.write(f"{drill.SPLIT}/00000.jsonl", drill.mixed(TRAIN + TEST + leaked, seed=1))
    OmegaConf.save({"contamination": SETTINGS, "executor": {"kind": "local", "workers": 1}}, "params.yaml")
    records.write(contamination.PASSAGES, [])
    contamination.main()
    passed = drill.of(list(shards.read(drill.PASSED)), "train")
    assert {one["id"] for one in passed} == {one["id"] for one in TRAIN}
    shown = drill.lines(list(records.read(drill.REJECTED)), leaked)
    assert len(shown) == drill.SHOWN + 1
    assert shown[-1] == "  … and 5 more"
    assert "is test test" in shown[0]
    assert "by 8-gram (score 1.00)" in shown[0]


class InProcess(drill.Scratch):
    """A folder in which the contamination stage runs for real, and training is that a row seen is a row known."""

    def __init__(self, root: Path, overrides: Sequence[str]) -> None:
        self.root, self.overrides = root, list(overrides)
        self.frozen: list[str] = []
        records.write(root / drill.SPLIT / "00000.jsonl", TRAIN + TEST)
        records.write(root / drill.PASSED / "00000.jsonl", TRAIN + TEST)
        records.write(root / contamination.PASSAGES, [])

    def run(self, *module: str) -> "subprocess.CompletedProcess[str]":
        assert module[:2] == ("dvc", "freeze")
        self.frozen.append(module[2])
        return done()

    def repro(self, stage: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
        with contextlib.chdir(self.root):
            if stage == "contamination":
                return self.checked(overrides)
            if stage == drill.SCORED:
                seen = {record.request(one) for one in drill.of(list(shards.read(drill.PASSED)), "train")}
                scores = ({"id": one["id"], "exact": record.request(one) in seen} for one in TEST[:100])
                records.write(drill.SAMPLES, scores)
        return done()

    def checked(self, overrides: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        settings = SETTINGS | dict(one.removeprefix("contamination.").split("=") for one in overrides)
        OmegaConf.save({"contamination": settings, "executor": {"kind": "local", "workers": 1}}, "params.yaml")
        try:
            contamination.main()
        except SystemExit as error:
            return done(1, str(error.code))
        return done()


class Broken(InProcess):
    """Under policy=fail the stage ends for another reason, before it has looked at a row."""

    def checked(self, overrides: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        if "contamination.policy=fail" in overrides:
            return done(1, "no space left on device")
        return super().checked(overrides)


class Shortsighted(InProcess):
    """Under policy=fail the stage ends at the first row it finds, and names no other."""

    def checked(self, overrides: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        result = super().checked(overrides)
        if "contamination.policy=fail" in overrides:
            records.write(drill.REJECTED, list(records.read(drill.REJECTED))[:1])
        return result


class Lenient(InProcess):
    """Under policy=drop every row passes, also those that it names."""

    def checked(self, overrides: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        result = super().checked(overrides)
        records.write(f"{drill.PASSED}/00000.jsonl", list(shards.read(drill.SPLIT)))
        return result


class Blind(InProcess):
    """The gate finds nothing at all."""

    def checked(self, overrides: Sequence[str]) -> "subprocess.CompletedProcess[str]":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(containment.Gate, "hits", lambda gate, rows: [[] for _ in rows])
            return super().checked(overrides)


def done(status: int = 0, said: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.CompletedProcess([], status, "", said)


@pytest.mark.parametrize(
    ("scratch", "status", "named"),
    [(InProcess, 0, 10), (Broken, 1, 0), (Shortsighted, 1, 1), (Lenient, 1, 10), (Blind, 1, 0)],
)
def test_the_drill_succeeds_only_where_every_leaked_row_is_named_and_dropped(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scratch: type[InProcess],
    status: int,
    named: int,
) -> None:
    monkeypatch.setattr(drill, "Scratch", scratch)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        drill.main(["--share", "0.05"])
    assert end.value.code == status
    assert f", {named} of 10 rows named" in capsys.readouterr().out


def test_rows_too_short_to_be_looked_for_leak_too_and_are_named_as_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    short = {"id": "why", "split": "test", "messages": [{"role": "user", "content": "Why?"}]}
    scratch = InProcess(tmp_path / "clone", [])
    records.write(scratch.root / drill.SPLIT / "00000.jsonl", [*TRAIN, *TEST[:9], short])
    assert not drill.gate(scratch, share=1, seed=1)
    said = capsys.readouterr().out
    assert "leaked 10 of 10 test rows into 50 training rows" in said
    assert "9 of 10 leaked rows caught, 1 passed" in said
    assert "of the missed rows 1 have fewer than 5 words, too few to be looked for: why" in said
    assert scratch.frozen == ["split"]


def test_let_pass_the_leaked_rows_are_known_and_the_others_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = InProcess(tmp_path, [])
    values = drill.jump(scratch, share=0.05, seed=1)
    assert scratch.frozen == ["contamination"]
    _, leaked, others, _, verdict = capsys.readouterr().out.splitlines()
    assert verdict == (
        "verdict: on the 5 leaked rows the score goes from 0.000 [0.000, 0.434] clean to 1.000 [0.566, 1.000] leaked: "
        "no clear jump (exact sign test, p = 0.0625)"
    )
    assert (values["leaked_n"], values["leaked_exact_clean"], values["leaked_exact_contaminated"]) == (5, 0, 1)
    assert (values["jump_is_clear"], values["other_exact_contaminated"]) == (0, 0)
    assert leaked.startswith("  leaked rows (n=5): clean 0.000 ")
    assert leaked.endswith("+1.000 (5 gained, 0 lost)")
    assert others.startswith("  other rows (n=95): clean 0.000 ")
    assert others.endswith("+0.000 (0 gained, 0 lost)")
    train = drill.of(scratch.rows(drill.PASSED), "train")
    assert len(train) == len(TRAIN)
    assert sum(one["id"].startswith("test") for one in train) == 5


def test_a_jump_is_clear_where_chance_would_seldom_make_it() -> None:
    gained, lost, same = (False, True), (True, False), (True, True)
    assert drill.sign_test(0, 0) == 1
    assert drill.sign_test(6, 0) == drill.sign_test(0, 6) == 2 / 2**6
    assert drill.is_clear([gained] * 6 + [same] * 9)
    assert not drill.is_clear([gained] * 5)
    assert not drill.is_clear([lost] * 9)
    assert "a clear jump (exact sign test, p = 0.0312)" in drill.verdict([gained] * 6)


def test_let_pass_the_figures_are_written_with_their_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(drill, "Scratch", InProcess)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SystemExit) as end:
        drill.main(["--let-pass", "--share", "0.1"])
    assert end.value.code == 0
    values = metrics.read(drill.OUT)
    assert (values["share"], values["leaked_n"], values["jump_is_clear"], values["gate_caught_all"]) == (0.1, 10, 1, 1)
    assert values["command"] == "python -m commands.contamination_drill --let-pass --share 0.1"
    assert values["machine"]


def test_scores_are_compared_row_by_row_with_intervals() -> None:
    clean = [{"id": str(number), "exact": number < 5} for number in range(10)]
    leaked = [{"id": str(number), "exact": number < 4 or number >= 8} for number in range(10)]
    head, *parts = drill.comparison(drill.compared(clean, leaked, ids={"8", "9"}))
    assert "95% intervals" in head
    assert parts[0] == (
        "  leaked rows (n=2): clean 0.000 [0.000, 0.658], leaked 1.000 [0.342, 1.000], +1.000 (2 gained, 0 lost)"
    )
    assert parts[1].endswith("-0.125 (0 gained, 1 lost)")
    assert "all test rows (n=10)" in parts[2]
    assert parts[2].endswith("+0.100 (2 gained, 1 lost)")
