"""The data stages on many rows: cost and memory per row, and kills midway in each that lose and repeat none.

    TEMPER_TEST_DATA=… python -m benchmarks.scale [--rows 1000000] [--costly-rows 20000]

Writes reports/benchmarks/scale.json. Ingest, dedup, split and mix run on all rows. The stages that look into the text run on
`--costly-rows` and on twice as many: a row costs what the second half adds, and what is left is their start (models that are
loaded, scorers that are trained). Then all stages run on `--costly-rows` once more, each killed in every step that it has tasks
of, and must end with the same rows, kept and rejected. But for OVERRIDES, all run with conf/'s defaults: tokens counted, three
scorers, every pass of contamination.
The rows are those of benchmarks.dedup: sentences of real data sets, every fifth row an edited copy of another.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks import dedup
from commands import compose
from temper import hardware, metrics, records, shards

REPOSITORY = Path(__file__).resolve().parent.parent
FILES = 16
ALL_ROWS = ("ingest", "dedup", "split", "mix")
COSTLY = ("quality", "pii", "contamination")
STAGES = ("ingest", "dedup", "quality", "pii", "split", "contamination", "mix")
ONCE = {"ingest": 1, "dedup": 1}  # kills on all rows, where each costs what its tasks had done
# As many as a stage has steps of FILES tasks; of one task or none, `mix` is killed while it writes.
KILLS = {"ingest": 1, "dedup": 3, "quality": 3, "pii": 1, "split": 1, "contamination": 1, "mix": 1}
OVERRIDES = (
    "data=text",
    "ingest.null_share=0",
    "ingest.shard_rows=50000",
    "split.preferences=0.01",
    "split.test=0.01",
    "split.validation=0.01",
)


def main() -> None:
    arguments = parse()
    data = Path(os.environ.get("TEMPER_TEST_DATA") or sys.exit("TEMPER_TEST_DATA: set it to the folder of data sets"))
    if not (REPOSITORY / "models/base/tokenizer.json").is_file():
        sys.exit("models/base/tokenizer.json: ingest counts tokens with it: run `make base` first")
    if not (REPOSITORY / "data/general.jsonl").is_file():
        sys.exit("data/general.jsonl: contamination looks for its passages: run `make general` first")
    found: dict[str, Any] = {}
    whole = passed(data, arguments.rows, ALL_ROWS, ONCE)
    for stage in ALL_ROWS:
        found |= {f"{stage}_{key}": value for key, value in per_row(whole[stage], arguments.rows).items()}
    found |= whole["counts"] | {f"{stage}_tasks_kept_after_kill": whole[stage]["tasks_kept"] for stage in ONCE}
    half, all_of = (passed(data, rows, STAGES, {}) for rows in (arguments.costly_rows, 2 * arguments.costly_rows))
    killed = passed(data, arguments.costly_rows, STAGES, KILLS)
    found |= {"killed_" + key: value for key, value in compared(half["ends"], killed["ends"]).items()}
    found["kills"] = sum(KILLS.values())
    for stage in COSTLY:
        added = {key: max(0.0, value - half[stage][key]) for key, value in all_of[stage].items()}
        found |= {f"{stage}_{key}": value for key, value in per_row(added, arguments.costly_rows).items()}
        found[f"{stage}_peak_gb"] = all_of[stage]["peak_gb"]
        found[f"{stage}_start_cpu_seconds"] = max(0.0, half[stage]["cpu_seconds"] - added["cpu_seconds"])
    found |= {"machine": str(hardware.found()), "rows": arguments.rows, "costly_rows": arguments.costly_rows}
    found["overrides"] = " ".join(OVERRIDES)
    found["command"] = f"python -m benchmarks.scale --rows {arguments.rows} --costly-rows {arguments.costly_rows}"
    metrics.write(REPOSITORY / "reports/benchmarks/scale.json", found)
    for key in sorted(found):
        print(f"{key:36} {found[key]:.6g}" if isinstance(found[key], float) else f"{key:36} {found[key]}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the stages that move rows")
    parser.add_argument(
        "--costly-rows", type=int, default=20_000, help="and twice as many, of the stages that look into the text"
    )
    return parser.parse_args()


def passed(data: Path, rows: int, stages: Sequence[str], kills: Mapping[str, int]) -> dict[str, Any]:
    """What each of `stages` took for so many rows; as `counts`, what of the raw files dedup kept or rejected; and `ends`."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as name:
        folder = Path(name)
        prepare(data, rows, folder)
        figures: dict[str, Any] = {}
        for stage in STAGES:
            if stage in stages:
                figures[stage] = measured(stage, folder, kills.get(stage, 0))
            else:
                stand_in(folder, stage)
        return figures | {"counts": counted(folder, rows), "ends": ends(folder)}


