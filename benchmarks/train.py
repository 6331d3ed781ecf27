"""Training speed: stage `sft` beside a plain TRL script and beside Axolotl by hand, what helps a CPU, GRPO's step, a sweep's cost.

    TEMPER_TEST_DATA=… python -m benchmarks.train [--parts sft hand cpu grpo sweep] [--rows 96] [--steps 2] [--repeats 3]

Writes reports/benchmarks/train.json after each part; a part whose figures are there by the same command is not measured again.
All that a part compares runs in turn, `--repeats` times, each as a process of its own; figures are medians. Rates are of training
loops alone, in tokens that are not padding.

sft    Short chats (Self-Instruct, up to 1,500 characters), one epoch, the same rows, model, LoRA, precision and threads. TRL pads
       to the longest row of a batch, in random order and grouped by length; the faster of them is the peer.
hand   The same rows; the YAML that the stage hands to Axolotl, started by `python -m axolotl.cli.train`.
cpu    Steps over packed rows of the default job (data/audit) in fp32, with one thing changed at a time.
grpo   Seconds a step of 32 answers from models/sft: rollouts by vLLM beside TRL's example, which generates in the training process.
sweep  Five betas of DPO through `dvc exp run --queue` on the smoke preset, beside the time of the stages that had to run.
"""

import argparse
import ctypes.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks import journal, quality
from commands import compose
from commands.contamination_drill import Scratch
from temper import envs, hardware, metrics, params, records, trl

REPOSITORY = Path(__file__).resolve().parent.parent
OUT = REPOSITORY / "reports/benchmarks/train.json"
LONGEST = 1500  # characters of a short chat: all fit one sequence
CLOCK = "TEMPER_BENCH_CLOCK"
PEERS = {
    "random": {"per_device_train_batch_size": 8},
    "grouped": {"per_device_train_batch_size": 8, "train_sampling_strategy": "group_by_length"},
    "grouped_16": {"per_device_train_batch_size": 16, "train_sampling_strategy": "group_by_length"},
}
LEVERS: dict[str, dict[str, Any]] = {
    "default": {},
    "one_thread": {"threads": 1},
    "eager": {"attention": "eager"},
    "labelled_logits": {"labelled": True},
    "documents": {"documents": True},
    "labelled_documents": {"labelled": True, "documents": True},
    "fused_adamw": {"optimizer": {"fused": True}},
    "no_denormals": {"denormals": False},
    "one_sequence": {"micro_batch": 1},
    "bf16_matmul": {"matmul": "medium"},
    "bf16": {"precision": "bf16"},
    "bf16_labelled_documents": {"precision": "bf16", "labelled": True, "documents": True},
}
KEPT = ("labelled_documents", "bf16_labelled_documents")  # what stage `sft` does with hardware=cpu and cpu-bf16
# Never give memory back to the kernel, which has to clear each page that it lends again. glibc maps what is over 32 MB by itself.
KEPT_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000", "MALLOC_TOP_PAD_": "67108864"}
BETAS = (0.5, 1.0, 2.0, 4.0, 8.0)
TARGETS = {
    "sft_times_peer": 2.0,
    "hand_times": 0.98,
    "cpu_times_default": 1.3,
    "grpo_times_peer": 1.5,
    "sweep_times_stages": 1.05,
}

Values = dict[str, Any]
Figures = dict[str, dict[str, float]]
"""By contender, what one run of it measured."""
Contenders = dict[str, Callable[[], Figures]]


def main() -> None:
    journal.run("benchmarks.train", OUT, PARTS, TARGETS, parsed())


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rows", type=int, default=96, help="of sft and hand")
    parser.add_argument("--steps", type=int, default=2, help="of cpu and grpo, without the first")
    parser.add_argument("--repeats", type=int, default=3, help="of all but sweep")
    parser.add_argument(
        "--hardware", default=hardware.found().preset, help="of sft, hand and grpo: a preset of conf/hardware"
    )
    parser.add_argument("--model", default="smollm2-135m", help="of conf/model; what models/base holds")
    return parser.parse_args()


