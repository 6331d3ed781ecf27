"""Passes over shards: counted, resumed after a kill, the same on every executor, errors in one line."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from loguru._better_exceptions import ExceptionFormatter
from omegaconf import OmegaConf

from temper import executors, records, shards
from temper.records import Row

ROWS, SHARDS = 400, 8
RAY = {"kind": "ray", "workers": 2, "cpus_per_task": 1, "mem_per_cpu_gb": 1, "join_mem_gb": 1}


@dataclass
class Settings:
    seed: int


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TEMPER_SCRATCH", str(tmp_path / "scratch"))
    OmegaConf.save({"executor": {"kind": "local", "workers": 1}}, "params.yaml")
    for number in range(SHARDS):
        part = range(number * ROWS // SHARDS, (number + 1) * ROWS // SHARDS)
        records.write(f"data/in/{number:05d}.jsonl", ({"id": str(one), "n": one} for one in part))
    return tmp_path


def drop_sevenths(rows: Iterator[Row]) -> Iterator[Row]:
    return (row | {"reason": "seventh"} if row["n"] % 7 == 0 else row for row in rows)


def lose_sevenths(rows: Iterator[Row]) -> Iterator[Row]:
    return (row for row in rows if row["n"] % 7)


def check() -> None:
    kept = [row["n"] for row in shards.read("data/out")]
    rejected = [row["n"] for row in records.read("data/rejected/out.jsonl")]
    assert kept == [number for number in range(ROWS) if number % 7]
    assert rejected == list(range(0, ROWS, 7))
    assert [path.name for path in shards.paths("data/out")] == [path.name for path in shards.paths("data/in")]


@pytest.mark.parametrize("workers", [1, 2])
def test_rows_keep_their_order_and_shard_and_every_one_is_counted(workers: int) -> None:
    OmegaConf.save({"executor": {"kind": "local", "workers": workers}}, "params.yaml")
    counts = shards.balanced(shards.apply("out", drop_sevenths, "data/in", Settings(1)))
    assert counts == {"seen": ROWS, "kept": ROWS - 58, "rejected_seventh": 58}
    check()
    assert not list(Path("scratch").iterdir())


@pytest.mark.slow
def test_ray_makes_the_same_rows() -> None:
    OmegaConf.save({"executor": RAY}, "params.yaml")
    shards.apply("out", drop_sevenths, "data/in", Settings(1))
    check()


def test_a_vanished_row_is_noticed() -> None:
    with pytest.raises(AssertionError, match="50 rows read, 42 given back"):
        shards.apply("out", lose_sevenths, "data/in", Settings(1))
    with pytest.raises(AssertionError, match="3 rows seen, 1 kept, 1 rejected"):
        shards.balanced(shards.Counter({"seen": 3, "kept": 1, "rejected_x": 1}))


def test_one_task_may_write_several_shards_of_bounded_size() -> None:
    counts = shards.write("out", rows_of_task, ["00000.jsonl", "00001.jsonl"], Settings(1), [], shard_rows=30)
    assert counts["kept"] == 100
    sizes = {path.name: len(list(records.read(path))) for path in shards.paths("data/out")}
    assert sizes == {"00000-00000.jsonl": 30, "00000-00001.jsonl": 20, "00001-00000.jsonl": 30, "00001-00001.jsonl": 20}


def rows_of_task(rank: int) -> Iterator[Row]:
    return iter([{"id": f"{rank}-{number}"} for number in range(50)])


def even(rows: Iterator[Row]) -> Iterator[Row]:
    return (row | {"counts": ["even"] if row["n"] % 2 == 0 else []} for row in rows)


def test_what_a_row_wants_counted_is_counted_and_not_written() -> None:
    assert shards.apply("out", even, "data/in", Settings(1))["even"] == ROWS // 2
    assert all(row.keys() == {"id", "n"} for row in shards.read("data/out"))


def refuse(rows: Iterator[Row]) -> Iterator[Row]:
    raise SystemExit("data/in: wrong: mend it")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_users_mistake_ends_in_its_one_line_and_leaves_no_outs(workers: int) -> None:
    OmegaConf.save({"executor": {"kind": "local", "workers": workers}}, "params.yaml")
    with pytest.raises(SystemExit, match=r"^data/in: wrong: mend it$"):
        shards.apply("out", refuse, "data/in", Settings(1))
    assert not Path("data/out").exists()


def test_an_unknown_executor_is_named() -> None:
    OmegaConf.save({"executor": {"kind": "dask", "workers": 1}}, "params.yaml")
    with pytest.raises(SystemExit, match=r"executor\.kind is 'dask': choose one of local, ray, slurm"):
        executors.configured()


def slow_pass(log: Path, rows: Iterator[Row]) -> Iterator[Row]:
    for row in drop_sevenths(rows):
        with log.open("a") as out:
            out.write(f"{row['n']}\n")
        time.sleep(0.005)
        yield row


KILLED = """
from functools import partial
from pathlib import Path
from temper import shards
from tests.test_shards import Settings, slow_pass
shards.apply("out", partial(slow_pass, Path("seen.log")), "data/in", Settings(1))
"""


def test_killed_midway_it_goes_on_after_the_last_whole_shard() -> None:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", KILLED], env=environment, start_new_session=True)
    done = Path("scratch")
    while len(list(done.glob("*/completions/*"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("data/out").exists()
    finished = len(list(done.glob("*/completions/*")))
    Path("seen.log").unlink()
    counts = shards.apply("out", partial(slow_pass, Path("seen.log")), "data/in", Settings(1))
    check()
    assert counts["seen"] == ROWS
    assert len(Path("seen.log").read_text().splitlines()) == ROWS * (SHARDS - finished) // SHARDS


def test_killed_while_it_hands_over_its_shards_it_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_link", killed)
        with pytest.raises(KeyboardInterrupt):
            shards.apply("out", drop_sevenths, "data/in", Settings(1))
    counts = shards.balanced(shards.apply("out", drop_sevenths, "data/in", Settings(1)))
    assert counts["kept"] == ROWS - 58
    check()


SBATCH = """#!/bin/sh
# A scheduler of one machine: it runs the array's elements one after the other, then forgets the job.
for script; do :; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
for element in $(seq 0 "${last:--1}"); do
    SLURM_ARRAY_TASK_ID=$element SLURM_JOB_ID=1 SLURM_NODELIST=here bash "$script" >> "slurm-$element.out" 2>&1
