"""One model over several GPUs: DeepSpeed's ZeRO and PyTorch's FSDP2, each in its own configuration."""

from typing import Any

Config = dict[str, Any]
# "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", Rajbhandari et al. 2019, arXiv:1910.02054, section 3.
ZERO = {"zero1": 1, "zero2": 2, "zero3": 3, "zero2-offload": 2, "zero3-offload": 3}
FSDP = ("shard", "offload")


def check(deepspeed: str | None, fsdp: str | None) -> None:
    """Exit naming the key of conf/hardware that has no meaning."""
    for key, value, known in (("deepspeed", deepspeed, ZERO), ("fsdp", fsdp, FSDP)):
        if value is not None and value not in known:
            raise SystemExit(
                f"hardware.{key} is '{value}', expected null, {', '.join(known)}: correct it in conf/hardware"
            )
    if deepspeed and fsdp:
        raise SystemExit(
            f"hardware.deepspeed is {deepspeed} and hardware.fsdp is {fsdp}: one shards, so set the other to null"
        )


def zero(name: str) -> Config:
    """DeepSpeed's configuration for a name of ZERO; batch shapes and precision come from the trainer."""
    stage: Config = {"stage": ZERO[name], "overlap_comm": True, "contiguous_gradients": True}
    if ZERO[name] == 3:
        # Without it a checkpoint is one shard a process.
        stage["stage3_gather_16bit_weights_on_model_save"] = True
    if name.endswith("-offload"):
        to_cpu = {"device": "cpu", "pin_memory": True}
        stage |= {"offload_optimizer": to_cpu} | ({"offload_param": to_cpu} if ZERO[name] == 3 else {})
    auto = ("gradient_accumulation_steps", "gradient_clipping", "train_batch_size", "train_micro_batch_size_per_gpu")
    return {"zero_optimization": stage, "bf16": {"enabled": "auto"}, **dict.fromkeys(auto, "auto")}


def fsdp2(name: str, *, checkpointing: bool, quantized: bool) -> Config:
    """Axolotl's keys for FSDP2, which wraps the layers that the model's class names and recomputes activations itself."""
    config = {
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "reshard_after_forward": True,
        "offload_params": name == "offload",
        # Quantization by the first process alone leaves the others with weights of another shape.
        "cpu_ram_efficient_loading": not quantized,
        "state_dict_type": "FULL_STATE_DICT",
        "activation_checkpointing": checkpointing,
    }
    return {"fsdp_version": 2, "fsdp_config": config}