def sft(arguments: argparse.Namespace) -> Values:
    with folder(arguments) as place:
        contenders: Contenders = {"ours": partial(ours, place), "peers": partial(peers, place)}
        found = in_turn(contenders, arguments.repeats)
    rates = {name: median(runs, "tokens_per_second") for name, runs in found.items()}
    same_tokens(found)
    times = {f"sft_times_{name}": rates["ours"] / rates[name] for name in PEERS}
    best = max(PEERS, key=lambda name: rates[name])
    about = {
        "sft_times_peer": times[f"sft_times_{best}"],
        "sft_peer": best,
        "sft_tokens": round(found["ours"][0]["tokens"]),
    }
    return spreads("sft", found) | times | about


def hand(arguments: argparse.Namespace) -> Values:
    with folder(arguments) as place:
        contenders: Contenders = {"ours": partial(ours, place), "hand": partial(by_hand, place)}
        found = in_turn(contenders, arguments.repeats)
    same_tokens(found)
    ours_rate, hand_rate = (median(found[name], "tokens_per_second") for name in ("ours", "hand"))
    return spreads("hand", found) | {"hand_times": ours_rate / hand_rate}


def cpu(arguments: argparse.Namespace) -> Values:
    """Every lever of LEVERS in one process, and in a process of their own those that are the environment's."""
    with folder(arguments) as place:
        contenders: Contenders = {"levers": partial(steps, place, arguments, LEVERS, {})}
        contenders |= {
            name: partial(steps, place, arguments, {name: {}}, set_) for name, set_ in environments().items()
        }
        found = in_turn(contenders, arguments.repeats)
    rates = {name: median(runs, "tokens_per_second") for name, runs in found.items()}
    times = {f"cpu_{name}_times_default": rate / rates["default"] for name, rate in rates.items() if name != "default"}
    losses = {f"cpu_{name}_loss": runs[0]["loss"] for name, runs in found.items()}
    kept = {"cpu_fp32_times_default": KEPT[0], "cpu_times_default": KEPT[1]}
    return spreads("cpu", found) | times | losses | {key: rates[name] / rates["default"] for key, name in kept.items()}


def grpo(arguments: argparse.Namespace) -> Values:
    start, prompts = (REPOSITORY / path for path in ("models/sft", "data/mix/preferences.jsonl"))
    if not ((start / "config.json").is_file() and prompts.is_file()):
        raise SystemExit(f"{start}: GRPO starts from the model of the default job: run `make sft` first")
    with folder(
        arguments, f"grpo.max_steps={arguments.steps + 1}", "grpo.global_batch=32", "grpo.rollouts=vllm"
    ) as place:
        (place / "data/mix").symlink_to(prompts.parent, target_is_directory=True)
        contenders: Contenders = {which: partial(answers, place, which) for which in ("ours", "peer")}
        found = in_turn(contenders, arguments.repeats)
    seconds = {which: median(runs, "seconds_per_step") for which, runs in found.items()}
    tokens = {f"grpo_{which}_completion_tokens": median(runs, "completion_tokens") for which, runs in found.items()}
    rates = {f"grpo_{which}_seconds_per_step": figure for which, figure in seconds.items()}
    return rates | tokens | {"grpo_times_peer": seconds["peer"] / seconds["ours"]}


def sweep(arguments: argparse.Namespace) -> Values:
    """What DVC adds: seconds of the whole sweep beside those of SFT, sampling, and five times DPO and evaluation."""
    # A seed that no earlier run had: nothing that is timed comes out of DVC's run cache.
    overrides = ["experiment=smoke", f"sft.seed={int(time.time())}"]
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        scratch = Scratch(Path(name) / "tree", overrides)
        scratch.must("audit")
        started = time.monotonic()
        given = [
            part for override in (*overrides, f"dpo.beta={','.join(map(str, BETAS))}") for part in ("-S", override)
        ]
        said = scratch_run(scratch, "exp", "run", "--queue", *given, "evaluate@dpo")
        said += scratch_run(scratch, "exp", "run", "--run-all")
        seconds = time.monotonic() - started
        took = [stage_seconds(scratch.root, commit) for commit in commits(scratch.root)]
    if len(took) != len(BETAS):
        raise SystemExit(
            f"benchmarks.train: {len(BETAS) - len(took)} of {len(BETAS)} runs of the sweep failed: {said[-3000:]}"
        )
    once = took[0]["training/sft"] + took[0]["training/preferences"]
    stages = once + sum(one["training/dpo"] + one["evaluate/dpo"] for one in took)
    extra = (seconds - stages) / len(BETAS)
    default = default_stages()
    return {
        "sweep_seconds": seconds,
        "sweep_stages_seconds": stages,
        "sweep_sft_runs": len(re.findall(r"Running stage 'sft@base'", said)),
        "sweep_extra_seconds_a_run": extra,
        "sweep_smoke_times_stages": seconds / stages,
        "sweep_default_stages_seconds": default,
        "sweep_times_stages": 1 + len(BETAS) * extra / default,
    }


