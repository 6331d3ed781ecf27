"""The whole graph on the smoke preset with the real engines: killed in every stage, completed, swept, and searched for secrets."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
import pytest

from commands import verify
from temper import graph

pytestmark = pytest.mark.engine

# Made here, so that the sources which the clone holds do not contain them.
SECRETS = {"HF_TOKEN": f"hf_{uuid.uuid4().hex}", "WANDB_API_KEY": f"{uuid.uuid4().hex}{uuid.uuid4().hex[:8]}"}
MARK = "TEMPER_TEST_RUN"
# The smoke preset measures one server.
STAGES = [stage for stage in graph.stages() if stage.script != "bench" or stage.name == "bench@bf16"]
# Of data, training, sampling, quants, a draft, a server and an evaluation one each; all of them write before they end.
EXAMPLES = (
    "ingest",
    "sft@base",
    "preferences@sft",
    "dpo@sft",
    "quantize@gguf",
    "draft@eagle3",
    "bench@bf16",
    "evaluate@dpo",
)
AT_WORK_SECONDS = 15  # when a stage is killed that has written nothing yet: vLLM and its workers are starting


class Run:
    """A clone on the smoke preset, its commands and everything they printed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mark = uuid.uuid4().hex
        self.said: list[str] = []
        self.seen: set[psutil.Process] = set()
        self.scratch = root.parent / "scratch"
        self.environment = os.environ | SECRETS | {MARK: self.mark, "TEMPER_SCRATCH": str(self.scratch)}
        # DVC runs commands by $SHELL, and by /bin/sh without it: what leaves a shell between itself and the stage.
        self.environment.pop("SHELL", None)

    def start(self, *arguments: str, program: Sequence[str] = (sys.executable, "-m")) -> "subprocess.Popen[str]":
        with (self.root.parent / "output.log").open("w") as log:
            return subprocess.Popen(
                [*program, *arguments], cwd=self.root, env=self.environment, stdout=log, stderr=log, text=True
            )

    def finish(self, process: "subprocess.Popen[str]") -> str:
        process.wait(timeout=1200)
        self.said.append((self.root.parent / "output.log").read_text())
        return self.said[-1]

    def complete(self, *arguments: str, program: Sequence[str] = (sys.executable, "-m")) -> str:
        process = self.start(*arguments, program=program)
        text = self.finish(process)
        assert process.returncode == 0, text[-3000:]
        return text

    def forget(self) -> None:
        """Take back whatever the graph has made."""
        (self.root / "dvc.lock").unlink(missing_ok=True)
        for cache in ("runs", "files"):
            shutil.rmtree(self.root / ".dvc/cache" / cache, ignore_errors=True)

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


def waited(condition: Callable[[], object], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_at_work(run: Run, stage: graph.Stage) -> bool:
    """Whether there is something that a kill would lose or leave behind: a checkpoint, a server, a part of an out."""
    if stage.script in ("sft", "dpo"):
        return any(run.scratch.glob(f"{stage.script}-*/**/checkpoint-*/trainer_state.json"))
    if stage.script == "bench":
        return any("VLLM::" in part for process in run.processes() for part in _command(process))
    try:
        begun = any(path.is_file() and path.suffix != ".lock" for path in run.scratch.rglob("*"))
    except FileNotFoundError:
        return True  # It was there, and is being removed.
    return begun or any((run.root / out).exists() for out in stage.outs)


def kill_in(run: Run, stage: graph.Stage, victim: str) -> tuple[bool, str]:
    """Start the graph, and SIGKILL the `victim` (stage or dvc) once `stage` is at work; whether that struck, and what was said.

    A short stage may end between being seen at work and being stopped.
    """
    dvc = run.start("dvc", "repro", stage.name)
    module = stage.cmd.rpartition(" -m ")[2].split()

    def worker() -> psutil.Process | None:
        # The first whose own arguments end in the module's name and its item: its forks have them too.
        found = [process for process in run.processes() if _command(process)[-len(module) :] == module]
        return min(found, key=lambda process: process.create_time(), default=None)

    # DVC removes a stage's outs before its command, so one that is seen after this is of this run.
    begun: set[str] = set()
    while not waited(lambda: worker() or dvc.poll() is not None, 300):
        before, begun = begun, stages_run((run.root.parent / "output.log").read_text())
        assert begun > before, f"{stage.name} never started"
    process = worker()
    assert process, f"{stage.name} ended before it was seen: {run.finish(dvc)[-1000:]}"
    patience = 300 if stage.script in ("sft", "dpo", "bench") else AT_WORK_SECONDS
    waited(lambda: not _is_alive(process) or is_at_work(run, stage), patience)
    with contextlib.suppress(psutil.NoSuchProcess):
        struck = process if victim == "stage" else psutil.Process(dvc.pid)
        struck.suspend()
        run.processes()  # Its children are noted while they can be told by it.
        struck.kill()
    said = run.finish(dvc)
    return dvc.returncode != 0, said


def resumed(said: str) -> set[str]:
    """The stages that went on from a checkpoint."""
    parts = said.split("Running stage '")[1:]
    return {part.partition("'")[0] for part in parts if "resuming from step" in part}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, clone_to: Callable[[Path], Path]) -> Iterator[Run]:
    root = tmp_path_factory.mktemp("pipeline") / "tree"
    clone_to(root)
    run = Run(root)
    run.complete("commands.compose", "experiment=smoke")
    yield run
    for process in run.processes():
        process.kill()


