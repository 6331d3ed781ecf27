"""Datatrove's executors: the same tasks in processes of this machine, as a Slurm job array, or on Ray.

Which one is the `executor` section of params.yaml, tracked by no stage: it decides where a task runs, never what it makes.
"""

import gc
import hashlib
import importlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from temper import params

REPOSITORY = Path(__file__).resolve().parent.parent
Task = Callable[[int, int], None]
"""What one task does, given its rank and how many there are; picklable, and repeatable when it was killed half-way."""


@dataclass
class Local:
    kind: str
    workers: int
    """Processes."""


@dataclass
class Ray:
    kind: str
    workers: int
    cpus_per_task: int
    mem_per_cpu_gb: int
    join_mem_gb: int
    """Of a step's only task, which joins what the tasks of all shards found: it has more to hold than any of them."""


@dataclass
class Slurm:
    kind: str
    workers: int
    partition: str
    time: str
    """Of one task, as sbatch takes it."""
    cpus_per_task: int
    mem_per_cpu_gb: int
    join_mem_gb: int
    """Of a step's only task, which joins what the tasks of all shards found: it has more to hold than any of them."""
    max_array_size: int
    """Slurm's own MaxArraySize: more tasks than that become several arrays, one after the other."""
    poll_seconds: int
    """Between two looks at whether the job arrays are done."""


SCHEMAS: dict[str, type[Local | Ray | Slurm]] = {"local": Local, "ray": Ray, "slurm": Slurm}


def importable(main: Callable[[], None]) -> Callable[[], None]:
    """The `main` of a script under the name that a worker elsewhere imports: what it hands out must not lie in `__main__`."""
    spec = sys.modules["__main__"].__spec__
    if main.__module__ != "__main__" or spec is None:
        return main
    found: Callable[[], None] = getattr(importlib.import_module(spec.name), main.__name__)
    return found


def configured() -> Local | Ray | Slurm:
    """The `executor` section; exits naming the key that does not fit its kind."""
    kind = str(params.value("executor.kind"))
    if kind not in SCHEMAS:
        raise SystemExit(f"params.yaml: executor.kind is '{kind}': choose one of {', '.join(SCHEMAS)}")
    return params.load("executor", SCHEMAS[kind])


def run(task: Task, tasks: int, folder: Path, executor: Local | Ray | Slurm | None = None) -> None:
    """Run `task` for every rank in 0…tasks−1 that `folder` does not yet record as done, and record it there.

    A user's mistake in a task (SystemExit) is raised here with its message; any other failure with its log's place.
    """
    executor = executor or configured()
    folder.mkdir(parents=True, exist_ok=True)
    for failure in folder.glob("failed-*"):
        failure.unlink()
    steps: list[Any] = [_Step(task, folder)]
    try:
        with _stderr_to(folder / "stderr.log"):
            _run(steps, tasks, folder, executor)
    except RuntimeError:
        _raise_failure(folder)
        raise
    if missing := [rank for rank in range(tasks) if not _is_done(folder, rank)]:
        _raise_failure(folder)
        raise SystemExit(f"task {missing[0]} of {tasks} did not finish: see {folder}/stderr.log and {folder}/logs")


def forget(folder: Path) -> None:
    """Take back what `folder` records as done, before it is deleted: cut short, the deletion must not leave tasks to skip."""
    for completions in list(folder.rglob("completions")):
        shutil.rmtree(completions)


class _Step:
    """A Datatrove step that hands its rank to a task."""

    def __init__(self, task: Task, folder: Path) -> None:
        self.task, self.folder, self.place = task, folder.resolve(), Path.cwd()

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Any]:
        # A worker on another node starts elsewhere, and a stage's paths begin at the repository's root.
        os.chdir(self.place)
        try:
            self.task(rank, world_size)
        except SystemExit as error:
            # It would end the worker without a word, and leave the executor waiting for it.
            (self.folder / f"failed-{rank}").write_text(str(error))
            raise RuntimeError(f"task {rank}: {error}") from None
        return iter(())


def _run(steps: list[Any], tasks: int, folder: Path, executor: Local | Ray | Slurm) -> None:
    if isinstance(executor, Slurm):
        _run_on_slurm(steps, tasks, folder, executor)
    elif isinstance(executor, Ray):
        _run_on_ray(steps, tasks, folder, executor)
    else:
        _run_here(steps, tasks, folder, max(1, min(executor.workers, tasks)))