@contextmanager
def folder(arguments: argparse.Namespace, *overrides: str) -> Iterator[Path]:
    """A place to train in: params.yaml composed for it, models/, and rows where stage `sft` reads them."""
    os.chdir(REPOSITORY)
    chosen = (
        f"hardware={arguments.hardware}",
        f"model={arguments.model}",
        "sft.epochs=1",
        "sft.evals=1",
        "sft.saves=1",
    )
    text = compose.composed([*chosen, *overrides])
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        place = Path(name)
        (place / "models").symlink_to(REPOSITORY / "models", target_is_directory=True)
        (place / "params.yaml").write_text(text)
        rows = short_chats(arguments.rows)
        records.write(place / "data/audit/train.jsonl", rows)
        records.write(place / "data/audit/validation.jsonl", rows[:2])
        yield place


def short_chats(count: int) -> list[records.Row]:
    sets = dict(quality.clean_sets(quality.data_folder()))
    short = [row for row in sets["self_instruct"] if sum(len(turn["content"]) for turn in row["messages"]) <= LONGEST]
    if len(short) < count:
        raise SystemExit(f"benchmarks.train: --rows {count}, and there are {len(short)} short chats: lower it")
    return short[:count]


def ours(place: Path) -> Figures:
    """The stage, in its environment as dvc.yaml starts it."""
    execute(place, [sys.executable, "-m", "temper.envs", "run", "train", "-m", "benchmarks.train_ours"])
    return {"ours": json.loads((place / "clock.json").read_text())}


def by_hand(place: Path) -> Figures:
    """The configuration that ours left, in folders of its own."""
    config = OmegaConf.load(place / "scratch/axolotl.yaml")
    config.output_dir, config.dataset_prepared_path = "hand/out", "hand/prepared"
    OmegaConf.save(config, place / "hand.yaml")
    execute(place, [str(envs.python("train")), "-m", "axolotl.cli.train", "hand.yaml"])
    return {"hand": json.loads((place / "clock.json").read_text())}


def answers(place: Path, which: str) -> Figures:
    module = ["-m", "benchmarks.train_grpo", which, "models/sft", "found.json"]
    execute(place, [sys.executable, "-m", "temper.envs", "run", "train", *module])
    return {which: json.loads((place / "found.json").read_text())}


def peers(place: Path) -> Figures:
    section = params.tree(place / "params.yaml")
    settings = common(section) | {"rows": "data/audit/train.jsonl", "variants": PEERS}
    settings |= {"attention": section.sft.attention, "bf16": section.sft.precision == "bf16"}
    return worker(place, "benchmarks.train_peer", settings, {})


def steps(place: Path, arguments: argparse.Namespace, levers: dict[str, Any], environment: dict[str, str]) -> Figures:
    section = params.tree(place / "params.yaml")
    rows = REPOSITORY / "data/audit/train.jsonl"
    if not rows.is_file():
        raise SystemExit(f"{rows}: the rows of the default job are missing: run `make audit` first")
    settings = common(section) | {"rows": str(rows), "length": section.sft.sequence_length, "steps": arguments.steps}
    settings |= {"micro_batch": section.sft.micro_batch, "levers": levers}
    return worker(place, "benchmarks.train_step", settings, environment)


def common(section: Any) -> Values:
    return {
        "model": "models/base",
        "lora": trl.lora(section.sft.lora),
        "threads": section.hardware.runtime.threads,
        "seed": section.sft.seed,
    }


def worker(place: Path, module: str, settings: Values, environment: dict[str, str]) -> Figures:
    """What `module` measures in the training environment."""
    (place / "settings.json").write_text(json.dumps(settings))
    execute(place, [str(envs.python("train")), "-m", module, "settings.json", "found.json"], environment)
    return json.loads((place / "found.json").read_text())


