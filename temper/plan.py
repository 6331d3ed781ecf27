"""What each stage of a run that trains or samples will take: memory a device, tokens, time and cost, before anything starts."""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from temper import (
    axolotl,
    flops,
    hardware,
    memory,
    model_shape,
    params,
    prompt_set,
    recipe,
    sharding,
    speculators,
    vllm,
)
from temper.eagle3_shape import Head
from temper.flops import Rate
from temper.memory import Job
from temper.model_shape import Shape

REPORTS, LOCK, BASE = Path("reports"), Path("dvc.lock"), Path("models/base/config.json")
GIB = 2**30
DTYPES = {"float32": "fp32", "bfloat16": "bf16"}
PPO_PROCESSES = 1  # TRL's trainer takes no more
ENTROPY_ROWS = 128  # of logits, whose entropy TRL takes at a time: entropy_from_logits


@dataclass
class Device:
    """A GPU, or the threads that a process has of a CPU."""

    name: str
    memory_gb: float | None
    """Null takes this machine's."""
    tflops: dict[str, float]
    """By precision; of one thread where the device is a CPU."""
    mfu: float
    """Share of tflops that training reaches."""
    bandwidth_gbs: float
    process_gb: float
    serve_gb: float
    """As process_gb, of vLLM with what asks it."""
    slack: float
    """Share of activations that the allocator takes on top."""


@dataclass
class Assumed:
    train: int
    preferences: int
    rl: int
    test: int
    tokens: int
    answer: int
    longest: int


@dataclass
class Settings:
    devices: dict[str, Device]
    assumed: Assumed
    """Of data that nothing has read yet."""
    answer_share: float
    """Tokens of a sampled answer, as a share of those it may have."""
    startup_seconds: float
    """Of a stage: imports, loading, writing."""


@dataclass(frozen=True)
class Data:
    """Rows, and tokens of a row."""

    train: int
    preferences: int
    rl: int
    test: int
    tokens: float
    answer: float
    """Of the tokens, those that are trained on."""
    longest: int
    source: str

    @property
    def prompt(self) -> int:
        """The longest, if its row has an answer like any other."""
        return round(self.longest - self.answer)


@dataclass(frozen=True)
class Estimate:
    stage: str
    memory: dict[str, float]
    """Bytes a device, by what holds them."""
    devices: int
    tokens: int
    seconds: float
    offloaded: float = 0
    """Bytes of a machine's memory for what its devices leave there."""
    written: float = 0
    """Bytes of the first machine's memory for the weights that come out, when the devices are done."""
    served: float = 0
    """Of the memory, what hardware.runtime.serve_memory_gb sets."""

    @property
    def peak(self) -> float:
        return sum(self.memory.values())

    @property
    def host(self) -> float:
        return max(self.offloaded, self.written)


@dataclass(frozen=True)
class Run:
    """What the stages' estimates are made from."""

    settings: DictConfig
    shape: Shape
    source: str
    """Of the shape."""
    device: Device
    data: Data
    answer_share: float
    startup: float
    processes: int
    """On all nodes."""
    nodes: int
    threads: int

    def rate(self, precision: str) -> Rate:
        if precision not in self.device.tflops:
            known = ", ".join(sorted(self.device.tflops))
            raise SystemExit(
                f"plan.devices.{self.settings.hardware.name}.tflops: no {precision} (it has {known}): add it"
            )
        threads = 1 if self.has_gpus else self.threads
        return Rate(1e12 * self.device.tflops[precision] * threads * self.device.mfu, 1e9 * self.device.bandwidth_gbs)

    @property
    def served(self) -> float:
        """Bytes of vLLM's cache."""
        return float(self.settings.hardware.runtime.serve_memory_gb * GIB)

    @property
    def has_gpus(self) -> bool:
        return bool(self.settings.hardware.name != "cpu")

    @property
    def capacity(self) -> float:
        """Bytes of a device."""
        return 1e9 * (self.device.memory_gb or hardware.found().memory_gb)

    @property
    def host_capacity(self) -> float:
        """Bytes of a machine's memory: what a preset with GPUs asks for, as the one that will run it need not be this one."""
        return 1e9 * self.settings.hardware.runtime.min_memory_gb if self.has_gpus else self.capacity


