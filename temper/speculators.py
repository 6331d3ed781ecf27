"""speculators: conf/draft in, the package's own configuration and commands out, which are its whole pipeline for EAGLE-3.

regenerate-responses → prepare-data → generate-offline-data → train (temper/eagle3_trainer.py). On a GPU as its documentation has
it; on a CPU by attention and loss without Triton, and hidden states through a connector without CUDA (temper/eagle3_connector.py).
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    # vLLM imports it by its name below; what a stage depends on goes by imports.
    from temper import eagle3_connector  # noqa: F401

Config = dict[str, Any]
STOCK = {"kv_connector": "ExampleHiddenStatesConnector", "kv_role": "kv_producer"}
ON_CPU = {
    "kv_connector": "CpuHiddenStatesConnector",
    "kv_connector_module_path": "temper.eagle3_connector",
    "kv_role": "kv_producer",
    "kv_buffer_device": "cpu",
}
ASSUMED = 3  # hidden states that vLLM reads for a head that names no number


def layers(depth: int) -> list[int]:
    """Whose inputs the head reads, of a model of `depth` layers: speculators' choice (a low, a middle and a high one).

    Where the model is too shallow for that, the last three after the first, or what there is.
    """
    usual = [2, depth // 2, depth - 3]
    if usual == sorted(set(usual)):
        return usual
    return list(range(max(1, depth - 3), depth)) or [0]


def render(cfg: Any, model: Path, depth: int) -> Config:
    """The file that `speculators train --config` reads; what belongs to one run alone comes by `arguments`."""
    on_cpu = cfg.hardware == "cpu"
    draft = {"num_layers": cfg.layers, "target_layer_ids": layers(depth)}
    draft |= {"draft_vocab_size": cfg.vocabulary} if cfg.vocabulary else {}
    data = {
        "total_seq_len": cfg.sequence_length,
        "train_data_ratio": round(1 - cfg.validation, 6),
        "hidden_states_dtype": cfg.dtype,
    }
    return {
        "train": {
            "speculator_type": "eagle3",
            "seed": cfg.seed,
            "verifier": {"verifier_name_or_path": str(model)},
            "draft": draft | ({"draft_attn_impl": "eager"} if on_cpu else {}),
            "data": data | ({"num_workers": 0} if on_cpu else {}),
            "generation": {"on_missing": "raise"},
            "loss": {"ttt_steps": cfg.num_speculative_tokens} | ({"loss_implementation": "eager"} if on_cpu else {}),
            "optimizer": {"optimizer": cfg.optimizer, "lr": cfg.learning_rate},
            "scheduler": {"scheduler_type": cfg.schedule, "scheduler_warmup_ratio": cfg.warmup_ratio},
            # A logged step waits for the GPU.
            "trainer": {"epochs": cfg.epochs, "log_freq": 1 if on_cpu else 10},
        }
    }


def write(config: Config, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=True))


def arguments(config: Path, prepared: Path, hidden: Path, out: Path) -> list[str]:
    """What `speculators train` is told of one run."""
    values = {"--config": config, "--data-path": prepared, "--hidden-states-path": hidden, "--save-path": out}
    return [part for name, value in values.items() for part in (name, str(value))]


def regenerate(url: str, model: Path, prompts: Path, answers: Path, cfg: Any) -> list[str]:
    """The command that has the served model answer `prompts`, going on with `answers`."""
    sampling = json.dumps({"temperature": cfg.temperature, "seed": cfg.seed}, sort_keys=True)
    options = {
        "--endpoint": f"{url}/v1/chat/completions",
        "--model": str(model),
        "--dataset": str(prompts),
        "--outfile": str(answers),
        "--concurrency": str(cfg.concurrency),
        "--max-tokens": str(cfg.max_tokens),
        "--sampling-params": sampling,
    }
    return [*_command("regenerate-responses", options), "--resume"]


def prepare(model: Path, answers: Path, out: Path, cfg: Any) -> list[str]:
    """The command that makes a data set of `answers`, and counts their tokens for the head's vocabulary."""
    options = {
        "--model": str(model),
        "--data": str(answers),
        "--output": str(out),
        "--seq-length": str(cfg.sequence_length),
        "--seed": str(cfg.seed),
        "--num-preprocessing-workers": "1",
    }
    return [*_command("prepare-data", options), "--no-skip-token-freq"]


def generate(url: str, prepared: Path, out: Path, concurrency: int) -> list[str]:
    """The command that has the served model read the data set, and keeps its hidden states."""
    options = {
        "--endpoint": f"{url}/v1",
        "--preprocessed-data": str(prepared),
        "--output": str(out),
        "--concurrency": str(concurrency),
    }
    return [*_command("generate-offline-data", options), "--validate-outputs", "--fail-on-error"]


def extraction(depth: int, folder: Path, on_cpu: bool) -> list[str]:
    """vLLM's arguments to write the hidden states of what it reads into `folder`: those that the head reads, and the last.

    Without a cache of prefixes: what a request shares with those before it depends on their order, and its last bits with it.
    """
    read = {"eagle_aux_hidden_state_layer_ids": [*layers(depth), depth]}
    method = {"method": "extract_hidden_states", "num_speculative_tokens": 1}
    speculative = method | {"draft_model_config": {"hf_config": read}}
    transfer = (ON_CPU if on_cpu else STOCK) | {"kv_connector_extra_config": {"shared_storage_path": str(folder)}}
    configs = {"--speculative-config": speculative, "--kv-transfer-config": transfer}
    found = [part for name, value in configs.items() for part in (name, json.dumps(value, sort_keys=True))]
    return [*found, "--no-enable-prefix-caching"]


def finished(checkpoint: Path) -> Config:
    """The configuration of a trained head as vLLM takes it, which assumes three hidden states where it finds no number."""
    config: Config = json.loads((checkpoint / "config.json").read_text())
    if (read := len(config["eagle_aux_hidden_state_layer_ids"])) != ASSUMED:
        config["transformer_layer_config"]["num_aux_hidden_states"] = read
    return config


def _command(name: str, options: dict[str, str]) -> list[str]:
    return [sys.executable, "-m", "speculators", name, *(part for pair in options.items() for part in pair)]
