"""The study that `make ablation` runs: its arms differ in training alone, share what is equal, and are told apart honestly."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import DictConfig, OmegaConf

from commands import ablation
from temper import comparisons, crossed, graph, metrics, params, standings, study, vllm
from temper.recipe import Recipe
from temper.standings import Arm, Outcome, Record
from temper.study import BASE, Comparison, Study

DATA = ("base", "ingest", "dedup", "quality", "pii", "split", "contamination", "mix", "audit", "evaluate")


@pytest.fixture(scope="module")
def settings() -> DictConfig:
    return ablation.tree([])


@pytest.fixture(scope="module")
def plan(settings: DictConfig) -> Study:
    return params.fitted(settings, "ablation", Study, "conf/")


@pytest.fixture(scope="module")
def chosen(settings: DictConfig, plan: Study) -> list[study.Experiment]:
    return list(ablation.planned(plan, list(plan.arms), plan.seeds, settings, []))


@pytest.fixture(scope="module")
def defined() -> list[graph.Stage]:
    return graph.definitions()


@pytest.fixture(scope="module")
def held(defined: list[graph.Stage]) -> dict[str, str]:
    return ablation.hashes(defined)


def test_the_study_has_what_was_asked_over_three_seeds(plan: Study) -> None:
    assert len(plan.seeds) >= 3
    assert {"sft", "sft-dpo", "sft-grpo", "orpo", "full", "rank-4", "rank-8", "rank-32"} <= plan.arms.keys()
    assert len([name for name in plan.arms if name.startswith("beta")]) >= 3


def test_arms_and_seeds_change_training_alone(
    chosen: list[study.Experiment], plan: Study, defined: list[graph.Stage], held: dict[str, str]
) -> None:
    """Every experiment has the same data, the same test rows and the same evaluation, and a seed of its own in each training."""
    composed = {one.name: ablation.tree(one.overrides) for one in chosen if one.seed == plan.seeds[-1]}
    assert len({one.name for one in chosen}) == len(chosen)
    for section in DATA:
        assert len({OmegaConf.to_yaml(found[section]) for found in composed.values()}) == 1, section
    for one in chosen:
        if one.name in composed:
            settings = composed[one.name]
            assert {settings[stage].seed for stage in one.recipe.stages()} == {one.seed}
            # By the params.yaml that DVC composes, what it made is known as this experiment.
            assert study.identity(one.recipe, settings, plan.measure, defined, held) == one.identity


def test_every_training_that_goes_over_rows_has_as_many_passes_on_a_cpu(chosen: list[study.Experiment]) -> None:
    """So that no arm of `methods` wins by a second look at its rows; DPO's pairs are looked at after SFT's rows."""
    last = {"sft": "sft", "orpo": "orpo", "sft-grpo": "grpo"}
    first = [one for one in chosen if one.seed == chosen[0].seed and one.arm in last]
    assert {one.arm: ablation.tree(one.overrides)[last[one.arm]].epochs for one in first} == dict.fromkeys(last, 1)


def test_what_an_arm_would_be_refused_for_hours_later_is_refused_before_the_first_runs(
    plan: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def required(arm: str, *overrides: str) -> None:
        ablation.require(ablation.planned(plan, [arm], [1, 2], ablation.tree(overrides), overrides))

    def require_build(preset: str) -> None:
        asked.append(preset)

    monkeypatch.setattr(vllm, "require_build", require_build)
    with pytest.raises(SystemExit, match=r"^sft\.method=qlora quantizes in CUDA code: choose hardware=gpu1 or more$"):
        required("sft", "sft=qlora")
    with pytest.raises(SystemExit, match=r"^orpo\.global_batch is 3, not a multiple of micro_batch × processes = 2: "):
        required("orpo", "orpo.global_batch=3")
    assert not asked
    required("orpo")
    required("sft", "hardware=gpu8", "model=llama3.1-8b")
    assert asked == ["cpu", "gpu8"]
    # What starts nothing, such as a table of what ran elsewhere, needs no engine here.
    monkeypatch.setattr(ablation, "refuse_edits", lambda: None)
    monkeypatch.setattr(ablation, "kept", lambda *_: pytest.fail("nothing may run"))
    ablation.main(["--dry-run", "--only", "sft", "--seeds", "1", "hardware=gpu8", "model=llama3.1-8b"])
    with pytest.raises(SystemExit, match="no arm has results"):
        ablation.main(["--report", "--only", "sft", "--seeds", "1", "hardware=gpu8", "model=llama3.1-8b"])
    assert asked == ["cpu", "gpu8"]
    assert "sft" in capsys.readouterr().out
    # A run asks before anything is kept.
    monkeypatch.setattr(vllm, "require_build", lambda preset: sys.exit(f"no build for {preset}"))
    with pytest.raises(SystemExit, match="no build for gpu8"):
        ablation.main(["--only", "sft", "--seeds", "1", "hardware=gpu8", "model=llama3.1-8b"])


def test_a_large_model_learns_at_the_rates_of_large_models(plan: Study, chosen: list[study.Experiment]) -> None:
    """Every arm, the one that trains all weights at a rate of its own; what the user asks for comes last."""
    overrides = ["hardware=gpu8", "model=llama3.1-8b"]
    settings = ablation.tree(overrides)
    large = {
        one.arm: ablation.tree(one.overrides)
        for one in ablation.planned(plan, list(plan.arms), [1], settings, overrides)
    }
    for arm, found in large.items():
        for stage in params.fitted(found, "recipe", Recipe, arm).stages():
            if stage != "preferences":
                method = "full" if arm == "full" else "lora"
                assert found[stage].learning_rate == plan.rates.learning[stage][method], (arm, stage)
    assert 1e-5 <= large["full"].sft.learning_rate <= 2e-5 < large["sft"].sft.learning_rate
    asked = [*overrides, "sft.learning_rate=0.5"]
    changes = next(iter(ablation.planned(plan, ["full"], [1], settings, asked))).overrides
    assert ablation.tree(changes).sft.learning_rate == 0.5
    # Of a small model they are conf/'s.
    assert not any("learning_rate" in change for one in chosen for change in one.overrides)


def test_equal_trainings_are_counted_once(chosen: list[study.Experiment]) -> None:
    first = [one for one in chosen if one.seed == chosen[0].seed]
    sft = [run for one in first for run in one.runs if run.stage == "sft"]
    assert (len(sft), len(set(sft))) == (10, 5)  # four ranks and full; DPO, GRPO and the betas start from the same one
    assert (
        len({run for one in first for run in one.runs if run.stage == "preferences"}) == 2
    )  # of SFT and, for ORPO, of the base
    assert len({run for one in first for run in one.runs if run.stage == "dpo"}) == 4


def test_time_goes_by_the_last_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(study, "TIMING", tmp_path)
    metrics.write(tmp_path / "training/sft.json", {"seconds": 600})
    metrics.write(tmp_path / "evaluate/base.json", {"seconds": 90})
    metrics.write(tmp_path / "evaluate/sft.json", {"seconds": 110})
    recorded = DictConfig({"sft": {"epochs": 2}})
    wanted = [study.Run("sft", 1.0, ()), study.Run("evaluate", 1.0, ()), study.Run("grpo", 2.0, ())]
    assert study.seconds(wanted, recorded) == (300 + 100 + 600, ["grpo"])


def test_a_comparison_of_an_unknown_arm_is_one_line(plan: Study) -> None:
    with pytest.raises(SystemExit, match=r"^ablation\.comparisons: x names 'sfd', which ablation\.arms lacks$"):
        Study(**vars(plan) | {"comparisons": {"x": Comparison("sft", ["sft", "sfd"])}})
    with pytest.raises(SystemExit, match=r"^--only: no arm 'sfd': choose of sft, "):
        plan.only(["sfd"])


def test_intervals_cover_what_varies_by_seed_and_by_row() -> None:
    """Drawn from the model itself, with as few seeds as the study has; rows alone as the sample would cover far too little."""
    draw = np.random.default_rng(0)
    covered = by_rows = 0
    for _ in range(400):
        seeds, rows = draw.normal(0, 0.04, (3, 1)), draw.normal(0, 0.3, (1, 150))
        scores = np.clip(0.5 + seeds + rows + draw.normal(0, 0.2, (3, 150)), -9, 9)
        found = crossed.difference(scores, np.zeros((1, 150)), 0.95)
        alone = crossed.difference(scores[:1], np.zeros((1, 150)), 0.95)
        covered += found.low < 0.5 < found.high
        by_rows += alone.low < 0.5 < alone.high
    assert 0.93 < covered / 400 <= 1
    assert by_rows / 400 < 0.85


def test_where_no_row_differs_the_interval_does_not_vanish() -> None:
    none = crossed.rate(np.zeros((3, 167)), 0.95)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.0225, abs=1e-3)  # Wilson of 0 in 167


def test_one_run_is_judged_by_its_rows() -> None:
    scores = np.array([[1.0, 0.0] * 50])
    found = crossed.rate(scores, 0.95)
    assert (found.low, found.high) == pytest.approx((0.5 - 0.0997, 0.5 + 0.0997), abs=1e-3)  # t of 99, s = 0.5025


def arm(shares: list[float], seconds: float = 60.0, rows: int = 200) -> Arm:
    """With so much of the rows right, the first ones, for each seed."""
    return Arm(tuple(outcome(share, rows, sft=seconds) for share in shares))


def outcome(share: float, rows: int = 200, **seconds: float) -> Outcome:
    timing = {
        stage: {"seconds": taken, "peak_memory_gb": 8.0, "hardware": "a machine"}
        for stage, taken in {**seconds, "evaluate": 30.0}.items()
    }
    return standings.outcome({str(row): float(row < share * rows) for row in range(rows)}, timing)


ARMS = {
    BASE: Arm((outcome(0.0),)),
    "sft": arm([0.50, 0.51, 0.49]),
    # One seed ran while the machine did something else.
    "sft-dpo": Arm(arm([0.70, 0.71], seconds=120.0).outcomes + arm([0.69], seconds=300.0).outcomes),
    "orpo": arm([0.69, 0.71, 0.71]),
}


@pytest.fixture(scope="module")
def reported(plan: Study) -> str:
    return standings.markdown(plan, ARMS, "the command")


def test_the_report_says_who_wins_by_how_much_and_at_what_cost(plan: Study, reported: str) -> None:
    assert "| sft | 50.0% (" in reported
    assert re.search(
        r"\| sft-dpo \| 70\.0% \(.*\) \| \+20\.0 \(\+\d.* to \+\d.*\) \| better \| 2\.0 min, 8\.0 GB of RAM \| 3 \|",
        reported,
    )
    assert re.search(
        r"\*\*orpo\*\* is first, \+0\.3 points over sft-dpo: not clear|\+0\.3 \(-.*\) points over sft-dpo: not clear",
        reported,
    )
    assert "| base | 0.0% (0.0% to 1.9%) | -50.0 (" in reported
    assert "no training" in reported
    assert "rank of LoRA" not in reported  # none of its arms has run but one
    values = standings.values(plan, ARMS)
    assert values["sft-dpo_over_sft_low"] > 0.1
    assert (values["sft-dpo_seconds"], values["sft_runs"], values["rows"]) == (120.0, 3, 200)
    assert {name: values[f"{name}_over_sft_verdict"] for name in ("base", "sft-dpo", "orpo")} == {
        "base": "worse",
        "sft-dpo": "better",
        "orpo": "better",
    }


def test_verdicts_of_a_table_are_corrected_for_its_comparisons(plan: Study) -> None:
    """Three arms against the baseline, and the first against the second, which one of them is not."""
    found = standings.judged(plan.comparisons["methods"], ARMS, plan)
    assert set(found) == {("base", "sft"), ("sft-dpo", "sft"), ("orpo", "sft"), ("orpo", "sft-dpo")}
    alone = [one.difference.p for one in found.values()]
    assert [one.p for one in found.values()] == comparisons.holm(alone)


def test_a_baseline_that_is_first_is_ahead(plan: Study) -> None:
    arms = {"sft": arm([0.70, 0.71, 0.69]), "full": arm([0.50, 0.51, 0.49])}
    text = standings.section("LoRA or full", plan, arms)
    assert re.search(r"\*\*sft\*\* is first, \+20\.0 \(\+1.* to \+2.*\) points over full: clear", text)
    assert set(standings.judged(plan.comparisons["LoRA or full"], arms, plan)) == {("full", "sft")}


def test_memory_is_of_the_gpu_where_a_training_had_one(plan: Study) -> None:
    took = {"seconds": 60.0, "peak_memory_gb": 30.0, "hardware": "a machine"}
    timing = {"sft": took | {"peak_gpu_memory_gb": 17.5}, "dpo": took | {"peak_gpu_memory_gb": 21.5}}
    timing |= dict.fromkeys(("preferences", "evaluate"), took)
    trained = Arm((standings.outcome({"0": 1.0, "1": 0.0}, timing),))
    assert trained.cost == "3.0 min, 21.5 GB of GPU"
    values = standings.values(plan, {BASE: trained, "sft-dpo": trained})
    assert (values["sft-dpo_peak_gb"], values["sft-dpo_memory"]) == (21.5, "GPU")


def test_a_picture_has_a_bar_an_arm(plan: Study) -> None:
    svg = standings.picture(["base", "sft", "orpo"], plan, ARMS)
    assert all(f">{name}<" in svg for name in ("base", "sft", "orpo"))


def test_arms_of_other_rows_are_not_compared() -> None:
    with pytest.raises(SystemExit, match="not scored on the same test rows"):
        standings.require_same_rows(ARMS | {"orpo": arm([0.5], rows=100)})


def settled(one: study.Experiment) -> Record:
    outcomes = {BASE: outcome(0.0), one.recipe.release: outcome(0.5, sft=60.0)}
    return Record(one.identity, list(one.overrides), outcomes)


def test_what_an_experiment_came_to_is_read_as_it_was_written(chosen: list[study.Experiment], tmp_path: Path) -> None:
    record = settled(chosen[0])
    standings.write(tmp_path / "one.json", record)
    assert standings.read(tmp_path / "one.json") == record
    assert (record.outcomes["sft"].training_seconds, record.outcomes[BASE].training_seconds) == (60.0, 0.0)


@pytest.mark.parametrize("spoil", [lambda text: text[:300], lambda _: "", lambda text: text.replace('"rows"', '"row"')])
def test_a_cut_file_is_refused_in_one_line(
    chosen: list[study.Experiment], tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    file = tmp_path / "one.json"
    standings.write(file, settled(chosen[0]))
    file.write_text(spoil(file.read_text()))
    with pytest.raises(SystemExit, match=rf"^{re.escape(str(file))}: cut or edited \(.*\): restore it .*runs again$"):
        standings.read(file)


def test_an_experiment_follows_from_the_stages_up_to_its_evaluations(
    chosen: list[study.Experiment], defined: list[graph.Stage]
) -> None:
    """Whatever recipe params.yaml was composed for."""
    found = {
        one.arm: {stage.name.partition("@")[0] for stage in study.stages(one.recipe, defined)}
        for one in chosen
        if one.arm in ("sft", "sft-dpo", "sft-grpo", "orpo")
    }
    data = {"base", "ingest", "dedup", "quality", "pii", "split", "contamination", "mix", "general", "evaluate"}
    assert found == {
        "sft": data | {"audit", "sft"},
        "sft-dpo": data | {"audit", "sft", "preferences", "dpo"},
        "sft-grpo": data | {"audit", "sft", "grpo"},
        "orpo": data | {"preferences", "orpo"},
    }


def test_no_stage_reads_what_is_kept_and_what_is_hashed_no_stage_makes(
    defined: list[graph.Stage],
) -> None:
    deps = {dep for stage in defined for dep in stage.deps}
    assert not any(study.JOURNAL.is_relative_to(dep) or Path(dep).is_relative_to(study.JOURNAL) for dep in deps)
    # By the gate, safety and the cards no experiment is measured, so none follows from what they read.
    apart = ("gate", "safety", "card", "datacard", "scorecard")
    before = [stage for stage in defined if stage.script not in apart]
    assert not ablation.hashes(before).keys() & {out for stage in defined for out in stage.outs}


@pytest.mark.parametrize(
    ("dep", "arms"),
    [
        ("temper/harness.py", {"sft", "sft-dpo"}),  # of evaluate
        ("temper/tasks/call.yaml", {"sft", "sft-dpo"}),
        ("requirements/train.txt", {"sft", "sft-dpo"}),
        ("raw", {"sft", "sft-dpo"}),
        ("temper/pairs.py", {"sft-dpo"}),  # of preferences
        ("scripts/dpo.py", {"sft-dpo"}),
        ("scripts/kto.py", set()),
        ("temper/pages.py", set()),  # of card
        ("README.md", set()),
    ],
)
def test_an_edit_makes_other_experiments_of_those_that_depend_on_it(
    chosen: list[study.Experiment],
    settings: DictConfig,
    defined: list[graph.Stage],
    held: dict[str, str],
    dep: str,
    arms: set[str],
) -> None:
    recipes = {one.arm: one.recipe for one in chosen if one.arm in ("sft", "sft-dpo")}
    for arm, recipe in recipes.items():
        before, after = (study.identity(recipe, settings, "", defined, files) for files in (held, held | {dep: ""}))
        assert (before != after) == (arm in arms)


@pytest.mark.parametrize(
    ("change", "arms"),
    [
        ("mix.seed=7", {"sft", "sft-dpo"}),
        ("evaluate.max_tokens=7", {"sft", "sft-dpo"}),
        ("dpo.beta=7", {"sft-dpo"}),
        ("kto.beta=7", set()),
        ("tracking=wandb", set()),
        ("hardware.runtime.threads=1", set()),
    ],
)
def test_a_setting_makes_other_experiments_of_those_whose_stages_track_it(
    chosen: list[study.Experiment], settings: DictConfig, defined: list[graph.Stage], change: str, arms: set[str]
) -> None:
    changed = DictConfig(OmegaConf.merge(settings, OmegaConf.from_dotlist([change])))
    recipes = {one.arm: one.recipe for one in chosen if one.arm in ("sft", "sft-dpo")}
    for arm, recipe in recipes.items():
        before, after = (study.identity(recipe, one, "", defined, {}) for one in (settings, changed))
        assert (before != after) == (arm in arms)


def test_a_study_goes_on_in_another_clone(
    clone_to: Callable[[Path], Path],
    plan: Study,
    settings: DictConfig,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With nothing but what git has, after commits that have nothing to do with it, until one that has."""
    monkeypatch.chdir(clone_to(tmp_path / "tree"))
    one, two = planned = list(ablation.planned(plan, ["sft-dpo"], [1, 2], settings, []))
    standings.write(one.journal, settled(one))
    commit(Path(), "one of two experiments")

    monkeypatch.chdir(clone_of(tmp_path / "tree", tmp_path / "other"))
    for file in ("CHANGELOG.md", "conf/dpo/ld.yaml", "temper/pages.py"):
        Path(file).write_text(Path(file).read_text() + "# edited\n")
    commit(Path(), "unrelated")
    said = list(ablation.outline(planned, ablation.finished(planned), settings))
    # What another clone trained is not in the run cache of this one: SFT, sampling, DPO and both evaluations.
    assert said[0] == "2 experiments, 1 of which have results; 5 runs of stages to go"
    assert said[1] == f"  {two.name}: {' '.join(two.overrides)}"
    ablation.main(["--only", "sft-dpo", "--seeds", "1", "--report"])
    assert "1 experiments, 1 of which have results" in capsys.readouterr().out
    assert metrics.read("reports/ablation.json")["sft-dpo_runs"] == 1

    Path("temper/pairs.py").write_text(Path("temper/pairs.py").read_text() + "# edited\n")
    with pytest.raises(SystemExit, match=r"^ablation runs what is committed, and temper/pairs\.py is edited: commit"):
        ablation.main(["--report"])
    commit(Path(), "sampling")
    planned = list(ablation.planned(plan, ["sft-dpo"], [1, 2], settings, []))
    said = list(ablation.outline(planned, ablation.finished(planned), settings))
    assert said[0].startswith("2 experiments, 0 of which have results")
    assert said[1] == f"  {one.name}: {' '.join(one.overrides)} (made by other code)"
    with pytest.raises(SystemExit, match="no arm has results for every seed yet: run it without --report"):
        ablation.main(["--only", "sft-dpo", "--report"])