def prepared(text: str) -> Run:
    """The run that a composition of conf/ describes."""
    settings = OmegaConf.create(text)
    assert isinstance(settings, DictConfig)
    own = params.fitted(settings, "plan", Settings, "conf/")
    name = settings.hardware.name
    if name not in own.devices:
        raise SystemExit(
            f"plan.devices: none for hardware.name '{name}' (it has {', '.join(own.devices)}): add it to conf/plan"
        )
    runtime = settings.hardware.runtime
    found, source = shape(settings)
    return Run(
        settings=settings,
        shape=found,
        source=source,
        device=own.devices[name],
        data=data(settings, own.assumed),
        answer_share=own.answer_share,
        startup=own.startup_seconds,
        processes=runtime.processes * runtime.nodes,
        nodes=runtime.nodes,
        threads=runtime.threads,
    )


def shape(settings: DictConfig) -> tuple[Shape, str]:
    """(shape, where from): of models/base where the last run made it from these settings, otherwise as conf/model pins it."""
    if made_by(settings, "base") and BASE.is_file():
        return model_shape.of(json.loads(BASE.read_text()), str(BASE)), f"read: {BASE}"
    pinned = OmegaConf.to_container(settings.model.shape) if settings.model.get("shape") else None
    if not isinstance(pinned, dict):
        raise SystemExit(
            f"conf/model: {settings.model.name} has no shape, nor is it in models/base: run `make base` or add it"
        )
    layers = settings.model.layers or pinned["num_hidden_layers"]
    config = {str(key): value for key, value in pinned.items()} | {"num_hidden_layers": layers}
    return model_shape.of(config, "conf/model"), "pinned: conf/model"


def made_by(settings: DictConfig, stage: str) -> bool:
    """Whether dvc.lock's run of `stage` had the section of its name that `settings` has."""
    stages = yaml.load(LOCK.read_text(), Loader=yaml.CSafeLoader)["stages"] if LOCK.is_file() else {}
    ran = stages.get(stage, {}).get("params", {}).get("params.yaml", {})
    return bool(ran) and ran.get(stage) == OmegaConf.to_container(settings[stage])


def data(settings: DictConfig, assumed: Assumed) -> Data:
    """As the reports of a run on the same data and splits counted it, otherwise as conf/plan assumes."""
    files = {name: REPORTS / f"{name}.json" for name in ("audit", "mix")}
    known = all(made_by(settings, stage) for stage in ("ingest", "split"))
    if not (known and all(file.is_file() for file in files.values())):
        return Data(**asdict(assumed), source="assumed: conf/plan")
    audit, mix = (json.loads(file.read_text()) for file in files.values())
    return Data(
        train=audit["rows_train"],
        preferences=mix["kept_preferences"],
        rl=mix["kept_rl"],
        test=mix["kept_test"],
        tokens=audit["tokens_train"] / audit["rows_train"],
        answer=audit["tokens_trained_train"] / audit["rows_train"],
        longest=audit["tokens_max"],
        source="counted: reports/audit.json",
    )


def estimates(run: Run) -> Iterator[Estimate]:
    """Every stage that trains or samples, in the order of the graph."""
    for name in recipe.STAGES:
        if run.settings.recipe[name]:
            yield STAGES[name](run)
    if run.settings.recipe.draft:
        yield draft(run)
    for variant in run.settings.recipe.variants:
        yield evaluate(run, variant)


def sft(run: Run) -> Estimate:
    cfg = run.settings.sft
    length = cfg.sequence_length if cfg.packing else min(cfg.sequence_length, run.data.longest)
    job = training(run, cfg, cfg.method, rows=cfg.micro_batch, length=length, scored=labelled(run, cfg))
    rows = run.data.train * run.data.tokens / length if cfg.packing else run.data.train
    return trained(run, "sft", job, passes(cfg, rows) * run.data.train * run.data.tokens, flops.trained(job))


def preferences(run: Run) -> Estimate:
    cfg = run.settings.preferences
    prompts = min(run.data.preferences, cfg.limit or run.data.preferences)
    return sampled(run, "preferences", prompts, prompts * cfg.samples, cfg.max_tokens * run.answer_share)