def execute(place: Path, command: list[str], environment: dict[str, str] | None = None) -> None:
    quiet = dict.fromkeys(("AXOLOTL_DO_NOT_TRACK", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    values = quiet | {"PYTHONPATH": str(REPOSITORY), CLOCK: str(place / "clock.json")} | (environment or {})
    result = subprocess.run(command, cwd=place, env=os.environ | values, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"benchmarks.train: {' '.join(command)}: {(result.stdout + result.stderr)[-3000:]}")


def environments() -> dict[str, dict[str, str]]:
    """Environment variables under which the default is measured; allocators where a library is found."""
    found = {
        "kept_memory": KEPT_MEMORY,
        "huge_pages": {"THP_MEM_ALLOC_ENABLE": "1"},
        "glibc_huge_pages": {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"},
    }
    libraries = {"jemalloc": "ray/core/libjemalloc.so", "tcmalloc": "libtcmalloc_minimal.so*", "iomp5": "libiomp5.so"}
    for name, pattern in libraries.items():
        if path := ctypes.util.find_library(Path(pattern).stem.removeprefix("lib")) or installed(pattern):
            found[name] = {"LD_PRELOAD": path}
    return found


def installed(pattern: str) -> str | None:
    """A shared library that some wheel of the environments carries."""
    return next((str(path) for path in sorted((envs.cache() / "envs").rglob(pattern))), None)


def in_turn(contenders: Contenders, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Every contender once, then all again, the first one last."""
    found: dict[str, list[dict[str, float]]] = {}
    names = list(contenders)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            for one, figures in contenders[name]().items():
                found.setdefault(one, []).append(figures)
                print(f"  {one}: {', '.join(f'{key} {value:.4g}' for key, value in figures.items())}", flush=True)
    return found


def median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def spreads(part: str, found: dict[str, list[dict[str, float]]]) -> Values:
    """The median rate of each contender, its slowest and fastest run, and its memory."""
    values: Values = {}
    for name, runs in found.items():
        rates = [run["tokens_per_second"] for run in runs]
        key = f"{part}_{name}_tokens_per_second"
        values |= {key: statistics.median(rates), f"{key}_least": min(rates), f"{key}_most": max(rates)}
        values[f"{part}_{name}_peak_gb"] = max(run["peak_gb"] for run in runs)
    return values


def same_tokens(found: dict[str, list[dict[str, float]]]) -> None:
    """Exit when contenders did not train on the same tokens: their rates would not be of the same work."""
    tokens = {name: run["tokens"] for name, runs in found.items() for run in runs}
    if max(tokens.values()) > 1.01 * min(tokens.values()):
        raise SystemExit(f"benchmarks.train: tokens differ: {tokens}")


def scratch_run(scratch: Scratch, *arguments: str) -> str:
    done = scratch.run("dvc", *arguments)
    if done.returncode:
        raise SystemExit(f"benchmarks.train: dvc {' '.join(arguments)}: {(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def commits(root: Path) -> list[str]:
    """Of the experiments that a clone holds."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        return [commit for found in repo.experiments.ls().values() for _, commit in found]


def stage_seconds(root: Path, commit: str) -> dict[str, float]:
    """By stage, as reports/timing/ of an experiment has them."""
    names = ("training/sft", "training/preferences", "training/dpo", "evaluate/dpo")
    show = [["git", "show", f"{commit}:reports/timing/{name}.json"] for name in names]
    said = [subprocess.run(one, cwd=root, capture_output=True, text=True, check=True).stdout for one in show]
    return {name: json.loads(text)["seconds"] for name, text in zip(names, said, strict=True)}


def default_stages() -> float:
    """Seconds of the same stages in the default job, by reports/timing/ of its last run."""
    timing = REPOSITORY / "reports/timing"
    seconds = {
        name: float(metrics.read(timing / f"{name}.json")["seconds"])
        for name in ("training/sft", "training/preferences", "training/dpo", "evaluate/dpo")
    }
    repeated = seconds["training/dpo"] + seconds["evaluate/dpo"]
    return seconds["training/sft"] + seconds["training/preferences"] + len(BETAS) * repeated


PARTS: dict[str, Callable[[argparse.Namespace], Values]] = {
    "sft": sft,
    "hand": hand,
    "cpu": cpu,
    "grpo": grpo,
    "sweep": sweep,
}


if __name__ == "__main__":
    main()
