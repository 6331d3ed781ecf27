"""Memory of a training process and of a server, in bytes, term by term.

Model states: Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054), section 3.1 and figure 1; NF4 with double quantization: Dettmers
et al. 2023 (QLoRA, arXiv:2305.14314), section 3; activations: counted as Korthikanti et al. 2022 (arXiv:2205.05198), section 4.1,
count GPT's, for the layer that transformers builds: RMSNorm in float32, rotary attention, gated MLP, no dropout; what
PyTorch keeps of a GPU's memory though no tensor needs it: https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management.
"""

from dataclasses import dataclass

from temper.model_shape import Shape

FP32, BF16 = 4, 2
WIDTHS = {"fp32": FP32, "bf16": BF16, "fp8": BF16}
"""Bytes by precision: fp8 multiplies, and keeps what it multiplies in bf16."""
NF4 = 4 / 8  # bytes a weight
CONSTANTS = 0.127 / 8  # beside them: 8 bits for 64 weights and 32 for 64·256
ADAPTER = FP32  # PEFT keeps adapters in float32 over weights of any kind
# Of all logits in the backward pass of a cross-entropy: the log-softmax, its gradient and the gradient of the logits; where
# log-probabilities of answers are taken (selective_log_softmax), the gradients of rows, of all of them, and of what was gathered.
COPIES = 3.0
# Sharded weights that are whole at a time: in FSDP two layers, the one in use and the one fetched ahead; in DeepSpeed as many
# elements as its stage3_max_live_parameters and stage3_max_reuse_distance allow.
GATHERED, LIVE = 2, 1e9
BUCKET = 5e8  # elements of a buffer of gradients on their way: DeepSpeed's reduce_bucket_size
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
    own_input: int = 0
    """Bytes of each element that each adapter keeps of its input for itself: a copy that autocast made, or dropout and its mask."""
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
    copies: float = COPIES
    """Of these logits in float32, when they are most."""
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


def of(job: Job, process: float, slack: float, room: float = 0.0) -> dict[str, float]:
    """Peak bytes on a device by what holds them.

    `process` bytes are its libraries' and context's; the allocator takes the share `slack` of activations on top. Logits are
    so large that they have pages of their own. What is freed goes back to the system, but of a GPU, which has `room` bytes,
    PyTorch keeps it until nothing else is left: that is what nvidia-smi shows.
    """
    shardable = 0 if job.offloaded and job.level == 3 else weights(job) - constants(job)
    passing, scores = transient(job)
    held = {
        "weights": shardable / job.shards(3) + constants(job),
        "gathered": gathered(job),
        "adapter": ADAPTER * job.trainable if job.adapter else 0,
        "gradients": gradients(job),
        "optimizer": 0 if job.offloaded else moments(job) / job.shards(1),
        "other models": job.beside * job.stored * job.shape.parameters(),
        "activations": passing,
        "logits": scores,
        "KV cache": job.cache,
        "process": process + slack * passing,
    }
    return held | {"cached": max(0.0, min(cached(job), room - sum(held.values())))}


def offloaded(job: Job) -> float:
    """Bytes of the machine's memory for what one device leaves there."""
    moved = moments(job) + (weights(job) if job.level == 3 else 0) if job.offloaded else 0
    return moved / job.shards(1) + (kept(job) if job.spilled else 0)


def written(job: Job) -> float:
    """Bytes of the machine's memory to write what was trained: the model in float32, and the adapter that is summed into it."""
    return float(FP32 * (job.shape.parameters() + (job.trainable if job.adapter else 0)))


def weights(job: Job) -> float:
    """Bytes of the policy: NF4 holds the linear maps of layers; embeddings, head and norms stay in bf16."""
    if job.adapter == "qlora":
        return NF4 * job.shape.linear() + BF16 * job.shape.rest() + constants(job)
    return float(job.stored * job.shape.parameters())


def constants(job: Job) -> float:
    """Bytes of NF4's constants, which are no parameters, so that nothing shards them."""
    return CONSTANTS * job.shape.linear() if job.adapter == "qlora" else 0.0