def draft(run: Run) -> Estimate:
    """Answers and their hidden states by vLLM, then the training of the head: memory is that of the fuller of both."""
    cfg, rows, row = run.settings.draft, *drafted(run)
    rate, trainer = run.rate(DTYPES[cfg.dtype]), head(run)
    answered = sampled(run, "draft", rows, rows, cfg.max_tokens * run.answer_share, cfg.concurrency)
    reading = rows * row * flops.forward(run.shape, round(row)) / rate.flops
    # What is held out is read forwards alone, a third of the work.
    learnt = rows * row * cfg.epochs * (1 - cfg.validation * 2 / 3)
    learning = learnt * trainer.operations(row) / rate.flops / run.processes
    width, own = memory.WIDTHS[DTYPES[cfg.dtype]], run.device
    learner = trainer.memory(width, 1e9 * own.process_gb, own.slack, run.processes)
    is_served = answered.peak >= sum(learner.values())
    return replace(
        answered,
        memory=answered.memory if is_served else learner,
        devices=run.processes,
        tokens=answered.tokens + round(rows * row * (1 + cfg.epochs)),
        seconds=answered.seconds + 2 * run.startup + reading + learning,
        served=run.served if is_served else 0,
    )


def drafted(run: Run) -> tuple[int, float]:
    """Rows that a head learns from, and tokens of one with its answer."""
    cfg = run.settings.draft
    if not (found := min(int(getattr(run.data, cfg.prompts)), cfg.rows)):
        raise SystemExit(
            f"make plan: no rows of {cfg.prompts} for draft: choose other draft.prompts, or recipe.draft=[]"
        )
    return found, run.data.tokens - run.data.answer + cfg.max_tokens * run.answer_share


def head(run: Run) -> Head:
    cfg = run.settings.draft
    return Head(
        model=run.shape,
        layers=cfg.layers,
        vocabulary=cfg.vocabulary or run.shape.vocabulary,
        read=len(speculators.layers(run.shape.layers)),
        steps=cfg.num_speculative_tokens,
        length=cfg.sequence_length,
        on_cpu=cfg.hardware == "cpu",
    )


def evaluate(run: Run, variant: str) -> Estimate:
    cfg = run.settings.evaluate
    rows = min(run.data.test, cfg.limit or run.data.test)
    return sampled(run, f"evaluate@{variant}", rows, rows, cfg.max_tokens * run.answer_share)


def dpo(run: Run) -> Estimate:
    """Both answers after one pass over their prompt, as far as that goes; the reference is the policy without its adapter."""
    cfg, rows = run.settings.dpo, 2 * run.settings.dpo.micro_batch
    tokens, whole, scored = paired(run, cfg), longest(run, cfg), 1.0
    # As temper.dpo_trainer does; TRL's reference-free trainer has a row for each answer.
    if cfg.reference and cfg.attention == "sdpa":
        answer = min(run.settings.preferences.max_tokens, whole - run.data.prompt)
        rows, whole, scored = cfg.micro_batch, whole + answer, 2 * answer / (whole + answer)
        tokens *= (run.data.tokens + run.data.answer) / (2 * run.data.tokens)
    job = training(run, cfg, "lora", rows=rows, length=whole, scored=scored)
    if cfg.sft_weight:
        job = with_cross_entropy(job)
    again = flops.forward(job.shape, job.length) if cfg.reference else 0
    held = compared(job) if cfg.reference else job
    return trained(run, "dpo", held, tokens, flops.trained(job) + again)


def kto(run: Run) -> Estimate:
    """Beside each answer a mismatched one, for the KL: policy and reference read both, and the policy learns from the first."""
    cfg = run.settings.kto
    job = compared(training(run, cfg, "lora", rows=cfg.micro_batch, length=longest(run, cfg)))
    each = flops.trained(job) + 3 * flops.forward(job.shape, job.length)
    return trained(run, "kto", job, paired(run, cfg, rows=2), each)


def orpo(run: Run) -> Estimate:
    cfg = run.settings.orpo
    job = with_cross_entropy(training(run, cfg, "lora", rows=2 * cfg.micro_batch, length=longest(run, cfg)))
    return trained(run, "orpo", job, paired(run, cfg), flops.trained(job))


def compared(job: Job) -> Job:
    """DPO's and KTO's pass, which holds most while TRL takes the entropy.

    Beside all activations there are three copies, the policy's logits, the reference's, and the former without the last position,
    and for some rows at a time the log-softmax, its exponential, and the product of both.
    """
    return replace(job, copies=job.copies + 3 * min(1, ENTROPY_ROWS / job.tokens))


def with_cross_entropy(job: Job) -> Job:
    """Beside log-probabilities of pairs the cross-entropy of chosen answers, of whose logits it keeps the softmax."""
    return replace(job, copies=job.copies + 0.5)


def reward(run: Run) -> Estimate:
    cfg = run.settings.reward
    job = training(run, cfg, cfg.method, rows=2 * cfg.micro_batch, length=longest(run, cfg), scored=0)
    return trained(run, "reward", job, paired(run, cfg), flops.trained(job))


