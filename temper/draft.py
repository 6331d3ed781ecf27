"""An EAGLE-3 head for a model: its own answers to prompts of the domain, their hidden states, and a training on both.

Everything lies in a scratch folder, so that a killed run goes on: answers and hidden states one by one, a training from its last
epoch. Answers are sorted and, as conf/draft has them, greedy, and on a CPU hidden states are made of one row at a time, so that
neither depends on the clock.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import calibration, curves, eagle3_trainer, launcher, progress, record, records, speculators, stage
from temper.records import Row
from temper.server import HOST, Server

SPLITS = ("train", "preferences", "rl")
OPTIMIZERS, SCHEDULES = ("adamw", "muon"), ("linear", "cosine", "none")
DTYPES = {"float32": 4, "bfloat16": 2}  # bytes
POLL = 0.5  # seconds between two looks at how far a command is
ACCURACIES = {"full": "acceptance", "cond": "conditional"}  # the trainer's and ours
EMPTY = "empty assistant generation"  # what speculators says of an answer that ended before it began
# Of a command of the package: never online, no bars of its own, and no proxy on the way to the server on this machine.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ENVIRONMENT |= dict.fromkeys(("no_proxy", "NO_PROXY"), HOST)


@dataclass(frozen=True)
class Job:
    model: Path
    cfg: Any
    """Draft of scripts/draft.py."""
    scratch: Path
    runtime: dict[str, Any]

    @property
    def on_cpu(self) -> bool:
        return bool(self.cfg.hardware == "cpu")

    @property
    def depth(self) -> int:
        return shape(self.model)["num_hidden_layers"]


class Verifier(Server):
    """The model that a head drafts for, with more of vLLM's arguments, under the name of its folder, as the package asks for it."""

    def __init__(self, job: Job, *more: str) -> None:
        options = ("--served-model-name", str(job.model), "--max-model-len", str(job.cfg.sequence_length))
        super().__init__(job.model, job.cfg.dtype, job.cfg.seed, job.runtime, *options, *more)


def shape(model: Path) -> dict[str, int]:
    """num_hidden_layers, hidden_size and vocab_size of a model."""
    config = json.loads((model / "config.json").read_text())
    return {key: config[key] for key in ("num_hidden_layers", "hidden_size", "vocab_size")}


def require(cfg: Any) -> None:
    """Refuse settings without meaning before minutes of sampling."""
    choices = {"prompts": SPLITS, "dtype": tuple(DTYPES), "optimizer": OPTIMIZERS, "schedule": SCHEDULES}
    for key, known in choices.items():
        if (value := getattr(cfg, key)) not in known:
            raise SystemExit(f"draft.{key} is '{value}', expected {', '.join(known)}: correct it in conf/draft")
    for key in ("max_tokens", "concurrency", "layers", "epochs", "num_speculative_tokens"):
        if (value := getattr(cfg, key)) < 1:
            raise SystemExit(f"draft.{key} is {value}, expected 1 or more: correct it in conf/draft")
    kept = int(cfg.rows * (1 - cfg.validation))
    if not 0 < kept < cfg.rows:
        raise SystemExit(
            f"draft.validation is {cfg.validation} of {cfg.rows} rows, which leaves {kept} to train on: give both a row or more"
        )


def prompts(path: Path, model: Path, cfg: Any) -> tuple[list[Row], int]:
    """(chats without their answers, drawn by seed, in the order of the file; how many more are too long with an answer)."""
    # A mix may hold a row several times.
    rows = {row["id"]: row for row in records.read(path) if record.kind(row) in ("call", "chat")}
    if not rows:
        raise SystemExit(
            f"{path}: no chats to answer: choose another draft.prompts of {', '.join(SPLITS)}, or recipe.draft=[]"
        )
    drawn = set(random.Random(cfg.seed).sample(sorted(rows), min(cfg.rows, len(rows))))
    chats = [{"id": str(name), "messages": row["messages"][:-1]} for name, row in rows.items() if name in drawn]
    tokens = counter(model)
    fitting = [chat for chat in chats if tokens(chat) + cfg.max_tokens * turns(chat) < cfg.sequence_length]
    if len(fitting) < 2:
        raise SystemExit(
            f"{path}: {len(fitting)} of {len(chats)} prompts leave room for {cfg.max_tokens} tokens of an answer in "
            f"{cfg.sequence_length}: raise draft.sequence_length, or lower draft.max_tokens"
        )
    return fitting, len(chats) - len(fitting)


