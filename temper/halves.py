"""Half fine-tuning: which half of a model's weights an epoch trains (Hui et al. 2024, arXiv:2404.18466)."""

import random
import re
from collections.abc import Sequence

# model.layers.3.self_attn.q_proj.weight: layer 3, block self_attn, module …q_proj
LAYER = re.compile(r"\.layers\.(?P<layer>\d+)\.(?P<block>\w+)\.")


def trained(names: Sequence[str], seed: int, epoch: int) -> set[str]:
    """The parameters of `names` that `epoch` trains: a half by lot, and in the next epoch the other half.

    Halves are made of modules, of each layer's attention, MLP and norms by themselves (the paper's category-level selection);
    of an odd number, layers take turns in having the larger part. What lies outside the layers (embeddings, head) always trains.
    """
    chosen, groups = {name for name in names if not LAYER.search(name)}, _groups(names)
    lot, even = random.Random(f"{seed} {epoch // 2}"), epoch % 2 == 0
    for (_, layer), modules in sorted(groups.items()):
        order = sorted(modules)
        lot.shuffle(order)
        half = (len(order) + layer % 2) // 2
        chosen |= {name for module in (order[:half] if even else order[half:]) for name in modules[module]}
    return chosen


def _groups(names: Sequence[str]) -> dict[tuple[str, int], dict[str, list[str]]]:
    """By block and layer, the parameters of each module."""
    groups: dict[tuple[str, int], dict[str, list[str]]] = {}
    for name in names:
        if found := LAYER.search(name):
            block, module = "norms" if "norm" in name else found["block"], name.rpartition(".")[0]
            groups.setdefault((block, int(found["layer"])), {}).setdefault(module, []).append(name)
    return groups
