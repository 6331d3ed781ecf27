"""How often each row trains: groups of sources by weight or by temperature, sampled up and down."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np


@dataclass
class Group:
    sources: list[str]
    """Globs over a row's `source`."""
    weight: float | None
    """Share of the mix, relative to the other groups' weights; null for all of them means by temperature."""
    copies: int
    """As how many each row counts: without weights, how often it trains."""


def group_of(source: str, groups: dict[str, Group]) -> str:
    """The first group with a glob that fits; exits when none does."""
    for name, group in groups.items():
        if any(fnmatch(source, glob) for glob in group.sources):
            return name
    raise SystemExit(f"conf/mix: no group takes rows of '{source}': add a glob for it, or a last group with '*'")


def targets(
    sizes: dict[str, int], weights: dict[str, float | None], temperature: float, rows: int | None
) -> dict[str, int]:
    """Rows that each group shall have, from how many it has, copies counted; together exactly `rows`, or as many as there are.

    Shares follow the weights; where all are null, share_i ∝ n_i^(1/T) (Devlin 2018, multilingual BERT; Raffel et al. 2020,
    section 3.5.2).
    """
    if any(weight is None for weight in weights.values()):
        if any(weight is not None for weight in weights.values()):
            raise SystemExit("conf/mix: some groups have a weight and some have none: state all or none of them")
        weights = {name: size ** (1 / temperature) for name, size in sizes.items()}
    if empty := [name for name, weight in weights.items() if weight and not sizes[name]]:
        raise SystemExit(f"conf/mix: no row for {', '.join(empty)}: correct its globs, or take the group out")
    total = sum(weight for weight in weights.values() if weight is not None)
    if total <= 0 or min(weight or 0 for weight in weights.values()) < 0:
        raise SystemExit("conf/mix: weights must be at least 0, and one of them above it")
    wanted = sum(sizes.values()) if rows is None else rows
    return apportioned({name: wanted * (weights[name] or 0) / total for name in sizes}, wanted)


def apportioned(quotas: dict[str, float], total: int) -> dict[str, int]:
    """Whole numbers near `quotas` that sum to `total`: what flooring leaves goes to the largest remainders (Hamilton's method)."""
    floors = {name: int(quota) for name, quota in quotas.items()}
    ranked = sorted(quotas, key=lambda name: floors[name] - quotas[name])
    return floors | {name: floors[name] + 1 for name in ranked[: total - sum(floors.values())]}


def copies(ids: Iterable[tuple[str, str]], wanted: dict[str, int], seed: int) -> dict[str, int]:
    """How often each row trains, from (group, id) pairs: every row as often as the rest, and some once more.

    Which ones are sampled is decided by a hash of seed and id, so neither order nor sharding matters.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for group, name in ids:
        members[group].append(name)
    chosen: dict[str, int] = {}
    for group, names in members.items():
        whole, more = divmod(wanted[group], len(names))
        keys = np.array([_key(name, seed) for name in names], dtype=np.uint64)
        first = set(np.argsort(keys, kind="stable")[:more].tolist())
        chosen |= {name: whole + (number in first) for number, name in enumerate(names)}
    return chosen


def _key(name: str, seed: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")