@pytest.mark.parametrize(
    "killed",
    [[stage for stage in STAGES if stage.name in EXAMPLES], pytest.param(STAGES, marks=pytest.mark.exhaustive)],
    ids=["of each kind", "every"],
)
def test_killed_in_stages_the_graph_still_completes(run: Run, killed: list[graph.Stage]) -> None:
    run.forget()
    missed, went_on = [], set()
    for stage in killed:
        # The server of `bench` has most processes of its own: there DVC dies, too. What was killed before is completed on the way.
        for victim in ("stage", "dvc") if stage.script == "bench" else ("stage",):
            struck, said = kill_in(run, stage, victim)
            went_on |= resumed(said)
            if not struck:
                missed.append(stage.name)
            assert waited(lambda: not run.processes(), 20), (
                f"{victim} killed in {stage.name}: {run.processes()} is left"
            )
    went_on |= resumed(run.complete("dvc", "repro"))
    assert len(missed) <= len(killed) // 8, missed  # the gate and the scorecard write last of all they do
    assert went_on >= {"sft@base", "dpo@sft"}
    assert all(
        (run.root / out).is_file() for stage in STAGES for out in stage.outs if out.startswith("reports/timing/")
    )
    assert "up to date" in run.complete("dvc", "repro")


def test_a_second_make_repro_does_nothing(run: Run) -> None:
    started = time.monotonic()
    text = run.complete("repro", program=["make", "--no-print-directory"])
    assert stages_run(text) == set()
    assert "up to date" in text
    assert time.monotonic() - started < 60


def test_a_tracked_run_of_one_piece_makes_what_the_killed_one_made(run: Run) -> None:
    killed = outs_of(run, "sft@base")
    run.complete("commands.compose", "experiment=smoke", "tracking=wandb-offline")
    assert stages_run(run.complete("dvc", "repro", "--force", "--single-item", "sft@base")) == {"sft@base"}
    assert outs_of(run, "sft@base") == killed
    assert list((run.root / "wandb").glob("offline-run-*/*.wandb"))
    shutil.rmtree(run.root / "wandb")
    run.complete("commands.compose", "experiment=smoke")


def outs_of(run: Run, stage: str) -> dict[str, str]:
    hashes = verify.hashes(run.root / "dvc.lock").items()
    return {out: md5 for (name, out), md5 in hashes if name == stage and not out.startswith(verify.MEASURED)}


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
    from temper import metrics, results

    for stage in results.DATA_STAGES:
        values = metrics.read(run.root / f"reports/{stage}.json")
        rejected = sum(value for key, value in values.items() if key.startswith("rejected_"))
        assert values["seen"] == values["kept"] + rejected, stage


def test_another_beta_trains_no_sft_and_is_tracked_offline(run: Run) -> None:
    commit(run.root)
    before = outs_of(run, "responses@dpo")
    # Quants and a head, which would be made again, are killed above.
    changes = ("experiment=smoke", "recipe.formats=[]", "recipe.draft=[]", "dpo.beta=0.2", "tracking=wandb-offline")
    text = run.complete("dvc", "exp", "run", *(part for change in changes for part in ("-S", change)))
    expected = {"dpo@sft", "bench@bf16", "evaluate@dpo", "gate", "card", "scorecard", "responses@dpo"}
    # Two betas of a tiny model may give the same answers, whose safety is known.
    graded = set() if outs_of(run, "responses@dpo") == before else {"safety@dpo", "safety@base"}
    assert stages_run(text) == expected | graded
    assert list((run.root / "wandb").glob("offline-run-*/*.wandb"))


def commit(root: Path) -> None:
    """What a user does with a run worth keeping: experiments are compared with it."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (["add", "--all"], [*identity, "commit", "--quiet", "-m", "smoke run"]):
        subprocess.run(["git", *command], cwd=root, check=True)


def test_experiments_stand_side_by_side(run: Run) -> None:
    table = run.complete("commands.ablation", "--show")
    assert "dpo.beta" in table
    assert (run.root / "reports/experiments.md").is_file()


def test_no_secret_is_written_anywhere(run: Run) -> None:
    files = [path for path in run.root.parent.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert run.root / ".git/HEAD" in files
    packed = ["git", "cat-file", "--batch-all-objects", "--batch"]
    objects = subprocess.run(packed, cwd=run.root, check=True, capture_output=True).stdout
    assert b"smoke run" in objects
    for secret in SECRETS.values():
        assert not [path for path in files if secret.encode() in path.read_bytes()]
        assert secret.encode() not in objects
        assert not [text for text in run.said if secret in text]