def counter(model: Path) -> Callable[[Row], int]:
    """A function that counts the tokens of a chat as the model reads it."""
    tokenizer = calibration.tokenizer(model)

    def tokens(chat: Row) -> int:
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, add_generation_prompt=True)
        return len(calibration.encoded(text, tokenizer))

    return tokens


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Add the seconds of a block to the timing of the stage; of a resumed one, those that were left."""
    started = time.monotonic()
    yield
    stage.measured(**{f"{name}_seconds": round(time.monotonic() - started, 1)})


def turns(chat: Row) -> int:
    """Answers that the model will give in a chat."""
    return sum(turn["role"] == "user" for turn in chat["messages"])


def answers(job: Job, chats: list[Row]) -> list[Row]:
    """The model's own answers in the order of `chats`, a row each: input_ids of prompt and answer, loss_mask 1 on the answer."""
    asked, raw, sorted_ = (job.scratch / name for name in ("prompts.jsonl", "raw.jsonl", "answers.jsonl"))
    if not sorted_.is_file():
        records.write(asked, chats)
        mend(raw)
        failed = raw.with_name("raw.errors.jsonl")
        failed.unlink(missing_ok=True)
        if {chat["id"] for chat in chats} - {row["primary_id"] for row in whole(raw)}:
            with Verifier(job) as server:
                command = speculators.regenerate(server.url, job.model, asked, raw, job.cfg)
                follow(job, command, lambda: lines_of(raw), len(chats), "answers")
        refuse_failed(failed)
        records.write(sorted_, ordered(chats, whole(raw)))
    found = list(records.read(sorted_))
    if len(found) < 2:
        raise SystemExit(
            f"draft: {job.model} gave {len(found)} answers to {len(chats)} prompts, the others were empty: raise draft.rows"
        )
    return found


