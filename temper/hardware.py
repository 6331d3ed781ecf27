"""What this machine is: the label on every figure that depends on it, and the preset that fits it."""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Machine:
    cpu: str
    cores: int
    memory_gb: float
    gpus: tuple[str, ...]
    gpu_memory_gb: float
    """Memory of the smallest GPU; 0 without one."""

    def __str__(self) -> str:
        gpus = f", {len(self.gpus)}× {self.gpus[0]}" if self.gpus else ""
        return f"{self.cpu}, {self.cores} cores, {self.memory_gb:.0f} GB{gpus}"

    @property
    def preset(self) -> str:
        """The largest of conf/hardware that fits: gpu8 wants eight GPUs of 80 GB, gpu1 one of 24 GB."""
        if len(self.gpus) >= 8 and self.gpu_memory_gb >= 79:
            return "gpu8"
        return "gpu1" if self.gpus and self.gpu_memory_gb >= 23 else "cpu"


def found() -> Machine:
    """The machine that this process may use: cores by affinity, memory by the kernel, GPUs by nvidia-smi."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus = _gpus()
    smallest = min((gigabytes for _, gigabytes in gpus), default=0.0)
    return Machine(_cpu(), len(os.sched_getaffinity(0)), memory, tuple(name for name, _ in gpus), smallest)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[tuple[str, float]]:
    """Name and memory in GB of each GPU that the NVIDIA driver lists."""
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    rows = [line.rsplit(",", 1) for line in answer.stdout.splitlines() if answer.returncode == 0 and "," in line]
    return [(name.strip(), float(mebibytes) * 2**20 / 1e9) for name, mebibytes in rows]