def gathered(job: Job) -> float:
    """Bytes of what is made whole from shards, or bf16 from NF4, to be multiplied with.

    What belongs to no layer (embeddings, head) FSDP makes whole for the length of a pass.
    """
    maps, rest = job.shape.linear() * (NF4 if job.adapter == "qlora" else job.width), job.shape.rest() * job.width
    whole = GATHERED * maps / job.shape.layers + rest if job.sharder == "fsdp" else min(LIVE * job.width, maps + rest)
    largest = max(inputs * outputs for inputs, outputs in job.shape.linears().values())
    return (whole if job.level == 3 else 0) + (BF16 * largest if job.adapter == "qlora" else 0)


def gradients(job: Job) -> float:
    """Bytes of gradients, and of the buffers in which DDP or DeepSpeed sends them: of ZeRO-1 and 2 two (overlap_comm), of 3 one."""
    own = (ADAPTER if job.adapter else job.stored) * job.trainable
    if job.sharder == "deepspeed":
        return own / job.shards(2) + BUCKET * job.width * (1 if job.level == 3 else 2)
    return own * 2 if job.devices > 1 and not job.sharder else own / job.shards(2)


def moments(job: Job) -> float:
    """Bytes of AdamW: two moments, and float32 weights where what is sharded is bf16 (ZeRO's K = 12)."""
    if job.eight_bit:
        return 2.0 * job.trainable
    if job.adapter or job.stored == FP32:
        return 2.0 * FP32 * job.trainable
    return (3.0 * FP32 if job.sharder else 2.0 * BF16) * job.trainable


def transient(job: Job) -> tuple[float, float]:
    """Bytes of (activations, logits) when they are most together: at the loss, or in a layer's backward pass, the logits gone."""
    layers, scores = backward(job), logits(job)
    return (activations(job) + layers, 0.0) if layers > scores else (activations(job), scores)


def cached(job: Job) -> float:
    """Bytes that are free when `transient` is most: of logits or of a layer's backward pass, whose blocks have other sizes."""
    return min(backward(job), logits(job))


def backward(job: Job) -> float:
    """Bytes of a layer's backward pass: gradients of the residual stream and both halves of the MLP, and what is recomputed."""
    gradients = job.tokens * (job.shape.hidden + 2 * job.shape.intermediate) * job.width
    return gradients + (layer(job) if job.checkpointing else 0)


def activations(job: Job) -> float:
    """Bytes kept from the forward pass to the backward pass: all that layers keep, or with checkpointing their inputs alone."""
    if job.checkpointing:
        return 0.0 if job.spilled else kept(job)
    return job.shape.layers * layer(job)


def kept(job: Job) -> float:
    """Bytes of the inputs of all layers."""
    return float(job.shape.layers * job.tokens * job.shape.hidden * job.width)


def layer(job: Job) -> float:
    """Bytes that one layer keeps.

    A norm keeps its input in float32 (with trained weights also what they multiply); attention its queries, its keys and values
    repeated to as many heads, and its output; the MLP both halves and the gate's SiLU. Linear maps keep what they are given:
    the norms' outputs and the MLP's product, unless each adapter keeps its own.
    """
    shape, width = job.shape, job.width
    norms = shape.norms * shape.hidden * (FP32 + (0 if job.adapter else width))
    if shape.normed_heads:
        norms += (shape.queries + shape.keys) * (FP32 + width)
    attention = 4 * shape.queries * width
    scores = shape.heads * job.length * (FP32 + width) if job.attention in MATERIALIZING else 0
    shared = (2 * shape.hidden + shape.intermediate) * width
    inputs = job.own_input * sum(inputs for inputs, _ in shape.linears().values()) if job.own_input else shared
    return job.tokens * (norms + attention + scores + 3 * shape.intermediate * width + inputs)


def logits(job: Job) -> float:
    return FP32 * job.copies * job.scored * job.tokens * job.shape.vocabulary
