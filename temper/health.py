"""Whether a training run goes well, by the entries of its Trainer's log; one that does not ends in a line that says why."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from temper import curves, params

# Losses that are positive and fall; those of GRPO and PPO are neither.
FALLING = ("sft", "dpo", "kto", "orpo", "reward")
# What holds a policy near the model that it started from.
PULL = {"grpo": "beta", "kto": "beta", "ppo": "kl_coef"}
# A group of answers with one and the same reward, as GRPO's trainer counts and measures it.
EQUAL = {"frac_reward_zero_std": 1.0, "reward_std": 0.0}
WORSE = 2.0  # times the first loss, for a spike
SAMPLE = 1000  # rows whose answers are measured
# The last words of the first of several processes, which torchrun's would drown.
STOPPED = Path("tmp/stopped.txt")


@dataclass
class Kl:
    """Nats, or null."""

    kto: float | None
    grpo: float | None
    ppo: float | None


@dataclass
class Health:
    window: int
    patience: int
    finite: bool | None
    spike: float | None
    grad_norm: float | None
    first_steps: int | None
    fall: float
    equal_rewards: int | None
    kl: Kl
    chosen_fall: float | None
    collapse: float | None
    explosion: float | None
    cut: float | None


def watch(trainer: Any, stage: str) -> None:
    """Have `trainer` end as soon as its log shows what section `health` of params.yaml does not allow.

    The curve so far goes where that of the whole run would have gone, so that DVC clears it away like any out.
    """
    trainer.add_callback(_stopper(Monitor(params.load("health", Health), stage, answer_tokens(trainer))))


class Monitor:
    """What the log of a stage's run has shown so far, held against `health`.

    `answer_tokens` is what log-probabilities of answers are divided by: their mean length where the trainer logs sums.
    """

    def __init__(self, health: Health, stage: str, answer_tokens: float = 1.0) -> None:
        self.health, self.stage, self.answer_tokens = health, stage, answer_tokens
        self.seen: defaultdict[str, list[float]] = defaultdict(list)
        self.lowest = math.inf
        """Usual loss where it was lowest."""
        self.untrained: float | None = None
        """Validation loss before the first step."""

    def see(self, entry: Mapping[str, Any], step: int) -> str | None:
        """What is wrong since this entry, in one line that says what to change; None where nothing is."""
        fresh = [key for key in CHECKS if isinstance(entry.get(key), int | float)]
        for key in fresh:
            self.seen[key].append(float(entry[key]))
        if "eval_loss" in fresh and not self.seen["loss"]:
            self.untrained = float(entry["eval_loss"])
        for key in fresh:
            for check in CHECKS[key]:
                if found := check(self, key):
                    return f"{self.stage}: step {step}: {found} in conf/health"
        return None

    def before(self, key: str) -> list[float]:
        """What was logged before the steps that must all be over a limit."""
        return self.seen[key][: -self.health.patience]

    def stays_over(self, key: str, limit: float) -> bool:
        """Whether the last `patience` values all exceed `limit`; what is no number exceeds any."""
        last = self.seen[key][-self.health.patience :]
        return len(last) == self.health.patience and all(not value <= limit for value in last)


def not_finite(run: Monitor, key: str) -> str | None:
    value = run.seen[key][-1]
    if not run.health.finite or math.isfinite(value):
        return None
    return (
        f"{key} is {value}, expected a number: lower {run.stage}.learning_rate, use precision fp32, or, for a run that recovers by "
        "itself, set health.finite to null"
    )


def spike(run: Monitor, key: str) -> str | None:
    before, limit = run.before(key), run.health.spike
    if limit is None or run.stage not in FALLING or len(before) < run.health.patience:
        return None
    # A run that diverges over several steps raises its own median.
    run.lowest = min(run.lowest, median(before[-run.health.window :]))
    # Near 0 any hard batch is many times the usual.
    if run.lowest <= 0 or not run.stays_over(key, max(limit * run.lowest, WORSE * before[0])):
        return None
    return _above(run, key, run.lowest, f"lowest median of {run.health.window} steps", limit)


def steep(run: Monitor, key: str) -> str | None:
    # Zero is the norm of a step that learned nothing, as in GRPO when all rewards are equal.
    before, limit = [value for value in run.before(key) if value], run.health.grad_norm
    if limit is None or not before:
        return None
    largest = max(before[-run.health.window :] + before[: run.health.window])
    what = f"largest of the last {run.health.window} steps"
    return _above(run, key, largest, what, limit) if run.stays_over(key, limit * largest) else None


def not_falling(run: Monitor, key: str) -> str | None:
    """At `first_steps` after warm-up: the median of the later half of them against the mean of the run's first steps."""
    first, losses = run.health.first_steps, run.seen[key]
    if first is None or run.stage not in FALLING or _steps_at_peak(run, first) != first:
        return None
    start, now = fmean(losses[: max(1, first // 5)]), median(losses[-max(1, first // 2) :])
    if start <= 0 or now <= start * (1 - run.health.fall):
        return None
    return (
        f"loss is {now:.4g} over the last {max(1, first // 2)} steps and was {start:.4g} at the start, expected it to fall by "
        f"{run.health.fall:.0%} within {first} steps after warm-up: {_not_learning(run)}"
    )


def not_learned(run: Monitor, key: str) -> str | None:
    first, values = run.health.first_steps, run.seen[key][1:]
    if first is None or run.untrained is None or not values or _steps_at_peak(run, first) < first:
        return None
    if min(values) < run.untrained:
        return None
    return f"{key} is {values[-1]:.4g} and was {run.untrained:.4g} before the first step, expected it to fall: {_not_learning(run)}"


def equal_rewards(run: Monitor, key: str) -> str | None:
    limit = run.health.equal_rewards
    if limit is None:
        return None
    last = run.seen[key][-limit:]
    if len(last) < limit or not all(math.isclose(value, EQUAL[key], abs_tol=1e-6) for value in last):
        return None
    return (
        f"{key} is {EQUAL[key]:g} for {limit} steps in a row: answers to the same prompt all get the same reward, which teaches "
        f"nothing: give easier or harder prompts, raise {run.stage}.temperature, or raise health.equal_rewards"
    )


def kl(run: Monitor, key: str) -> str | None:
    limit = getattr(run.health.kl, run.stage, None)
    if limit is None or not run.stays_over(key, limit):
        return None
    return (
        f"{key} is {run.seen[key][-1]:.3g}, over {limit:g} for {run.health.patience} steps: the policy has left the model that "
        f"it started from: lower {run.stage}.learning_rate, raise {run.stage}.{PULL[run.stage]}, or raise health.kl.{run.stage}"
    )


def chosen_fell(run: Monitor, key: str) -> str | None:
    before, limit = run.before(key), run.health.chosen_fall
    if limit is None or not before:
        return None
    start = median(before[: run.health.window]) / run.answer_tokens
    floor = start - limit
    last = [value / run.answer_tokens for value in run.seen[key][-run.health.patience :]]
    if any(value >= floor for value in last):
        return None
    return (
        f"{key} is {last[-1]:.3g} nats a token, under {floor:.3g} for {len(last)} steps; it was {start:.3g} at the start: "
        f"lower {run.stage}.learning_rate or raise health.chosen_fall"
    )


def length(run: Monitor, key: str) -> str | None:
    window, values, health = run.health.window, run.seen[key], run.health
    if len(values) < 2 * window:
        return None
    first, before, now = median(values[:window]), median(values[-2 * window : -window]), median(values[-window:])
    seen = f"{key} is {now:.3g} tokens over the last {window} steps"
    if health.collapse is not None and now < health.collapse * first:
        return (
            f"{seen} and was {first:.3g} at the start, expected at least {health.collapse:.0%} of that: lower "
            f"{run.stage}.learning_rate, look at what the rewards pay for, or lower health.collapse"
        )
    if health.explosion is not None and now > health.explosion * before:
        return (
            f"{seen} and was {before:.3g} in the {window} before, expected at most {health.explosion:g} times as many: lower "
            f"{run.stage}.learning_rate, look at what the rewards pay for, or raise health.explosion"
        )
    return None


def cut(run: Monitor, key: str) -> str | None:
    window, values, limit = run.health.window, run.seen[key], run.health.cut
    if limit is None or len(values) < window or median(values[-window:]) < limit:
        return None
    return (
        f"{median(values[-window:]):.0%} of the answers are cut at their longest length over the last {window} steps, expected "
        f"less than {limit:.0%}: raise {run.stage}.max_tokens, lower {run.stage}.learning_rate, or raise health.cut"
    )


Check = Callable[[Monitor, str], str | None]
# What is looked at when a Trainer logs a value: names of transformers 5.16, Axolotl 0.19 and TRL 1.9.
CHECKS: dict[str, tuple[Check, ...]] = {
    "learning_rate": (),
    "loss": (not_finite, spike, not_falling),
    "loss/policy_avg": (not_finite,),
    "loss/value_avg": (not_finite,),
    "grad_norm": (not_finite, steep),
    "eval_loss": (not_finite, not_learned),
    "frac_reward_zero_std": (equal_rewards,),
    "reward_std": (equal_rewards,),
    "kl": (kl,),
    "objective/kl": (kl,),
    "logps/chosen": (chosen_fell,),
    "completions/mean_length": (length,),
    "completions/clipped_ratio": (cut,),
}


def answer_tokens(trainer: Any) -> float:
    """Mean tokens of an answer where `trainer` logs log-probabilities summed over them; 1 where it logs means, or none."""
    rows = trainer.train_dataset
    # DPO; KTO; CPO and ORPO, whose labels of the prompt are -100.
    names = [name for name in ("chosen_ids", "completion_ids", "chosen_labels") if name in (rows.column_names or ())]
    averaged = names == ["chosen_labels"] and getattr(trainer, "loss_type", "ipo") in ("ipo", "simpo")
    if not names or averaged:
        return 1.0
    answers = rows.select(range(min(SAMPLE, len(rows))))[names[0]]
    return fmean(sum(token != -100 for token in answer) for answer in answers)


def reason() -> str | None:
    """Why the first of several processes ended the run, if it did."""
    return STOPPED.read_text() if STOPPED.is_file() else None


def _stopper(monitor: Monitor) -> Any:
    from transformers import TrainerCallback

    class Stopper(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            # What a resumed run logged before it was interrupted has been judged.
            for entry in state.log_history:
                monitor.see(entry, entry["step"])

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
            found = monitor.see(logs, state.global_step)
            if not found or not state.is_world_process_zero:
                return
            shown = [key for key in CHECKS if any(key in entry for entry in state.log_history)]
            curves.write(f"reports/plots/{monitor.stage}.csv", state.log_history, shown)
            if args.world_size > 1:
                STOPPED.parent.mkdir(exist_ok=True)
                STOPPED.write_text(found)
            # Of several processes torchrun ends the others.
            raise SystemExit(found)

    return Stopper()


def _steps_at_peak(run: Monitor, most: int) -> int:
    """Steps since the learning rate last rose, counted up to `most` + 1."""
    losses = run.seen["loss"]
    rates = run.seen["learning_rate"][-most - 1 :] or [0.0] * min(len(losses), most + 1)
    since = len(rates)
    for number, (before, after) in enumerate(pairwise(rates), start=1):
        if after > before:
            since = len(rates) - number
    return since


def _above(run: Monitor, key: str, usual: float, what: str, limit: float) -> str:
    value, name = run.seen[key][-1], "spike" if key == "loss" else key
    return (
        f"{key} is {value:.3g}, {value / usual:.3g} times the {what}, and over "
        f"{limit:g} times that for {run.health.patience} steps: lower {run.stage}.learning_rate or raise health.{name}"
    )


def _not_learning(run: Monitor) -> str:
    return (
        f"raise {run.stage}.learning_rate where it is tiny, lower it where the loss rose, look at the data, or raise "
        "health.first_steps"
    )
