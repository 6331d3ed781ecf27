"""Memory of a training process and of a server, in bytes, term by term.

Model states: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), section 3.1 and figure 1; NF4 with double quantization: Dettmers
et al. 2023 (QLoRA, arXiv:2305.14314), section 3; activations: counted as Korthikanti et al. 2022 (arXiv:2205.05198), section 4.1,
count GPT's, for the layer that transformers builds: RMSNorm in float32, rotary attention, gated MLP, no dropout.
"""

from dataclasses import dataclass

from temper.model_shape import Shape

FP32, BF16 = 4, 2
WIDTHS = {"fp32": FP32, "bf16": BF16, "fp8": BF16}
"""Bytes by precision: fp8 multiplies, and keeps what it multiplies in bf16."""
NF4 = (4 + 0.127) / 8  # bytes a weight: 4 bits and 8/64 + 32/(64·256) of constants
ADAPTER = FP32  # PEFT keeps adapters in float32 over weights of any kind
# Of one logit at the loss's peak: the log-softmax, its gradient and the gradient of the logits, each float32.
LOGIT = 3 * FP32
# Layers whose sharded weights are whole at a time: the one in use and the one fetched ahead.
GATHERED = 2
BUCKETS = 2 * 5e8  # gradients on their way in DeepSpeed: two buffers (overlap_comm) of its reduce_bucket_size
MATERIALIZING = ("eager",)  # attention kernels that write the matrix of scores


@dataclass(frozen=True)
class Job:
    """What one process of a training does in one forward and backward pass."""

    shape: Shape
    rows: int
    """Sequences, both answers of a pair counted."""
    length: int
    """Tokens of a sequence."""
    stored: int
    """Bytes of a weight."""
    width: int
    """Bytes of an activation."""
    trainable: int
    """Parameters."""
    adapter: str | None = None
    """lora, qlora, or None where the weights themselves are trained."""
    eight_bit: bool = False
    """Whether Adam's moments have 8 bits."""
    checkpointing: bool = False
    spilled: bool = False
    """Whether what checkpointing keeps lies in the machine's memory."""
    attention: str = "sdpa"
    sharder: str | None = None
    """deepspeed or fsdp, which keep float32 copies of bf16 weights."""
    level: int = 0
    """Of ZeRO: 1 shards the optimizer, 2 gradients too, 3 (as FSDP) weights too."""
    offloaded: bool = False
    """Whether what is sharded, but for gradients, lies in the machine's memory."""
    devices: int = 1
    scored: float = 1.0
    """Share of the positions whose logits are computed: 0 for a reward model."""
    beside: float = 0.0
    """Other whole models on the device (reference, reward), in policies."""
    cache: float = 0.0
    """Bytes that sampling takes: keys and values of sequences on their way, and their logits."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    def shards(self, level: int) -> int:
        """Devices that share what ZeRO shards from `level` on."""
        return self.devices if self.level >= level else 1


def of(job: Job, process: float, slack: float) -> dict[str, float]:
    """Peak bytes on a device by what holds them.

    `process` bytes are its libraries' and context's; the allocator takes the share `slack` of what comes and goes on top.
    """
    passing = activations(job) + logits(job)
    return {
        "weights": 0 if job.offloaded and job.level == 3 else weights(job) / job.shards(3),
        "gathered": gathered(job),
        "adapter": ADAPTER * job.trainable if job.adapter else 0,
        "gradients": gradients(job),
        "optimizer": 0 if job.offloaded else moments(job) / job.shards(1),
        "other models": job.beside * job.stored * job.shape.parameters(),
        "activations": activations(job),
        "logits": logits(job),
        "KV cache": job.cache,
        "process": process + slack * passing,
    }


def offloaded(job: Job) -> float:
    """Bytes of the machine's memory for what one device leaves there."""
    moved = moments(job) + (weights(job) if job.level == 3 else 0) if job.offloaded else 0
    return moved / job.shards(1) + (kept(job) if job.spilled else 0)


def weights(job: Job) -> float:
    """Bytes of the policy: NF4 holds the linear maps of layers; embeddings, head and norms stay in bf16."""
    if job.adapter == "qlora":
        return NF4 * job.shape.linear() + BF16 * (job.shape.parameters() - job.shape.linear())
    return float(job.stored * job.shape.parameters())


def gathered(job: Job) -> float:
    """Bytes of what is made whole from shards, or bf16 from NF4, to be multiplied with."""
    layer = job.shape.linear() / job.shape.layers
    whole = GATHERED * layer * (NF4 if job.adapter == "qlora" else job.stored) if job.level == 3 else 0
    largest = max(inputs * outputs for inputs, outputs in job.shape.linears().values())
    return whole + (BF16 * largest if job.adapter == "qlora" else 0)


def gradients(job: Job) -> float:
    """Bytes of gradients, and of the buffers in which DDP or DeepSpeed sends them."""
    own = (ADAPTER if job.adapter else job.stored) * job.trainable
    if job.sharder == "deepspeed":
        return own / job.shards(2) + BUCKETS * job.width
    return own * 2 if job.devices > 1 and not job.sharder else own / job.shards(2)


def moments(job: Job) -> float:
    """Bytes of AdamW: two moments, and float32 weights where what is sharded is bf16 (ZeRO's K = 12)."""
    if job.eight_bit:
        return 2.0 * job.trainable
    if job.adapter or job.stored == FP32:
        return 2.0 * FP32 * job.trainable
    return (3.0 * FP32 if job.sharder else 2.0 * BF16) * job.trainable


def activations(job: Job) -> float:
    """Bytes kept for the backward pass; with checkpointing the inputs of layers, and one layer in full while it is redone."""
    if job.checkpointing:
        return (0 if job.spilled else kept(job)) + layer(job)
    return job.shape.layers * layer(job)


def kept(job: Job) -> float:
    """Bytes of the inputs of all layers."""
    return float(job.shape.layers * job.tokens * job.shape.hidden * job.width)


def layer(job: Job) -> float:
    """Bytes that one layer keeps.

    A norm keeps its input in float32 and its output (with trained weights also what they multiply); attention its queries, its
    keys and values repeated to as many heads, and its output; the MLP both halves, the gate's SiLU and their product.
    """
    shape, width = job.shape, job.width
    norms = shape.norms * shape.hidden * (FP32 + width * (1 if job.adapter else 2))
    if shape.normed_heads:
        norms += (shape.queries + shape.keys) * (FP32 + width)
    attention = 4 * shape.queries * width
    scores = shape.heads * job.length * (FP32 + width) if job.attention in MATERIALIZING else 0
    return job.tokens * (norms + attention + scores + 4 * shape.intermediate * width)


def logits(job: Job) -> float:
    return LOGIT * job.scored * job.tokens * job.shape.vocabulary
