"""Weights as they lie in a folder's safetensors: shapes and bytes, read from the headers alone."""

import json
import math
from pathlib import Path
from typing import NamedTuple


class Stored(NamedTuple):
    shape: tuple[int, ...]
    size: int
    """In bytes."""


def stored(folder: Path) -> dict[str, Stored]:
    """Every tensor of all safetensors in `folder`, by name.

    A file begins with the length of its header in 8 bytes, little-endian, then the header as JSON
    (https://huggingface.co/docs/safetensors#format).
    """
    found: dict[str, Stored] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as lines:
            header = json.loads(lines.read(int.from_bytes(lines.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = Stored(tuple(entry["shape"]), end - begin)
    return found


def count(tensors: dict[str, Stored]) -> int:
    return sum(math.prod(one.shape) for one in tensors.values())


def size(tensors: dict[str, Stored]) -> int:
    """In bytes."""
    return sum(one.size for one in tensors.values())