def whole(path: Path) -> list[Row]:
    """The rows of a file that a command may still be writing, or may not have begun."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def lines_of(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def mend(path: Path) -> None:
    """Cut off a last line that a killed run left without its end: the next row would be written behind it."""
    if path.is_file():
        written = path.read_bytes()
        path.write_bytes(written[: written.rfind(b"\n") + 1])


def ordered(chats: list[Row], found: Iterable[Row]) -> Iterator[Row]:
    """The answers in the order of the chats and their turns, without what tells when and where they were made."""
    place = {chat["id"]: number for number, chat in enumerate(chats)}
    rows = [row for row in found if row["primary_id"] in place]
    for row in sorted(rows, key=lambda row: (place[row["primary_id"]], row["id"])):
        yield {key: row[key] for key in ("id", "input_ids", "loss_mask")}


def refuse_failed(path: Path) -> None:
    """Exit with the first request that failed for another reason than an empty answer."""
    reasons = [str(row["metadata"]["error"]) for row in whole(path)]
    if failed := [reason for reason in reasons if EMPTY not in reason]:
        raise SystemExit(
            f"draft: {len(failed)} prompts were not answered, the first with {failed[0][:300]}: run it again, or lower "
            "draft.concurrency"
        )


def prepared(job: Job) -> Path:
    """The data set that speculators makes of the answers."""
    out, partial = job.scratch / "prepared", job.scratch / "prepared.partial"
    if not out.is_dir():
        shutil.rmtree(partial, ignore_errors=True)
        command = speculators.prepare(job.model, job.scratch / "answers.jsonl", partial, job.cfg)
        follow(job, command, lambda: 0, 0, "prepare-data")
        partial.rename(out)
    return out


def hidden_states(job: Job, data: Path, rows: list[Row]) -> Path:
    """A folder with a file of hidden states for each row: (tokens, layers read and the last, hidden size)."""
    out, staged = job.scratch / "hidden", job.scratch / "staged"
    if count(out) < len(rows):
        require_space(job, sum(len(row["input_ids"]) for row in rows))
        more = speculators.extraction(job.depth, staged, job.on_cpu)
        with Verifier(job, *more) as server:
            # One at a time on a CPU, where a prompt takes all cores: no batch, whose sums would depend on who came along.
            command = speculators.generate(server.url, data, out, 1 if job.on_cpu else job.cfg.concurrency)
            follow(job, command, lambda: count(out), len(rows), "hidden states")
    return out


def count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("hs_*.safetensors"))


def require_space(job: Job, tokens: int) -> None:
    """Exit when the hidden states of so many tokens do not fit beside what is on the disk."""
    states = len(speculators.layers(job.depth)) + 1
    needed = tokens * states * shape(job.model)["hidden_size"] * DTYPES[job.cfg.dtype]
    kept = sum(file.stat().st_size for file in (job.scratch / "hidden").glob("*"))
    free = shutil.disk_usage(job.scratch).free
    if needed - kept > free:
        raise SystemExit(
            f"draft: hidden states of {tokens:,} tokens take {needed / 1e9:.1f} GB, and {job.scratch.parent} has "
            f"{free / 1e9:.1f} GB free: lower draft.rows or draft.max_tokens, or set TEMPER_SCRATCH to a larger disk"
        )


def train(job: Job, config: Path, data: Path, hidden: Path, processes: int) -> curves.Log:
    """Train on the data set and its hidden states, and return what the trainer logged, step by step."""
    out, lines = checkpoints(job.scratch), job.scratch / "metrics.jsonl"
    drop_unfinished(out)
    mend(lines)
    run = {
        "arguments": speculators.arguments(config, data, hidden, out),
        "metrics": str(lines),
        "threads": job.runtime["threads"],
        "on_cpu": job.on_cpu,
    }
    (job.scratch / "run.json").write_text(json.dumps(run))
    module = ["-m", eagle3_trainer.__name__, str(job.scratch / "run.json")]
    if processes == 1:
        alone(module)
    else:
        launcher.run(module, "draft")
    return log(whole(lines))


def checkpoints(scratch: Path) -> Path:
    """Where the trainer leaves a folder for each epoch, and a link to the one of the lowest validation loss."""
    return scratch / "checkpoints"


def drop_unfinished(out: Path) -> None:
    """Delete the checkpoint of an epoch that was cut short: the trainer would resume from it. Its state is written last."""
    for epoch in out.glob("[0-9]*"):
        if not (epoch / "training_state.json").is_file():
            shutil.rmtree(epoch)


def alone(module: list[str]) -> None:
    """Run the trainer as one process, without torchrun."""
    done = subprocess.run([sys.executable, *module], check=False, preexec_fn=stage.die_with_parent)
    if done.returncode:
        raise SystemExit(f"draft: speculators' trainer ended with status {done.returncode} (its output is above)")


def log(lines: Iterable[Row]) -> curves.Log:
    """The trainer's lines as those of a Hugging Face Trainer. Of an epoch that was trained twice, the second time counts.

    acceptance_<i> is the trainer's full_acc_<i>: the share of positions from which token i of the draft, and all before it, are the
    model's likeliest; conditional_<i> its cond_acc_<i>, of those where all before it were.
    """
    steps: dict[tuple[str, int], Row] = {}
    for line in lines:
        step, epoch = int(line["step"]), float(line["epoch"])
        if "train" in line:
            rate = line["lr"]
            rate = rate["AdamW"] if isinstance(rate, dict) else rate
            entry = {"step": step + 1, "epoch": epoch, "learning_rate": rate}
            steps["train", step] = entry | named(line["train"], "", "")
        else:
            steps["val", int(epoch)] = {"step": step, "epoch": epoch} | named(line["val"], "eval_", "_epoch")
    return sorted(steps.values(), key=lambda entry: entry["step"])


def named(values: dict[str, float], prefix: str, suffix: str) -> dict[str, float]:
    """The loss and the acceptances of one of the trainer's lines, under names of ours."""
    found = {f"{prefix}loss": values[f"loss{suffix}"]}
    for key, value in values.items():
        if place := re.fullmatch(rf"(full|cond)_acc_(\d+){suffix}", key):
            found[f"{prefix}{ACCURACIES[place[1]]}_{place[2]}"] = value
    return found