done
echo Submitted batch job 1
"""


@pytest.fixture
def slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """An `executor` section for Slurm, whose commands here run on this machine."""
    commands = {
        "sbatch": SBATCH,
        "squeue": "#!/bin/sh\n",
        "srun": '#!/bin/sh\nshift 3\nexec "$@"\n',
        "scontrol": "#!/bin/sh\necho here\n",
    }
    install(folder, commands, monkeypatch)
    section = {"kind": "slurm", "workers": 4, "partition": "cpu", "time": "1:00:00", "cpus_per_task": 2}
    return section | {"mem_per_cpu_gb": 1, "join_mem_gb": 7, "max_array_size": 1001, "poll_seconds": 1}


def install(folder: Path, commands: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    tools = folder / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in commands.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


SLOW_SBATCH = """#!/bin/sh
# It says at once that it has the array, of which it then marks the tasks as done without running them: the first array last.
for script; do :; done
offset=$(echo "$@" | sed 's/.*RUN_OFFSET=\\([0-9]*\\).*/\\1/')
name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
done=$(sed -n 's/.*launch_pickled_pipeline \\(.*\\)executor.pik.*/\\1/p' "$script")completions
cp "$script" "script-$offset"
mkdir -p queue "$done"
echo "$name" > "queue/$offset"
(
    [ "$offset" = 0 ] && sleep 1
    for element in $(seq 0 "$last"); do touch "$done/$(printf %05d $((element + 2 * offset)))"; done
    rm "queue/$offset"
) > /dev/null 2>&1 &
echo Submitted batch job "$offset"
"""
SQUEUE = """#!/bin/sh
[ "$2" = --name ] && cat queue/* 2> /dev/null | grep -x "$3"
[ "$2" = --jobs ] && cat "queue/$3" 2> /dev/null
exit 0
"""


def test_every_array_of_a_large_step_is_waited_for(
    slurm: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder, {"sbatch": SLOW_SBATCH, "squeue": SQUEUE}, monkeypatch)
    executor = executors.Slurm(**slurm | {"max_array_size": 2, "poll_seconds": 0})
    executors.run(nothing, 6, folder / "many", executor)
    assert sorted(path.name for path in (folder / "many/completions").iterdir()) == [f"{rank:05d}" for rank in range(6)]
    assert "--mem-per-cpu=1G" in (folder / "script-2").read_text()


def test_a_step_of_one_task_gets_the_memory_to_join_what_others_found(
    slurm: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(folder, {"sbatch": SLOW_SBATCH, "squeue": SQUEUE}, monkeypatch)
    executors.run(nothing, 1, folder / "one", executors.Slurm(**slurm))
    assert "--mem-per-cpu=4G" in (folder / "script-0").read_text(), "7 GB for two CPUs"


def nothing(rank: int, world_size: int) -> None:
    pass


def test_tasks_ask_for_the_libraries_of_this_python_once_and_leave_nothing_frozen(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def found() -> list[str]:
        asked.append(1)
        return ["here"]

    monkeypatch.setattr(ExceptionFormatter, "_get_lib_dirs", staticmethod(found))
    executors._find_libraries_once.cache_clear()
    for name in ("first", "second"):
        executors.run(nothing, 3, folder / name, executors.Local("local", 1))
    assert asked == [1]
    assert gc.get_freeze_count() == 0
    executors._find_libraries_once.cache_clear()


@pytest.mark.slow
def test_slurm_gets_an_array_of_tasks_and_is_waited_for(slurm: dict[str, Any]) -> None:
    OmegaConf.save({"executor": slurm}, "params.yaml")
    shards.apply("out", drop_sevenths, "data/in", Settings(1))
    check()


@pytest.mark.slow
def test_a_stage_hands_its_work_to_processes_that_did_not_start_it(slurm: dict[str, Any]) -> None:
    shares = {"test": 0.2, "validation": 0.1, "preferences": 0.1, "rl": 0.0, "golden": 0.0, "seed": 1}
    OmegaConf.save({"executor": slurm, "split": shares}, "params.yaml")
    for number in range(2):
        rows = [
            {"id": f"{number}{one:02d}", "cluster": f"{number}{one:02d}", "category": "a", "messages": []}
            for one in range(20)
        ]
        records.write(f"data/pii/{number:05d}.jsonl", rows)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.split"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(list(shards.read("data/split"))) == 40
