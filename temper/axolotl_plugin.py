"""Axolotl's side of a run: the plugin that it loads by name, and the entry point that its processes share."""

import json
import math
import os
import sys
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
import yaml
from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from pydantic import BaseModel
from torch.utils.data import BatchSampler, RandomSampler, Sampler
from transformers import TrainerCallback

from temper import documents, halves, health, labelled_logits, stage, training
from temper.axolotl import SOFT


class Keys(BaseModel):
    """What the plugin adds to Axolotl's configuration."""

    attend_within_documents: bool | None = None
    half_fine_tuning: bool | None = None
    virtual_tokens: int | None = None


class Plugin(BasePlugin):
    """Lets Axolotl train on a CPU, which its own set-up refuses, adds methods that it lacks, and shows progress."""

    def get_input_args(self) -> str:
        return "temper.axolotl_plugin.Keys"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        return [AdapterCapabilities(name) for name in SOFT]

    def load_adapter(self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False) -> Any:
        """(model with virtual tokens, their PEFT configuration), or None for an adapter that Axolotl has."""
        from peft import get_peft_model

        if cfg.adapter not in SOFT:
            return None
        config = virtual_tokens(cfg.adapter, cfg.virtual_tokens)
        return get_peft_model(model, config), config

    def post_model_load(self, cfg: Any, model: Any) -> None:
        if cfg.attend_within_documents:
            documents.isolate(model)
        # A GPU is fast at logits, and code compiled for it wants the same shape at each step.
        if not training.has_gpu():
            labelled_logits.narrow(model)

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        # Unfiltered, a loss that is not a number shows in the log instead of as the mean of its neighbours.
        arguments: dict[str, Any] = {"logging_nan_inf_filter": False}
        if cfg.resume_from_checkpoint or sharded_weights(cfg.deepspeed):
            # The run that is resumed evaluated at its start; once more would add a row to the curve. And until the first
            # forward pass of a training step, nothing gathers the weights that ZeRO-3 has sharded.
            arguments["eval_on_start"] = False
        return arguments | ({} if training.has_gpu() else {"use_cpu": True})

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        training.quiet_callbacks(trainer)
        health.watch(trainer, "sft")
        if cfg.sample_packing:
            keep_packs(trainer, cfg)
        return [Halves(cfg.seed)] if cfg.half_fine_tuning else []


def sharded_weights(deepspeed: Any) -> bool:
    """Whether DeepSpeed's configuration, which Axolotl has read by now, is of a stage that shards the weights themselves."""
    return bool(deepspeed) and deepspeed["zero_optimization"]["stage"] == 3


def virtual_tokens(method: str, count: int) -> Any:
    """PEFT's settings of a prefix of zeros, or of a prompt of words by lot: both learn faster than noise (Lester et al. 2021)."""
    from peft import PrefixTuningConfig, PromptTuningConfig, PromptTuningInit

    task: Any = {"task_type": "CAUSAL_LM", "num_virtual_tokens": count}
    if method == "prefix":
        return PrefixTuningConfig(**task, init_weights="zero")
    return PromptTuningConfig(**task, prompt_tuning_init=PromptTuningInit.SAMPLE_VOCAB)


class Halves(TrainerCallback):
    """Freezes half of the layers' weights for an epoch: without a gradient, AdamW leaves a weight and its momentum alone."""

    def __init__(self, seed: int) -> None:
        self.seed, self.epoch = seed, -1

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **more: Any) -> None:
        # A resumed run begins in the midst of an epoch.
        self.epoch = int(state.epoch or 0) if self.epoch < 0 else self.epoch + 1
        weights = dict(model.named_parameters())
        trained = halves.trained(list(weights), self.seed, self.epoch)
        for name, weight in weights.items():
            weight.requires_grad_(name in trained)


