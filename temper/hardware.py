"""What this machine is: the label on every figure that depends on it, and the preset that fits it."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

BF16_FLAGS = {"avx512_bf16", "amx_bf16"}  # as /proc/cpuinfo spells them


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    memory_gb: float
    gpus: tuple[str, ...]
    gpu_memory_gb: float
    """Memory of the smallest GPU; 0 without one."""
    bf16: bool = False
    """Whether the CPU has instructions that multiply bf16; without them it is many times slower than fp32."""

    def __str__(self) -> str:
        gpus = f", {len(self.gpus)}× {self.gpus[0]}" if self.gpus else ""
        return f"{self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB{gpus}"

    @property
    def preset(self) -> str:
        """The fastest of conf/hardware that fits: gpu8 wants eight GPUs of 80 GB, gpu1 one of 24 GB."""
        if len(self.gpus) >= 8 and self.gpu_memory_gb >= 79:
            return "gpu8"
        if self.gpus and self.gpu_memory_gb >= 23:
            return "gpu1"
        return "cpu-bf16" if self.bf16 else "cpu"


def found() -> Machine:
    """The machine that this process may use: cores by affinity, memory by the kernel, GPUs by nvidia-smi."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus = _gpus()
    smallest = min((gigabytes for _, gigabytes in gpus), default=0.0)
    name = _cpu_lines("model name") or platform.processor() or platform.machine()
    bf16 = not BF16_FLAGS.isdisjoint(_cpu_lines("flags").split())
    return Machine(name, len(os.sched_getaffinity(0)), memory, tuple(name for name, _ in gpus), smallest, bf16)


def _cpu_lines(key: str) -> str:
    """What Linux says under `key` of its first core; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _gpus() -> list[tuple[str, float]]:
    """Name and memory in GB of each GPU that the NVIDIA driver lists."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if answer.returncode == 0 and "," in line]
    return [(name.strip(), float(mebibytes) * 2**20 / 1e9) for name, mebibytes in rows]