def ppo(run: Run) -> Estimate:
    """Policy and value model in one pass, over one copy of the reward model beside the policy; answers sampled in between."""
    cfg = run.settings.ppo
    length = min(cfg.max_length, run.data.prompt + cfg.max_tokens)
    keys = cfg.rollout_batch * length * run.shape.kv_bytes(memory.WIDTHS[cfg.precision])
    scores = memory.FP32 * cfg.global_batch * cfg.max_tokens * run.shape.vocabulary
    job = training(run, cfg, "lora", rows=2 * cfg.micro_batch, length=length, scored=0.5)
    job = replace(
        job, checkpointing=False, devices=PPO_PROCESSES, trainable=2 * job.trainable, beside=1, cache=keys + scores
    )
    prompts = asked(run, "ppo")
    answers = round(passes(cfg, prompts) * prompts)
    answer = cfg.max_tokens * run.answer_share
    tokens = answers * (run.data.tokens + answer)
    # Policy, reference, reward and value read each answer; policy and value then learn from it.
    each = 4 * flops.forward(job.shape, length) + 2 * cfg.epochs_a_batch * flops.trained(job)
    rate = run.rate(cfg.precision)
    sampling = flops.sampled(job, answers, run.data.tokens, answers, answer, cfg.rollout_batch, rate)
    return trained(run, "ppo", job, tokens, each, sampling)


