"""Stratified splits that keep clusters of near-duplicates whole, and a golden set that later data do not change."""

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from temper import mismatch
from temper.records import Row

REST = "train"
GOLDEN = "golden"


class Member(NamedTuple):
    """What dealing needs of a row."""

    made: bool
    id: str
    cluster: str
    category: str


def member(row: Row) -> Member:
    return Member(row["category"] == mismatch.CATEGORY, row["id"], row["cluster"], row["category"])


def deal(members: Iterable[Member], shares: dict[str, float], golden: float, seed: int) -> dict[str, str]:
    """The split of each cluster. `shares` are of each category; what is left trains.

    Golden clusters are taken first. The others are dealt whole, in seeded order, to the first split that still has room
    for all of a cluster's rows. The order of the members decides nothing.
    """
    clusters: dict[str, list[Member]] = defaultdict(list)
    for one in members:
        clusters[one.cluster].append(one)
    dealt = {name: GOLDEN for name in clusters if is_golden(name, golden)}
    room = dict.fromkeys(shares, 0.0)
    for category, names in _strata(clusters, dealt).items():
        size = sum(_weight(clusters[name]) for name in names)
        # What rounding left over or a large cluster could not fill passes on to the next category, so that totals hold.
        room = {split: room[split] + share * size for split, share in shares.items()}
        for name in random.Random(f"{seed}/{category}").sample(names, len(names)):
            weight = _weight(clusters[name])
            dealt[name] = next((split for split in shares if round(room[split]) >= weight), REST)
            if dealt[name] != REST:
                room[dealt[name]] -= weight
    return dealt


def is_golden(cluster: str, share: float) -> bool:
    """Whether a cluster belongs to the golden set: when its name, 16 hexadecimal digits, is among the least `share` of all.

    The name is the least digest of what the cluster's rows ask (temper/duplicates.py), so a row is golden if its own request or
    that of any row like it is drawn: neither the seed nor the rows' source decides, and more rows can only let clusters join.
    Of clusters with k different requests 1 − (1 − share)^k are golden: 3% of lone rows, 14% of fives.
    """
    return int(cluster, 16) < share * 2**64


def _strata(clusters: dict[str, list[Member]], dealt: dict[str, str]) -> dict[str, list[str]]:
    """Names of the clusters not yet dealt, by the category of a cluster's first member: a genuine one where there is one."""
    strata: dict[str, list[str]] = defaultdict(list)
    for name in clusters.keys() - dealt.keys():
        strata[min(clusters[name]).category].append(name)
    return {category: sorted(strata[category]) for category in sorted(strata)}


def _weight(members: list[Member]) -> int:
    """How many rows of a cluster count towards a split's share: the genuine ones, and at least one."""
    return max(1, sum(not one.made for one in members))
