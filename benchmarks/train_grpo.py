"""Steps of GRPO, timed: stage `grpo` by its settings in ./params.yaml (`ours`), or TRL's trainer as in TRL's example (`peer`).

    python -m benchmarks.train_grpo ours|peer MODEL OUT

Run by benchmarks.train. Both have the same prompts in the same order, rewards, batch, adapter and precision; the peer generates
with transformers in the training process. The first step, in which an engine starts, is not counted.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.grpo import Grpo
from temper import grpo, params, prompt_set, rewards, training, trl


def main(which: str, model: str, out: str) -> None:
    cfg = params.load("grpo", Grpo)
    rows = grpo.prompts(prompt_set.required("grpo", cfg.prompts), cfg.rewards)
    config = grpo.render(cfg, Path(model), 1, rewards.applicable(rows, cfg.rewards))
    training.prepare()
    run = config | {
        "trainer": config["trainer"] | {"output_dir": f"{which}-out", "report_to": "none", "disable_tqdm": True}
    }
    trainer = grpo.trainer(run) if which == "ours" else peer(run, rows)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "step_time" in entry][1:]
    figures = {
        "seconds_per_step": fmean(entry["step_time"] for entry in steps),
        "completion_tokens": fmean(entry["completions/mean_length"] for entry in steps),
    }
    Path(out).write_text(json.dumps(figures))


def peer(run: dict[str, Any], rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset
    from trl import GRPOTrainer

    parts = trl.policy(run)
    chosen = grpo.order(len(rows), run["epochs"], run["steps"], grpo.steps_prompts(parts["args"]), parts["args"].seed)
    data = Dataset.from_list([{"prompt": rewards.prompt(rows[number]), "number": number} for number in chosen])
    return GRPOTrainer(**parts, train_dataset=data, reward_funcs=grpo.reward_functions(run, rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