def _run_here(steps: list[Any], tasks: int, folder: Path, workers: int) -> None:
    from datatrove.executor import LocalPipelineExecutor

    _find_libraries_once()
    gc.freeze()  # what is there by now no worker has to look through, nor to copy the pages of
    try:
        # Forked, a worker starts at once; spawned, it imports Datatrove again, which takes longer than small data do.
        LocalPipelineExecutor(steps, tasks=tasks, workers=workers, logging_dir=str(folder), start_method="fork").run()
    finally:
        gc.unfreeze()


@cache
def _find_libraries_once() -> None:
    """Datatrove sets three loggers up for each task, and each asks anew where this Python has its libraries: 20 ms a task."""
    from loguru._better_exceptions import ExceptionFormatter

    found = ExceptionFormatter._get_lib_dirs()
    ExceptionFormatter._get_lib_dirs = staticmethod(lambda: found)  # type: ignore[method-assign]


def _run_on_ray(steps: list[Any], tasks: int, folder: Path, executor: Ray) -> None:
    import ray
    from datatrove.executor import RayPipelineExecutor

    # Workers on other nodes find the repository where this one has it: on the shared file system.
    environment = {"env_vars": {"PYTHONPATH": str(REPOSITORY)}}
    ray.init(ignore_reinit_error=True, runtime_env=environment, include_dashboard=False, log_to_driver=False)
    try:
        RayPipelineExecutor(
            steps,
            tasks=tasks,
            workers=min(executor.workers, tasks),
            cpus_per_task=executor.cpus_per_task,
            mem_per_cpu_gb=_mem_per_cpu_gb(tasks, executor),
            logging_dir=str(folder.resolve()),
        ).run()
    finally:
        ray.shutdown()


def _run_on_slurm(steps: list[Any], tasks: int, folder: Path, executor: Slurm) -> None:
    """Submit the job arrays and wait: Datatrove's own executor returns as soon as sbatch has taken them."""
    from datatrove.executor import SlurmPipelineExecutor

    # Datatrove tells the id of its last array only; all of them have the name.
    name = f"temper-{hashlib.sha256(bytes(folder.resolve())).hexdigest()[:16]}"
    job = SlurmPipelineExecutor(
        steps,
        tasks=tasks,
        time=executor.time,
        partition=executor.partition,
        workers=executor.workers,
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=_mem_per_cpu_gb(tasks, executor),
        max_array_size=executor.max_array_size,
        job_name=name,
        env_command=f"export PYTHONPATH={REPOSITORY} PATH={Path(sys.executable).parent}:$PATH",
        logging_dir=str(folder.resolve()),
        slurm_logs_folder=str(folder.resolve() / "slurm"),
        mail_type="NONE",
        qos="",
    )
    # It would submit one more job, which merges statistics that nobody reads in a folder that is gone by then.
    job.launch_merge_stats = _nothing
    job.run()
    while not all(_is_done(folder, rank) for rank in range(tasks)):
        if not _is_queued(name):
            return
        time.sleep(executor.poll_seconds)


def _nothing() -> None:
    pass


def _is_queued(name: str) -> bool:
    """Whether Slurm still knows of a task of the jobs of that name that waits or runs."""
    listed = subprocess.run(["squeue", "--noheader", "--name", name], capture_output=True, text=True, check=False)
    # A scheduler that does not answer knows no less of the jobs than before.
    return bool(listed.stdout.strip()) or listed.returncode != 0


def _mem_per_cpu_gb(tasks: int, executor: Ray | Slurm) -> int:
    own_task_gb = executor.join_mem_gb if tasks == 1 else 0
    return max(executor.mem_per_cpu_gb, -(-own_task_gb // executor.cpus_per_task))


def _is_done(folder: Path, rank: int) -> bool:
    return (folder / f"completions/{rank:05d}").is_file()


def _raise_failure(folder: Path) -> None:
    if failures := sorted(folder.glob("failed-*")):
        raise SystemExit(failures[0].read_text())


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Datatrove logs each task to stderr whatever its settings, and so do its workers, which inherit descriptor 2."""
    sys.stderr.flush()
    saved = os.dup(2)
    with path.open("a") as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
