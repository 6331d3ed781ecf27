"""Evaluation: the same scores as lm_eval by hand, its time, false verdicts, what the gate finds, and the openness class.

    TEMPER_TEST_DATA=… python -m benchmarks.evaluation [--parts equality time itself verdicts gate openness] [--draws 200] …

Writes reports/benchmarks/evaluation.json after each part; a part whose figures are there by the same command is not measured again.
`equality`, `time`, `itself` and `gate` need what `make repro` leaves; `openness` needs the Model Openness Tool's files in
TEMPER_TEST_DATA.

equality  Stage `evaluate` of the release beside `lm_eval run --model vllm` on the same task files, rows, engine and seeds: how many
          answers, scores and likelihoods differ, and by how much at most.
time      Stage `evaluate` of every variant but quants beside one `lm_eval run --model hf` for each, all tasks, both with all cores.
          Of hf the fastest of three ways on a few rows is the peer.
itself    The release against itself: its own answers to all test rows under SAMPLED seeds, of which a draw takes one for each
          variant of the matrix, all measures and pairs corrected together.
verdicts  The same of simulated answers, of which no draw shares one with another: as the matrix compares (one run of each), and as
          the ablation does (three seeds of each that differ in how well they came out): how many draws say better, and worse.
gate      The run as it is, then regressions planted one at a time (benchmarks/regressions.py).
openness  Files of every class, judged by temper.openness and by the tool's published rules (benchmarks/openness.py).
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import journal, regressions
from benchmarks import openness as rules
from commands import compose
from temper import (
    comparisons,
    envs,
    evaluation_matrix,
    harness,
    intervals,
    metrics,
    openness,
    params,
    recipe,
    records,
)
from temper.comparisons import BETTER, WORSE
from temper.evaluation_matrix import Evaluated
from temper.records import Row

REPOSITORY = Path(__file__).resolve().parent.parent
OUT = REPOSITORY / "reports/benchmarks/evaluation.json"
SEED = 17
CONFIDENCE = 0.95
PARTS_BY_HAND = (
    harness.SCORED,
    harness.LIKELIHOODS,
    (harness.GOLDEN,),
)  # as the stage asks them, so that no batch differs
PROBED = 16  # rows on which the peer is chosen
HF = {
    "auto": ["--model_args", "dtype=auto", "--batch_size", "1"],
    "float32": ["--model_args", "dtype=float32", "--batch_size", "1"],
    "float32_batches": ["--model_args", "dtype=float32", "--batch_size", "16"],
}
SPREADS = (0.0, 0.2, 0.4)  # between seeds of a training, in logits
SEEDS = 3
SAMPLED = 24
TARGETS = {
    "equality_differing": 0,
    "time_times": 3.0,
    "itself_better": 0.05,
    "verdicts_better_most": 0.05,
    "gate_missed": 0,
    "gate_clean_failed": 0,
    "openness_differing": 0,
}
Values = dict[str, Any]


def main() -> None:
    journal.run("benchmarks.evaluation", OUT, PARTS, TARGETS, parsed())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=int, default=None, help="of equality and time: of each set; all without it")
    parser.add_argument("--draws", type=int, default=200, help="of itself, and of verdicts for each way of comparing")
    parser.add_argument("--files", type=int, default=2000, help="of openness")
    return parser.parse_args()


# Scores and time


def equality(arguments: argparse.Namespace) -> Values:
    with place(arguments.rows) as root:
        name = recipe.load().release
        ours(root, name)
        write_tasks(root, name)
        engine = json.loads((root / "tasks/engine.json").read_text())
        model = [
            *pairs({"pretrained": f"models/{name}", "add_bos_token": False} | engine),
            "--batch_size",
            str(harness.AT_ONCE),
        ]
        for tasks in parts_by_hand(root):
            by_hand(root, "out", tasks, "--model", "vllm", "--model_args", *model)
        differences = [*answers_apart(root, name), *likelihoods_apart(root, name)]
    return {
        "equality_compared": len(differences),
        "equality_differing": sum(one > 0 for one in differences),
        "equality_most": max(differences),
    }


def parts_by_hand(root: Path) -> list[list[str]]:
    """The tasks that have rows, by what is asked together."""
    parts = ([task for task in part if (root / f"tasks/{task}.yaml").is_file()] for part in PARTS_BY_HAND)
    return [part for part in parts if part]


def answers_apart(root: Path, name: str) -> Iterator[float]:
    """How far each score of each row is from the one by hand; 1 where the answer is another."""
    written = {measure: measure for measure in ("exact", "valid_json", "argument_f1")}
    for task, file, measures in (
        ("call", f"{name}.jsonl", written),
        ("golden", f"{name}-golden.jsonl", written),
        ("abstain", f"{name}.jsonl", {"abstain": "acc"}),
        ("choose", f"{name}.jsonl", {"choose": "acc", "choose_norm": "acc_norm"}),
    ):
        theirs = logged(root / "out", task)
        rows = [row for row in records.read(root / f"data/evaluate/{file}") if measures.keys() <= row.keys()]
        check_same(task, {row["id"] for row in rows}, set(theirs))
        for row in rows:
            found = theirs[row["id"]]
            yield from (abs(float(row[ours_]) - float(found[hand])) for ours_, hand in measures.items())
            if measures is written:
                yield float(row["output"] != found["filtered_resps"][0])


def likelihoods_apart(root: Path, name: str) -> Iterator[float]:
    """Of each text the difference in bits, beyond the decimals that the stage keeps."""
    rows = list(records.read(root / f"data/evaluate/{name}-likelihoods.jsonl"))
    for task in harness.LIKELIHOODS:
        theirs, ours_ = logged(root / "out", task), {row["id"]: row for row in rows if row["task"] == task}
        check_same(task, set(ours_), set(theirs))
        for key, row in ours_.items():
            nats, size = theirs[key]["bits_per_byte"]
            yield abs(row["bits"] - round(-nats / math.log(2), harness.DECIMALS))
            yield abs(row["bytes"] - size)


def check_same(task: str, ours_: set[str], theirs: set[str]) -> None:
    if ours_ != theirs:
        raise SystemExit(
            f"benchmarks.evaluation: {task}: other rows were asked: {len(ours_ ^ theirs)} of one side alone"
        )


def logged(folder: Path, task: str) -> dict[str, Row]:
    """lm_eval's samples by the row's id."""
    return {one["doc"]["id"]: one for file in folder.rglob(f"samples_{task}_*.jsonl") for one in records.read(file)}


def duration(arguments: argparse.Namespace) -> Values:
    with place(arguments.rows) as root:
        found = recipe.load()
        variants = [name for name in found.variants if name not in found.formats]
        write_tasks(root, variants[0])
        tasks = [task for part in parts_by_hand(root) for task in part]
        borrow(root)
        probes = {way: transformers(root, variants[-1], tasks, way, PROBED) for way in HF}
        peer = min(probes, key=lambda way: probes[way])
        ours_seconds = {name: ours(root, name) for name in variants}
        theirs = {name: transformers(root, name, tasks, peer, None) for name in variants}
    return {
        **{f"time_ours_{name}_seconds": seconds for name, seconds in ours_seconds.items()},
        **{f"time_hf_{name}_seconds": seconds for name, seconds in theirs.items()},
        **{f"time_probe_{way}_seconds": seconds for way, seconds in probes.items()},
        "time_hf": peer,
        "time_rows": arguments.rows,
        "time_ours_seconds": sum(ours_seconds.values()),
        "time_hf_seconds": sum(theirs.values()),
        "time_times": sum(theirs.values()) / sum(ours_seconds.values()),
    }


def transformers(root: Path, name: str, tasks: Sequence[str], way: str, limit: int | None) -> float:
    """Seconds of one lm_eval process over transformers."""
    named, dtype, *more = HF[way]
    some = ["--limit", str(limit)] if limit else []
    model = [named, f"pretrained=models/{name},{dtype}", *more, "--device", "cpu"]
    return by_hand(root, f"hf/{name}-{way}-{limit}", tasks, "--model", "hf", *model, *some)


def borrow(root: Path) -> None:
    """What lm_eval over transformers imports besides, and the environment `serve` has not: out of `train`."""
    for path in envs.path("train").glob("lib/python3*/site-packages/accelerate*"):
        (root / path.name).symlink_to(path)


@contextmanager
def place(rows: int | None) -> Iterator[Path]:
    """A folder, to be in, with the run's models and rows and settings composed with `rows` of each set; its reports are its own."""
    needed = ("data/mix/test.jsonl", "data/mix/golden.jsonl", "data/general.jsonl", "models")
    if missing := [name for name in needed if not (REPOSITORY / name).exists()]:
        raise SystemExit(f"{REPOSITORY / missing[0]}: missing: run `make repro` first")
    with chdir(REPOSITORY):
        text = compose.composed([f"evaluate.limit={'null' if rows is None else rows}"])
    with tempfile.TemporaryDirectory(prefix="bench-evaluation-") as name:
        root = Path(name)
        (root / "data").mkdir()
        for link in ("models", "data/mix", "data/general.jsonl", "requirements"):
            (root / link).symlink_to(REPOSITORY / link)
        (root / "params.yaml").write_text(text)
        with chdir(root):
            yield root


def ours(root: Path, name: str) -> float:
    """Seconds of the stage."""
    return execute(root, ["-m", "scripts.evaluate", name])


def write_tasks(root: Path, name: str) -> None:
    if not (root / "tasks").is_dir():
        (root / "tasks").mkdir()
        execute(root, ["-m", "benchmarks.evaluation_tasks", "write", f"models/{name}", str(root / "tasks")])


def by_hand(root: Path, out: str, tasks: Sequence[str], *model: str) -> float:
    """Seconds of lm_eval's own command line, its samples written to `out`."""
    seeds = ["--seed", str(params.value("evaluate.seed"))]
    what = ["--tasks", ",".join(tasks), "--include_path", "tasks", "--log_samples", "--output_path", out]
    return execute(root, ["-m", "benchmarks.evaluation_tasks", "run", *model, *what, *seeds])


def pairs(values: dict[str, Any]) -> list[str]:
    """Arguments of a model as lm_eval's command line takes them."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def execute(root: Path, arguments: Sequence[str]) -> float:
    """Seconds of a command in the environment `serve`."""
    quiet = {
        "PYTHONPATH": f"{REPOSITORY}:{root}",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "LMEVAL_LOG_LEVEL": "ERROR",
    }
    quiet |= {"HF_DATASETS_CACHE": str(root / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "temper.envs", "run", "serve", *arguments]
    started = time.monotonic()
    result = subprocess.run(command, cwd=root, env=os.environ | quiet, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"benchmarks.evaluation: {' '.join(arguments)}: {(result.stdout + result.stderr)[-3000:]}")
    seconds = time.monotonic() - started
    print(f"  {' '.join(arguments)[:100]}: {seconds:.1f} s", flush=True)
    return seconds


# Verdicts


def itself(arguments: argparse.Namespace) -> Values:
    generator, found = np.random.default_rng(SEED), recipe.load(REPOSITORY / "params.yaml")
    with place(arguments.rows) as root:
        execute(root, ["-m", "benchmarks.evaluation_answers", f"models/{found.release}", str(SAMPLED), "answers.jsonl"])
        answered = list(records.read(root / "answers.jsonl"))
    right = np.array([[one["exact"] for one in row["seeds"]] for row in answered]).mean(axis=0)
    values: Values = {"itself_draws": arguments.draws, "itself_rows": len(answered), "itself_seeds": SAMPLED}
    values |= {"itself_exact_least": right.min(), "itself_exact_most": right.max()}
    drawn = [set(redrawn(generator, found, answered)) for _ in range(arguments.draws)]
    for word in (BETTER, WORSE):
        values |= intervals.rate(f"itself_{word}", [word in outcomes for outcomes in drawn], CONFIDENCE)
    return values


def redrawn(generator: np.random.Generator, found: recipe.Recipe, answered: Sequence[Row]) -> list[str]:
    """Every verdict of a matrix whose variants are one model under as many seeds."""
    seeds = generator.choice(SAMPLED, len(found.variants), replace=False)
    drawn = {
        name: Evaluated([{"id": row["id"], "gold": row["gold"]} | row["seeds"][seed] for row in answered])
        for name, seed in zip(found.variants, seeds, strict=True)
    }
    return [one.outcome for one in evaluation_matrix.judged(found, drawn, [], CONFIDENCE, SEED).values()]


def verdicts(arguments: argparse.Namespace) -> Values:
    generator = np.random.default_rng(SEED)
    ways: dict[str, Callable[[], list[str]]] = {"matrix": lambda: matrix(generator)}
    ways |= {f"seeds_{spread:g}": lambda spread=spread: [seeded(generator, spread)] for spread in SPREADS}  # type: ignore[misc]
    values: Values = {"verdicts_draws": arguments.draws}
    for way, outcomes in ways.items():
        found = [outcomes() for _ in range(arguments.draws)]
        for word in (BETTER, WORSE):
            wrong = [word in one for one in found]
            values |= intervals.rate(f"verdicts_{way}_{word}", wrong, CONFIDENCE)
    most = max(values[f"verdicts_{way}_{BETTER}"] for way in ways)
    return values | {"verdicts_better_most": most}


def matrix(generator: np.random.Generator) -> list[str]:
    """Every verdict of an evaluation matrix whose variants are one model, sampled again for each."""
    found = recipe.load(REPOSITORY / "params.yaml")
    report = metrics.read(REPOSITORY / f"reports/evaluate/{found.release}.json")
    chances = rows(generator, report)
    drawn = {name: Evaluated([answer(generator, *row) for row in chances]) for name in found.variants}
    return [one.outcome for one in evaluation_matrix.judged(found, drawn, [], CONFIDENCE, SEED).values()]


def rows(generator: np.random.Generator, report: dict[str, Any]) -> list[tuple[str, bool, float]]:
    """(id, whether a call is right, chance of an exact answer): as many as the release was tested on, and as hard on average."""
    counts = {True: int(report["call_n"]), False: int(report["null_n"])}
    means = {True: float(report["call_exact"]), False: float(report["null_exact"])}
    kinds = [is_call for is_call, count in counts.items() for _ in range(count)]
    return [(str(number), kind, chance(generator, means[kind])) for number, kind in enumerate(kinds)]


def chance(generator: np.random.Generator, mean: float) -> float:
    """Of a row: rows differ as a Beta distribution of weight 2 does, many nearly always or nearly never right."""
    mean = min(max(mean, 0.02), 0.98)
    return float(generator.beta(2 * mean, 2 * (1 - mean)))


def answer(generator: np.random.Generator, name: str, is_call: bool, right: float) -> Row:
    """One sampled answer: exact, or wrong in part of its arguments, or in its form; and what is likelier, as often right."""
    exact = bool(generator.random() < right)
    valid = exact or bool(generator.random() < 0.9)
    partial = float(generator.choice([0.0, 0.5, 0.8])) if is_call and valid else 0.0
    gold = {"name": "f"} if is_call else None
    likelier = {key: bool(generator.random() < right) for key in ("abstain", *(("choose",) if is_call else ()))}
    scores: Row = {"exact": exact, "valid_json": valid, "argument_f1": 1.0 if exact else partial} | likelier
    return {"id": name, "gold": gold} | scores


def seeded(generator: np.random.Generator, spread: float) -> str:
    """The verdict on three trainings against three more of the same."""
    report = metrics.read(REPOSITORY / f"reports/evaluate/{recipe.load(REPOSITORY / 'params.yaml').release}.json")
    hard = np.array([[right for *_, right in rows(generator, report)]])
    logits = np.log(np.clip(hard, 1e-6, 1 - 1e-6) / np.clip(1 - hard, 1e-6, 1 - 1e-6))

    def runs() -> np.ndarray:
        moved = 1 / (1 + np.exp(-logits - generator.normal(0, spread, (SEEDS, 1))))
        return (generator.random(moved.shape) < moved).astype(float)

    one = comparisons.difference(runs(), runs(), CONFIDENCE, SEED)
    return comparisons.judged({"": one}, CONFIDENCE)[""].outcome


# The gate


def gated(_: argparse.Namespace) -> Values:
    found: dict[str, set[str]] = {}
    expected: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as name:
        clean = Path(name) / "clean"
        copied(clean)
        with chdir(clean):
            failed = regressions.failed()
            cases = regressions.planted()
        for number, (what, (begins, plant)) in enumerate(cases.items()):
            tree = Path(name) / str(number)
            shutil.copytree(clean, tree)
            with chdir(tree):
                plant()
                found[what], expected[what] = regressions.failed(), begins
    caught = {what: any(check.startswith(expected[what]) for check in checks) for what, checks in found.items()}
    slug = {what: what.replace(",", "").replace(" ", "_") for what in caught}
    return {
        **{f"gate_found_{slug[what]}": is_caught for what, is_caught in caught.items()},
        "gate_planted": len(caught),
        "gate_missed": sum(not is_caught for is_caught in caught.values()),
        "gate_clean_failed": len(failed),
    }


def copied(target: Path) -> None:
    """What the gate reads of the run, with what a first release lacks."""
    name = recipe.load(REPOSITORY / "params.yaml").release
    for path, what in ((f"data/evaluate/{name}-golden.jsonl", "golden rows"), (f"data/safety/{name}.jsonl", "probes")):
        if not (REPOSITORY / path).is_file():
            raise SystemExit(f"{REPOSITORY / path}: no answers of {name} to {what}: run `make repro` first")
    regressions.copy(REPOSITORY, target)
    with chdir(target):
        regressions.prepare()


# Openness


def classes(arguments: argparse.Namespace) -> Values:
    named = os.environ.get("TEMPER_TEST_DATA", "")
    folder = Path(named) / "mot_schema"
    if not named or not folder.is_dir():
        raise SystemExit("TEMPER_TEST_DATA names no folder with mot_schema: set it to the data sets' folder")
    reference, generator = rules.reference(folder), np.random.default_rng(SEED)
    reached = dict.fromkeys((0, 1, 2, 3), 0)
    differing = 0
    for number in range(arguments.files):
        release = rules.release(generator, number % 4)
        found, wanted = openness.assess(release).reached, reference(release)
        reached[wanted] += 1
        differing += found != wanted
    if few := [level for level, count in reached.items() if count < arguments.files / 40]:
        raise SystemExit(f"benchmarks.evaluation: {reached[few[0]]} files of class {few[0]}: raise --files")
    counts = {f"openness_class_{level}": count for level, count in reached.items()}
    return counts | {"openness_files": arguments.files, "openness_differing": differing}


PARTS: dict[str, Callable[[argparse.Namespace], Values]] = {
    "equality": equality,
    "time": duration,
    "itself": itself,
    "verdicts": verdicts,
    "gate": gated,
    "openness": classes,
}


if __name__ == "__main__":
    main()