def per_row(figures: dict[str, float], rows: int) -> dict[str, float]:
    return {
        "cpu_us_per_row": figures["cpu_seconds"] / rows * 1e6,
        "wall_us_per_row": figures["seconds"] / rows * 1e6,
        "bytes_per_row": figures["bytes"] / rows,
        "peak_gb": figures["peak_gb"],
    }


def prepare(data: Path, rows: int, folder: Path) -> None:
    """A place to run stages in: raw files, and params.yaml composed for them."""
    os.chdir(REPOSITORY)
    text = compose.composed(list(OVERRIDES))
    (folder / "raw").mkdir()
    (folder / "models").symlink_to(REPOSITORY / "models", target_is_directory=True)
    (folder / "params.yaml").write_text(text)
    (folder / "data").mkdir()
    (folder / "data/general.jsonl").symlink_to(REPOSITORY / "data/general.jsonl")
    files = [(folder / f"raw/{number:05d}.jsonl").open("wb") for number in range(FILES)]
    for position, (row, _, _) in enumerate(dedup.grow(data, rows, long_share=0.0)):
        said = " ".join(turn["content"] for turn in row["messages"])
        files[position * FILES // rows].write(records.line({"text": f"{position}: {said}"}))
    for out in files:
        out.close()
    os.chdir(folder)


def measured(stage: str, folder: Path, kills: int) -> dict[str, float]:
    """Seconds of CPU and of the clock, bytes of memory and disk; the run is ended and begun again so many times before."""
    started = time.monotonic()
    cpu = sum(run(stage, folder, FILES // 2 + number * FILES) for number in range(kills))
    done = tasks_done(folder)
    cpu += run(stage, folder)
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in (folder / f"data/{stage}").rglob("*") if path.is_file())
    timing = json.loads((folder / f"reports/timing/{stage}.json").read_text())
    return {
        "cpu_seconds": cpu,
        "seconds": seconds,
        "bytes": size,
        "peak_gb": timing["peak_memory_gb"],
        "tasks_kept": done,
    }


def run(stage: str, folder: Path, tasks: int | None = None) -> float:
    """CPU seconds of the stage's tree; with `tasks`, ended by SIGKILL once so many are done, or its outs begun."""
    shutil.rmtree(folder / f"data/{stage}", ignore_errors=True)  # as DVC does before a stage's command
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TEMPER_SCRATCH": str(folder / "scratch")}
    command = [sys.executable, "-m", f"scripts.{stage}"]
    with (folder / "stage.log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stderr=log, start_new_session=True)
        used = 0.0
        while process.poll() is None:
            used = max(used, tree_seconds(process.pid))
            if tasks and (tasks_done(folder) >= tasks or (folder / f"data/{stage}").exists()):
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02 if tasks else 0.1)
        log.seek(0)
        if process.returncode not in (0, -signal.SIGKILL):
            raise SystemExit(f"benchmarks.scale: {stage} failed: {log.read()[-2000:]}")
        if tasks and process.returncode == 0:
            raise SystemExit(f"benchmarks.scale: {stage} ended before it could be killed: raise the number of rows")
    return used


def tasks_done(folder: Path) -> int:
    return len(list((folder / "scratch").glob("**/completions/*")))


def tree_seconds(pid: int) -> float:
    """CPU seconds of a process and of all that it started, ended ones too."""
    try:
        root = psutil.Process(pid)
        times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(sum(one[:4]) for one in times)


def stand_in(folder: Path, stage: str) -> None:
    """The stage before it in its place, so that the next one has its input."""
    before = STAGES[STAGES.index(stage) - 1]
    (folder / f"data/{stage}").symlink_to(folder / f"data/{before}", target_is_directory=True)


def counted(folder: Path, rows: int) -> dict[str, int]:
    """Rows lost and repeated between the raw files and what dedup kept and rejected, after the kills."""
    seen = sorted(int(text.partition(":")[0]) for text in texts(folder))
    return {
        "lost": rows - len(set(seen)),
        "repeated": len(seen) - len(set(seen)),
        "lost_target": 0,
        "repeated_target": 0,
    }


def ends(folder: Path) -> Counter[tuple[str, str]]:
    """Where every row ended: (the file of data/mix or data/rejected, its id, or its place before it had one)."""
    files = [*(folder / "data/mix").glob("*.jsonl"), *(folder / "data/rejected").glob("*.jsonl")]
    return Counter((file.name, str(row.get("id") or row["place"])) for file in files for row in records.read(file))


def compared(whole: Counter[tuple[str, str]], killed: Counter[tuple[str, str]]) -> dict[str, int]:
    """Rows that only the run that was left alone ends with, and rows that only the killed one does."""
    return {"lost": (whole - killed).total(), "repeated": (killed - whole).total()}


def texts(folder: Path) -> Iterator[str]:
    for row in shards.read(folder / "data/dedup"):
        yield row["text"]
    for row in records.read(folder / "data/rejected/dedup.jsonl"):
        yield row["text"]


if __name__ == "__main__":
    main()