def columns(cfg: Any) -> list[str]:
    """Of the curve, beside losses and learning rate."""
    places = range(cfg.num_speculative_tokens)
    return [f"{prefix}acceptance_{place}" for prefix in ("", "eval_") for place in places]


def keep(scratch: Path, target: Path) -> int:
    """Copy the head of the lowest validation loss as vLLM takes it, and return its epoch, from 0."""
    best = checkpoints(scratch) / "checkpoint_best"
    if not best.is_dir():
        raise SystemExit(
            "draft: no checkpoint has a validation loss: raise draft.rows or draft.validation in conf/draft"
        )
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(best / "model.safetensors", target / "model.safetensors")
    config = json.dumps(speculators.finished(best), indent=2, sort_keys=True)
    (target / "config.json").write_text(config + "\n")
    return int(best.resolve().name)


def summary(cfg: Any, rows: list[Row], log: curves.Log, epoch: int) -> dict[str, float]:
    """What the head learnt, with the validation of the epoch that is kept."""
    kept = next(entry for entry in log if "eval_loss" in entry and entry["epoch"] == epoch)
    places = range(cfg.num_speculative_tokens)
    acceptance = [kept[f"eval_acceptance_{place}"] for place in places]
    found = curves.summary(log) | {"eval_loss": kept["eval_loss"], "epochs": epoch + 1}
    found |= {f"validation_acceptance_{place}": acceptance[place] for place in places}
    found |= {f"validation_conditional_{place}": kept[f"eval_conditional_{place}"] for place in places}
    return found | {"validation_acceptance_length": 1 + sum(acceptance)} | counted(cfg, rows)


def counted(cfg: Any, rows: list[Row]) -> dict[str, float]:
    """Tokens of the answers, and the share of them that the head can draft."""
    answered = Counter(
        token for row in rows for token, learnt in zip(row["input_ids"], row["loss_mask"], strict=True) if learnt
    )
    known = sum(number for _, number in answered.most_common(cfg.vocabulary))
    return {
        "answers": len(rows),
        "tokens": sum(len(row["input_ids"]) for row in rows),
        "tokens_answered": answered.total(),
        "vocabulary_coverage": known / answered.total(),
    }


def follow(job: Job, command: list[str], done: Callable[[], int], total: int, unit: str) -> None:
    """Run a command of speculators and show how far it is; exits with its last line when it fails."""
    from tqdm import tqdm

    path = job.scratch / f"{unit.replace(' ', '-')}.log"
    settings = os.environ | ENVIRONMENT | {"HF_DATASETS_CACHE": str(job.scratch / "datasets")}
    first, clock, shown = done(), progress.Clock(), total and progress.on_terminal()
    with path.open("wb") as log, tqdm(total=total, initial=first, unit=f" {unit}", disable=not shown) as bar:
        # No thread runs yet in this stage, so a function between fork and exec is safe.
        process = subprocess.Popen(command, stdout=log, stderr=log, env=settings, preexec_fn=stage.die_with_parent)  # noqa: PLW1509
        while process.poll() is None:
            time.sleep(POLL)
            now = done()
            bar.update(now - bar.n)
            if not shown and now < total and (line := clock.line(now, total, first)):
                print(f"draft, {unit}: {line}", flush=True)
    if process.returncode:
        lines = path.read_text(errors="replace").splitlines()
        # Typer draws a frame around what it says.
        said = next((line.strip(" │") for line in reversed(lines) if any(map(str.isalnum, line))), "no output")
        tool = " ".join(command[2:4])
        raise SystemExit(f"draft: `{tool}` ended with status {process.returncode}: {said} (all of it: {path})")
