"""The whole graph on the smoke preset with the real engines: killed in every stage, completed, swept, and searched for secrets."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from temper import graph

pytestmark = pytest.mark.engine

# Made here, so that the sources which the clone holds do not contain them.
SECRETS = {"HF_TOKEN": f"hf_{uuid.uuid4().hex}", "WANDB_API_KEY": f"{uuid.uuid4().hex}{uuid.uuid4().hex[:8]}"}
MARK = "TEMPER_TEST_RUN"
STAGES = [stage.name for stage in graph.stages()]


class Run:
    """A clone on the smoke preset, its commands and everything they printed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = uuid.uuid4().hex
        self.said: list[str] = []
        self.seen: set[psutil.Process] = set()
        self.environment = os.environ | SECRETS | {MARK: self.mark, "TEMPER_SCRATCH": str(root.parent / "scratch")}

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        log = (self.root.parent / "output.log").open("w")
        command = [sys.executable, "-m", *arguments]
        return subprocess.Popen(
            command, cwd=self.root, env=self.environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )

    def finish(self, process: "subprocess.Popen[str]") -> str:
        process.wait(timeout=1200)
        self.said.append((self.root.parent / "output.log").read_text())
        return self.said[-1]

    def complete(self, *arguments: str) -> str:
        process = self.start(*arguments)
        text = self.finish(process)
        assert process.returncode == 0, text[-3000:]
        return text

    def processes(self) -> list[psutil.Process]:
        """Every live process of this run: known by an environment variable that it inherits, or as the child of one.

        vLLM's workers rename themselves, which overwrites their environment where it can be read from outside.
        """
        marked = [process for process in psutil.process_iter() if self._is_marked(process)]
        self.seen.update(marked, *(_children(process) for process in marked))
        return [process for process in self.seen if _is_alive(process)]

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARK) == self.mark
        except psutil.Error:
            return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def stages_run(text: str) -> set[str]:
    return {line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage '")}


def waited(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def is_deep_in(run: Run, stage: str) -> bool:
    """Whether the work that a kill would lose or leave behind has begun: a checkpoint, a server."""
    if stage in ("sft", "dpo"):
        return any((run.root.parent / "scratch").glob(f"{stage}-*/**/checkpoint-*/trainer_state.json"))
    if stage.startswith("bench"):
        return any("VLLM::" in part for process in run.processes() for part in _command(process))
    return True


def kill_in(run: Run, stage: str) -> str:
    """Start the graph, SIGKILL the process of `stage` once it is at work, and return what was printed."""
    dvc = run.start("dvc", "repro", stage)
    script = f"scripts.{stage.partition('@')[0]}"

    def worker() -> psutil.Process | None:
        # dvc runs a command through a shell; the worker is the process whose own arguments hold the module's name.
        return next((p for p in run.processes() if script in _command(p)), None)

    assert waited(lambda: worker() is not None or dvc.poll() is not None, 300), f"{stage} never started"
    waited(lambda: is_deep_in(run, stage) or dvc.poll() is not None, 300)
    if process := worker():
        process.kill()
    return run.finish(dvc)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, clone_to: Callable[[Path], Path]) -> Iterator[Run]:
    root = tmp_path_factory.mktemp("pipeline") / "tree"
    clone_to(root)
    run = Run(root)
    run.complete("commands.compose", "experiment=smoke")
    (root / "dvc.lock").unlink(missing_ok=True)
    yield run
    for process in run.processes():
        process.kill()


def test_killed_in_every_stage_the_graph_still_completes(run: Run) -> None:
    resumed = {}
    for stage in STAGES:
        kill_in(run, stage)
        assert waited(lambda: not run.processes(), 20), f"{stage} left {run.processes()}"
        text = run.complete("dvc", "repro", stage)
        resumed[stage] = "resuming from step" in text
        assert (run.root / f"reports/timing/{stage.replace('@', '/')}.json").is_file()
    assert resumed["sft"]
    assert resumed["dpo"]
    assert "up to date" in run.complete("dvc", "repro")


def test_a_second_run_does_nothing(run: Run) -> None:
    assert stages_run(run.complete("dvc", "repro")) == set()


def test_the_summary_says_what_came_out(run: Run) -> None:
    text = run.complete("commands.summary")
    for word in ("kept", "loss", "base", "sft", "dpo", "tokens/s", "model-card.md", "report.html", "make chat"):
        assert word in text, word


def test_the_released_model_answers(run: Run) -> None:
    (run.root / "asked").write_text("What is the weather in Paris?\n")
    command = [sys.executable, "-m", "temper.envs", "run", "quantize", "-m", "commands.chat"]
    with (run.root / "asked").open() as asked:
        done = subprocess.run(
            command, cwd=run.root, env=run.environment, stdin=asked, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_no_row_vanishes(run: Run) -> None:
    from temper import metrics

    for stage in ("ingest", "dedup", "split", "contamination"):
        values = metrics.read(run.root / f"reports/{stage}.json")
        rejected = sum(value for key, value in values.items() if key.startswith("rejected_"))
        assert values["seen"] == values["kept"] + rejected, stage


def test_another_beta_trains_no_sft_and_is_tracked_offline(run: Run) -> None:
    commit(run.root)
    changes = ("experiment=smoke", "dpo.beta=0.2", "tracking=wandb-offline")
    text = run.complete("dvc", "exp", "run", *(part for change in changes for part in ("-S", change)))
    assert stages_run(text) == {"dpo", "quantize@gguf", "bench@bf16", "evaluate@dpo", "card"}
    assert list((run.root / "wandb").glob("offline-run-*/*.wandb"))


def commit(root: Path) -> None:
    """What a user does with a run worth keeping: experiments are compared with it."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "--all"], [*identity, "commit", "--quiet", "-m", "smoke run"]):
        subprocess.run(["git", *command], cwd=root, check=True)


def test_experiments_stand_side_by_side(run: Run) -> None:
    table = run.complete("commands.ablation")
    assert "dpo.beta" in table
    assert (run.root / "reports/ablation.md").is_file()


def test_no_secret_is_written_anywhere(run: Run) -> None:
    files = [path for path in run.root.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(files) > 100
    for secret in SECRETS.values():
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert not [text for text in run.said if secret in text]