class Order(Sampler[int]):
    """Numbers of `count` packs, ordered by seed and epoch alone; the first come again, to fill up a multiple of `even`."""

    def __init__(self, count: int, seed: int, even: int) -> None:
        self.count, self.seed, self.even, self.epoch = count, seed, even, 0

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch)).tolist()
        yield from islice(cycle(order), len(self))

    def __len__(self) -> int:
        return -(-self.count // self.even) * self.even

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class Packs(BatchSampler):
    """The packs of a run, made once, and for each epoch in the order of `sampler`.

    Axolotl makes packs anew for each epoch and counts those of the first: an epoch with more leaves rows out, one with fewer ends
    early. And a resumed run, whose skipping loader does not tell Axolotl's sampler of the epoch, would go on in another order.
    """

    def __init__(self, packs: list[list[list[int]]], sampler: Order, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.packs = packs

    def __iter__(self) -> Iterator[Any]:
        return (self.packs[number] for number in self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def keep_packs(trainer: Any, cfg: Any) -> None:
    """Have packed rows come in the order of `Packs`, in as many steps as these make.

    Axolotl counts steps by packs of another order, one without a seed, and leaves the last packs out where they fill no batch.
    """
    make, processes = trainer._create_multipack_sampler, int(os.environ.get("WORLD_SIZE", "1"))

    def packed(base_sampler: Any, dataset: Any) -> Any:
        if not isinstance(base_sampler, RandomSampler):
            return make(base_sampler, dataset)
        rows = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(cfg.seed)).tolist()
        packs = make(rows, dataset)
        packs.drop_last, packs._batches = False, None
        batches = packs.generate_batches()
        return Packs(batches, Order(len(batches), cfg.seed, processes), packs.batch_size)

    trainer._create_multipack_sampler = packed
    if not cfg.max_steps:
        batches = len(packed(RandomSampler(trainer.train_dataset), trainer.train_dataset)) // processes
        steps = math.ceil(cfg.num_epochs * math.ceil(batches / cfg.gradient_accumulation_steps))
        warmup = int(cfg.warmup_ratio * steps)
        # transformers takes 1 for a share, that of all steps.
        trainer.args.max_steps, trainer.args.warmup_steps = steps, 2 if warmup == 1 else warmup


def run(config: Path, log: Path) -> list[dict[str, Any]]:
    """Train as `config` says; the first process writes the Trainer's log and says how fast it was."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.train import train
    from transformers import set_seed

    on_cpu = not training.has_gpu()
    if on_cpu and "deepspeed" in yaml.safe_load(config.read_text()):
        deepspeed_on_cpu()
    cfg = load_cfg(str(config))
    if on_cpu:
        # Of several processes, Axolotl sends each to a GPU of its own.
        cfg.device_map = None
    try:
        data = load_datasets(cfg=cfg)
    except ValueError as error:
        raise SystemExit(
            f"sft: Axolotl refuses the rows: {' '.join(str(error).split())}: lower data.max_tokens or raise sft.sequence_length"
        ) from None
    started = time.monotonic()
    # Axolotl does not seed the adapter's first weights.
    set_seed(cfg.seed)
    _, _, trainer = train(cfg=cfg, dataset_meta=data)
    if int(os.environ.get("RANK", "0")) == 0:
        log.write_text(json.dumps(trainer.state.log_history))
        _measure(
            data.train_dataset, trainer.state, time.monotonic() - started, resumed=bool(cfg.resume_from_checkpoint)
        )
    history: list[dict[str, Any]] = trainer.state.log_history
    return history


def deepspeed_on_cpu() -> None:
    """Have accelerate connect DeepSpeed's processes by gloo.

    It takes "on the CPU" for "without DeepSpeed", and knows no backend for processes that are neither there nor on a GPU, each
    of which it then takes for the only one.
    """
    from accelerate import PartialState

    os.environ.pop("ACCELERATE_USE_CPU", None)
    prepare = PartialState._prepare_backend

    def prepared(state: Any, *given: Any) -> tuple[str, Any]:
        backend, kind = prepare(state, *given)
        return backend or "gloo", kind

    PartialState._prepare_backend = prepared


def _measure(rows: Any, state: Any, seconds: float, resumed: bool) -> None:
    """Tokens that were trained on, padding not counted; a resumed run has no rate, since it did a part."""
    tokens = sum(len(ids) for ids in rows["input_ids"]) * state.epoch
    stage.measured(tokens=round(tokens))
    if not resumed:
        stage.measured(tokens_per_second=round(tokens / seconds, 1))


if __name__ == "__main__":
    stage.bind_to_parent()
    training.prepare()
    run(Path(sys.argv[1]), Path(sys.argv[2]))