def test_what_failed_is_named_before_what_is_missing(
    plan: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With no arm whole there is nothing to report; with one, that is reported first."""
    monkeypatch.setattr(ablation, "refuse_edits", lambda: None)
    monkeypatch.setattr(ablation, "REPORTS", tmp_path)
    monkeypatch.setattr(study, "JOURNAL", tmp_path / "ablation")
    monkeypatch.setattr(ablation, "commits", dict)
    monkeypatch.setattr(ablation, "kept", lambda one, measure: False)
    arguments = ["--only", "sft,full", "--seeds", "1"]
    failed = r"^ablation: ablation-sft-1-\w+, ablation-full-1-\w+ failed \(above\): mend it"
    with pytest.raises(SystemExit, match=failed):
        ablation.main(arguments)
    settings = ablation.tree([])
    one = next(iter(ablation.planned(plan, ["sft"], [1], settings, [])))
    standings.write(one.journal, settled(one))
    with pytest.raises(SystemExit, match=r"^ablation: ablation-full-1-\w+ failed \(above\): mend it"):
        ablation.main(arguments)
    assert metrics.read(tmp_path / "ablation.json")["sft_runs"] == 1


def commit(root: Path, message: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for line in (["add", "--all"], [*identity, "commit", "--quiet", "--message", message]):
        subprocess.run(["git", *line], cwd=root, check=True)


def clone_of(tree: Path, target: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(tree), str(target)], check=True)
    return target


STAND_IN = '''
"""Write the outs of the stage named by argv as a function of its deps and params."""
import hashlib, json, random, sys
from pathlib import Path
from omegaconf import OmegaConf
from temper import graph

stage = next(stage for stage in graph.stages() if stage.name == sys.argv[1])
params = OmegaConf.load("params.yaml")
files = [file for dep in stage.deps for file in (sorted(Path(dep).rglob("*")) if Path(dep).is_dir() else [Path(dep)])]
content = [file.read_bytes() for file in files if file.is_file() and file.suffix != ".py"]
content += [repr(OmegaConf.select(params, section)).encode() for section in stage.params]
digest = hashlib.sha256(b"|".join(content)).hexdigest()
draw = random.Random(digest)
log = Path(__file__).parent / "ran.log"
before = log.read_text().split() if log.exists() else []  # of no two runs the same, as what a machine takes
for out in map(Path, stage.outs):
    if not out.suffix:
        out.mkdir(parents=True)
        names = ["model.safetensors", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"]
        names += [f"{name}.jsonl" for name in ("train", "validation", "test", "golden", "preferences")]
        for name in names:
            (out / name).write_text(digest)
        continue
    out.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": row, "exact": draw.random() < 0.5} for row in range(40)]
    samples = out.parts[:2] == ("data", "evaluate") and out.suffix == ".jsonl"
    timing = {"seconds": 60.0, "peak_memory_gb": 1.0 + len(before), "hardware": "a machine"}
    out.write_text("".join(json.dumps(row) + "\\n" for row in rows) if samples else json.dumps(timing))
with log.open("a") as more:
    more.write(sys.argv[1] + "\\n")
'''


def stand_in_tree(tools: Path, clone_to: Callable[[Path], Path]) -> tuple[Path, Path]:
    """A committed clone whose stages do stand-in work under the real DVC, and the log of what ran."""
    root = tools / "tree"
    clone_to(root)
    (tools / "stand_in.py").write_text(STAND_IN)
    pipeline = root / "dvc.yaml"
    command = re.compile(r"cmd: .*-m scripts\.(\w+)(?: (\$\{(?:item\.\w+|key)\}))?.*$", re.MULTILINE)
    pipeline.write_text(command.sub(lambda found: stand_in(tools, *found.groups()), pipeline.read_text()))
    (root / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(root / study.JOURNAL, ignore_errors=True)  # what the study committed here came to
    commit(root, "stand-ins")
    return root, tools / "ran.log"


@pytest.mark.slow
def test_arms_share_their_stages_and_a_second_call_runs_nothing(
    tmp_path: Path, clone_to: Callable[[Path], Path]
) -> None:
    root, log = stand_in_tree(tmp_path, clone_to)
    said = ablate(root, "--only", "sft,sft-dpo", "--seeds", "1,2")
    ran = Counter(log.read_text().split())
    assert (ran["ingest"], ran["evaluate@base"]) == (1, 1)
    assert (ran["sft@base"], ran["dpo@sft"], ran["evaluate@sft"], ran["evaluate@dpo"]) == (2, 2, 2, 2)
    assert "card" not in ran
    assert "| sft-dpo |" in said and "| base |" in said
    values = metrics.read(root / "reports/ablation.json")
    assert (values["sft-dpo_runs"], values["rows"], values["sft-dpo_seconds"], values["sft_seconds"]) == (
        2,
        40,
        180,
        60,
    )
    assert "<svg" in (root / "reports/ablation-methods.svg").read_text()
    files = sorted((root / study.JOURNAL).iterdir())
    kept = {file.name.rpartition("-")[0]: standings.read(file).outcomes for file in files}
    for seed in (1, 2):  # what DVC's run cache brought back took what it took
        alone, before = kept[f"ablation-sft-{seed}"]["sft"], kept[f"ablation-sft-dpo-{seed}"]["dpo"]
        assert alone.peak_gb["sft"] == before.peak_gb["sft"]
    assert len({outcomes[BASE].peak_gb["evaluate"] for outcomes in kept.values()}) == 1

    log.unlink()
    commit(root, "what is kept")
    files[0].unlink()  # as if killed before it was kept
    assert "3 of which have results" in ablate(root, "--only", "sft,sft-dpo", "--seeds", "1,2")
    assert "4 of which have results; 0 runs of stages to go" in ablate(root, "--only", "sft,sft-dpo", "--seeds", "1,2")
    assert {file.name.rpartition("-")[0]: standings.read(file).outcomes for file in files} == kept
    assert not log.exists()
    (root / "conf/sft/lora.yaml").write_text((root / "conf/sft/lora.yaml").read_text() + "# edited\n")
    assert "conf/sft/lora.yaml is edited: commit or stash it" in ablate(root, "--only", "sft", status=1)


def stand_in(tools: Path, script: str, item: str | None) -> str:
    return f"cmd: {sys.executable} {tools / 'stand_in.py'} {script}{f'@{item}' if item else ''}"


def ablate(root: Path, *arguments: str, status: int = 0) -> str:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, "-m", "commands.ablation", *arguments]
    result = subprocess.run(
        command, cwd=root, env=environment | {"PYTHONPATH": str(root)}, capture_output=True, text=True, check=False
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr
