"""The default job on public data that no package carries: a judge held against people, safety's public sets, public benchmarks.

    TEMPER_TEST_DATA=… python -m benchmarks.public [--parts judge safety scores] [--items 128]

Writes reports/benchmarks/public.json after each part; a part whose figures are there by the same command is not measured again.
Each runs the graph's own stages in a clone of HEAD, by presets that a user would name, and shares this repository's DVC cache: what
they do not reach comes from there, so `make repro` goes before.

judge   recipe=sft-dpo-judged: how often the recipe's reward model decides hh-rlhf's pairs as people did, whether that makes it a
        judge, and what it finds then; how often rewards put right answers first.
safety  probes=public: XSTest, StrongREJECT, AdvBench, BBQ and Winogender.
scores  evaluate=benchmarks contamination=files: GSM8K and IFEval, `--items` of each.
"""

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks import journal
from commands import compose
from commands.contamination_drill import Scratch
from temper import metrics

REPOSITORY = Path(__file__).resolve().parent.parent
OUT = REPOSITORY / "reports/benchmarks/public.json"
# Where the presets look for a file, by where TEMPER_TEST_DATA has it.
FILES = {
    "hh_rlhf/harmless-base.test.jsonl.gz": "raw/benchmarks/hh-rlhf-harmless-base.test.jsonl.gz",
    "xstest/xstest_prompts.csv": "probes/xstest_prompts.csv",
    "strongreject/strongreject_dataset.csv": "probes/strongreject_dataset.csv",
    "advbench/advbench_behaviors.csv": "probes/advbench_behaviors.csv",
    "bbq/Religion.jsonl.gz": "probes/Religion.jsonl.gz",
    "winogender/all_sentences.tsv": "probes/all_sentences.tsv",
    "gsm8k/test.jsonl": "raw/benchmarks/gsm8k.jsonl",
    "gsm8k/train.jsonl": "raw/benchmarks/gsm8k-train.jsonl",
    "ifeval/input_data.jsonl": "raw/benchmarks/ifeval.jsonl",
    "mt_bench/question.jsonl": "raw/benchmarks/mt_bench.jsonl",
    "humaneval/HumanEval.jsonl.gz": "raw/benchmarks/humaneval.jsonl.gz",
}
# Enough of each set that an interval says something; the defaults are for what runs with every job.
COUNTS = {"harmful": 640, "benign": 480, "bbq": 400, "winogender": 360}
SETS = ("xstest_safe", "xstest_unsafe", "strongreject", "advbench")
TRAINED, ASKED = ("sft", "dpo"), ("base", "dpo")

Values = dict[str, Any]


def main() -> None:
    arguments = parsed()
    os.chdir(REPOSITORY)
    data()
    journal.run("benchmarks.public", OUT, PARTS, {}, arguments)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--items", type=int, default=128, help="of each public benchmark")
    return parser.parse_args()


def data() -> Path:
    """The folder of data sets; exits naming what it lacks."""
    named = os.environ.get("TEMPER_TEST_DATA")
    if not named:
        raise SystemExit("TEMPER_TEST_DATA is not set: name the folder of the public data sets")
    folder = Path(named)
    if lacking := [name for name in FILES if not (folder / name).is_file()]:
        raise SystemExit(f"TEMPER_TEST_DATA={folder}: no {lacking[0]}: name the folder of the public data sets")
    return folder


def judge(_: argparse.Namespace) -> Values:
    with ran(["recipe=sft-dpo-judged"], "judge", "rewardbench") as reports:
        found = {f"judge_{name}": metrics.read(reports / f"judge/{name}.json") for name in TRAINED}
        found |= {
            f"judge_rewards_of_{name}": metrics.read(reports / f"rewardbench/{name}.json") for name in ("reward", "dpo")
        }
    return flat(found)


def safety(_: argparse.Namespace) -> Values:
    counts = [f"responses.limits.counts.{role}={count}" for role, count in COUNTS.items()]
    wanted = (*(f"set_{name}_" for name in SETS), "bbq_", "winogender_")
    with ran(["probes=public", *counts], "safety") as reports:
        found = {f"safety_{name}": metrics.read(reports / f"safety/{name}.json") for name in ASKED}
    return flat({name: {key: of[key] for key in of if key.startswith(wanted)} for name, of in found.items()})


def scores(arguments: argparse.Namespace) -> Values:
    chosen = ["evaluate=benchmarks", "contamination=files"]
    benchmarks = OmegaConf.create(compose.composed(chosen)).evaluate.benchmarks
    names = tuple(one.name for one in benchmarks)
    for one in benchmarks:
        one.limit = arguments.items
    with ran(chosen, "evaluate", benchmarks=OmegaConf.to_container(benchmarks)) as reports:
        found = {f"scores_{name}": metrics.read(reports / f"evaluate/{name}.json") for name in ("base", *TRAINED)}
    return flat({name: {key: of[key] for key in of if key.startswith(names)} for name, of in found.items()})


@contextmanager
def ran(overrides: list[str], *stages: str, benchmarks: Any = None) -> Iterator[Path]:
    """The reports of a run up to `stages`, in a clone that is there for the time of a block."""
    with tempfile.TemporaryDirectory(prefix="bench-public-") as folder:
        scratch = Scratch(Path(folder) / "tree", overrides)
        for name, place in FILES.items():
            (scratch.root / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data() / name, scratch.root / place)
        must(scratch, "commands.compose", *overrides)
        if benchmarks:  # Hydra replaces a list by a whole one, which a file says better than a command line.
            file = scratch.root / "params.yaml"
            settings = OmegaConf.load(file)
            settings.evaluate.benchmarks = benchmarks
            OmegaConf.save(settings, file)
        must(scratch, "dvc", "repro", *stages)
        yield scratch.root / "reports"


def must(scratch: Scratch, *module: str) -> None:
    done = scratch.run(*module)
    if done.returncode:
        raise SystemExit(f"benchmarks.public: {' '.join(module)}: {(done.stdout + done.stderr)[-3000:]}")


def flat(found: dict[str, Values]) -> Values:
    return {f"{name}_{key}": value for name, values in found.items() for key, value in values.items()}


PARTS: dict[str, journal.Part] = {"judge": judge, "safety": safety, "scores": scores}

if __name__ == "__main__":
    main()
