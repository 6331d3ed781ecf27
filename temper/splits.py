"""Stratified splits that keep clusters of near-duplicates whole."""

import random
from collections import defaultdict

from temper import mismatch
from temper.records import Row

REST = "train"


def parts(rows: list[Row], shares: dict[str, float], seed: int) -> dict[str, list[Row]]:
    """Rows by split, each in the input's order. `shares` are of each category; what is left trains.

    Clusters are dealt whole, in seeded order, to the first split that still has room for all of a cluster's rows.
    """
    clusters: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        clusters[row["cluster"]].append(row)
    dealt: dict[str, str] = {}
    room = dict.fromkeys(shares, 0.0)
    for category, names in _strata(clusters).items():
        size = sum(_weight(clusters[name]) for name in names)
        # What rounding left over or a large cluster could not fill passes on to the next category, so that totals hold.
        room = {split: room[split] + share * size for split, share in shares.items()}
        for name in random.Random(f"{seed}/{category}").sample(names, len(names)):
            weight = _weight(clusters[name])
            dealt[name] = next((split for split in shares if round(room[split]) >= weight), REST)
            if dealt[name] != REST:
                room[dealt[name]] -= weight
    return {split: [row for row in rows if dealt[row["cluster"]] == split] for split in [*shares, REST]}


def _strata(clusters: dict[str, list[Row]]) -> dict[str, list[str]]:
    """Cluster names by the category of a cluster's first row, which is a genuine one: made rows come last."""
    strata: dict[str, list[str]] = defaultdict(list)
    for name, rows in clusters.items():
        strata[rows[0]["category"]].append(name)
    return {category: sorted(strata[category]) for category in sorted(strata)}


def _weight(rows: list[Row]) -> int:
    """How many rows of a cluster count towards a split's share: the genuine ones, and at least one."""
    return max(1, sum(row["category"] != mismatch.CATEGORY for row in rows))