def grpo(run: Run) -> Estimate:
    """Logits of answers alone; what samples has weights and a cache of its own beside the policy."""
    cfg = run.settings.grpo
    length = run.data.prompt + cfg.max_tokens
    job = training(run, cfg, "lora", rows=cfg.micro_batch, length=length, scored=cfg.max_tokens / length)
    served = run.served if cfg.rollouts in ("vllm", "vllm-colocate") else 0
    own = cfg.micro_batch * length * run.shape.kv_bytes(job.width) if cfg.rollouts == "transformers" else 0
    job = replace(job, beside=1 if served else 0, cache=served + own)
    prompts = asked(run, "grpo")
    answers = round(passes(cfg, prompts * cfg.generations) * prompts * cfg.generations)
    answer = cfg.max_tokens * run.answer_share
    batch = cfg.global_batch if cfg.rollouts == "transformers" else vllm.SEQUENCES
    rate = run.rate(cfg.precision)
    sampling = flops.sampled(job, answers // cfg.generations, run.data.tokens, answers, answer, batch, rate)
    reference = flops.forward(job.shape, length) if cfg.beta else 0
    tokens = answers * (run.data.tokens + answer)
    return replace(trained(run, "grpo", job, tokens, flops.trained(job) + reference, sampling), served=served)


def training(run: Run, cfg: Any, method: str, rows: int, length: int, scored: float = 1) -> Job:
    """A trainer's pass over `rows` sequences of `length`; TRL's trainers replicate the model, whatever shards it in SFT."""
    zero, fsdp = cfg.get("deepspeed"), cfg.get("fsdp")
    sharding.check(zero, fsdp)
    adapter = {"full": None, "hft": None, "qlora": "qlora"}.get(method, "lora")
    width = memory.WIDTHS[cfg.precision]
    return Job(
        shape=run.shape,
        rows=rows,
        length=length,
        # TRL's reward trainer is given float32 weights where all of them are trained.
        stored=memory.FP32 if method == "full" and not scored else width,
        width=width,
        trainable=trainable(run.shape, cfg, method),
        adapter=adapter,
        eight_bit="8bit" in cfg.get("optimizer", ""),
        checkpointing=cfg.get("gradient_checkpointing", cfg.hardware != "cpu") and method != "prefix",
        spilled=cfg.get("offload_activations", False),
        own_input=own_input(cfg, width, sharded=bool(zero or fsdp)) if adapter and method not in axolotl.SOFT else 0,
        attention=cfg.attention,
        sharder="deepspeed" if zero else "fsdp" if fsdp else None,
        level=sharding.ZERO[zero] if zero else 3 if fsdp else 0,
        offloaded=(zero or fsdp or "").endswith("offload"),
        devices=run.processes,
        scored=scored,
    )


def own_input(cfg: Any, width: int, *, sharded: bool) -> int:
    """Bytes of an element of its input that each adapter keeps for itself.

    Autocast copies it to bf16, since the adapter is in float32, unless FSDP or DeepSpeed hand that out in bf16 too; dropout makes
    another tensor of it, and keeps a mask: of bytes on a GPU, of float32 factors on a CPU.
    """
    dropped = cfg.lora.dropout > 0
    copied = dropped or (width < memory.ADAPTER and not sharded)
    mask = memory.FP32 if cfg.hardware == "cpu" else 1
    return (width if copied else 0) + (mask if dropped else 0)


def trainable(shape: Shape, cfg: Any, method: str) -> int:
    """Parameters that a method trains; half fine-tuning trains all of them, a half at a time."""
    if method in ("full", "hft"):
        return shape.parameters()
    if method == "prompt":
        return int(cfg.virtual_tokens * shape.hidden)
    if method == "prefix":
        return int(cfg.virtual_tokens * 2 * shape.layers * shape.keys)
    found = shape.lora(cfg.lora.rank, cfg.lora.targets)
    magnitudes = shape.layers * sum(shape.linears()[name][1] for name in cfg.lora.targets)
    return found + (magnitudes if method == "dora" else 0)


def passes(cfg: Any, rows: float) -> float:
    """Passes over `rows`, which max_steps may cut short."""
    return float(cfg.epochs if cfg.max_steps is None else min(cfg.epochs, cfg.max_steps * cfg.global_batch / rows))


def asked(run: Run, section: str) -> int:
    """Prompts of the split that reinforcement learning reads."""
    split = prompt_set.file(section, run.settings[section].prompts).stem
    if not (found := int(getattr(run.data, split))):
        raise SystemExit(f"make plan: {prompt_set.nobody(section, split)}")
    return found


def labelled(run: Run, cfg: Any) -> float:
    """Share of the positions that SFT computes logits of: on a CPU those where a row has a label (temper/labelled_logits.py)."""
    if cfg.hardware != "cpu" or cfg.method in axolotl.SOFT:
        return 1.0
    return float(1 - (1 - run.data.answer / run.data.tokens) ** cfg.micro_batch)


def longest(run: Run, cfg: Any) -> int:
    """Tokens of a prompt and an answer of the data, or one that was sampled to it."""
    sampled = run.data.prompt + run.settings.preferences.max_tokens
    return int(min(cfg.max_length, max(run.data.longest, sampled)))


def paired(run: Run, cfg: Any, rows: int = 1) -> float:
    """Tokens of both answers, prompts included, of all pairs in all passes; a global batch counts a pair as so many `rows`."""
    pairs = run.data.preferences * run.settings.preferences.pairs_per_prompt
    return passes(cfg, rows * pairs) * 2 * pairs * run.data.tokens


def trained(run: Run, stage: str, job: Job, tokens: float, operations: float, sampling: float = 0) -> Estimate:
    """Of `tokens` that take `operations` each, shared by all devices, and `sampling` seconds."""
    cfg = run.settings[stage]
    rate = run.rate(cfg.precision)
    room = run.capacity if run.has_gpus else 0
    return Estimate(
        stage=stage,
        memory=memory.of(job, 1e9 * run.device.process_gb, run.device.slack, room),
        devices=job.devices,
        tokens=round(tokens),
        seconds=run.startup + tokens * operations / rate.flops / job.devices + sampling,
        offloaded=memory.offloaded(job) * math.ceil(job.devices / run.nodes),
        written=0 if cfg.get("method") in axolotl.SOFT else memory.written(job),
    )


def sampled(run: Run, stage: str, prompts: int, answers: int, answer: float, batch: int = vllm.SEQUENCES) -> Estimate:
    """`answers` of `answer` tokens, `batch` at a time, by vLLM on one device: weights, its cache and the logits of a step."""
    precision = DTYPES[run.settings[stage.partition("@")[0]].dtype]
    width = memory.WIDTHS[precision]
    job = Job(run.shape, rows=1, length=1, stored=width, width=width, trainable=0)
    scores = memory.FP32 * min(batch, answers) * run.shape.vocabulary
    rate = run.rate(precision)
    spent = flops.sampled(job, prompts, run.data.tokens, answers, answer, batch, rate)
    held = {
        "weights": memory.weights(job),
        "KV cache": run.served,
        "logits": scores,
        "process": 1e9 * run.device.serve_gb,
    }
    tokens = round(prompts * run.data.tokens + answers * answer)
    return Estimate(stage, held, 1, tokens, run.startup + spent, served=run.served)


STAGES: dict[str, Callable[[Run], Estimate]] = {
    "sft": sft,
    "preferences": preferences,
    "dpo": dpo,
    "kto": kto,
    "orpo": orpo,
    "reward": reward,
    "ppo": ppo,
    "grpo": grpo,
}
