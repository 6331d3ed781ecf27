"""Scores of different scales made comparable: each becomes one of 20 buckets by its percentile, and the best bucket counts.

As in Nemotron-CC (Su et al. 2024, section 2.2). What decides is the rank within a data set, so that the buckets of a row are the
same however the data set is sharded. Memory is 4 bytes a row and scorer.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from temper.records import Row

COUNT = 20
Scores = NDArray[np.float32]
Groups = NDArray[np.int32]
"""The number of each row's group; ranks are taken within a group."""
Buckets = NDArray[np.int8]


def edges(scores: Scores, groups: Groups) -> Scores:
    """(groups, 19): the lowest score of each bucket from 1 to 19, infinite where a group has none that reaches it.

    A score's percentile is the share of its group below it plus half the share equal to it, so that a group whose scores are
    all the same is in the middle and not at an end.
    """
    found = np.full((int(groups.max(initial=-1)) + 1, COUNT - 1), np.inf, dtype=np.float32)
    for group, rows in _members(groups):
        found[group] = _edges(scores[rows])
    return found


def assigned(scores: Scores, groups: Groups, lowest: Scores) -> Buckets:
    """The bucket of each score, 0 to 19, by the edges of its group."""
    buckets = np.zeros(len(scores), dtype=np.int8)
    for group, rows in _members(groups):
        buckets[rows] = np.searchsorted(lowest[group], scores[rows], side="right")
    return buckets


def graded(
    rows: Iterable[Row], scores: Mapping[str, Scores], buckets: Mapping[str, Buckets], keep_from: int
) -> Iterator[Row]:
    """Every row in its order, one whose best bucket is below `keep_from` with its reason and scores.

    `scores` and `buckets` have an entry for each row that has no reason yet, in the order of those rows.
    """
    position = -1
    for row in rows:
        if "reason" in row:
            yield row
            continue
        position += 1
        own = {name: int(of_scorer[position]) for name, of_scorer in buckets.items()}
        if max(own.values(), default=COUNT) >= keep_from:
            yield row
        else:
            values = {name: float(f"{of_scorer[position]:.5g}") for name, of_scorer in scores.items()}
            yield row | {"reason": "bucket", "evidence": {"buckets": own, "scores": values, "limit": keep_from}}


def maximum(buckets: Sequence[Buckets]) -> Buckets:
    """(rows,): the best bucket of each row."""
    return np.max(np.stack(buckets), axis=0)


def histogram(columns: Mapping[str, Buckets]) -> dict[str, list[int]]:
    """column → how many rows are in each of the 20 buckets."""
    return {name: np.bincount(buckets, minlength=COUNT).tolist() for name, buckets in columns.items()}


def metrics(counts: Mapping[str, list[int]]) -> dict[str, int]:
    """A histogram as flat metrics: `bucket_<column>_<two digits>`."""
    return {f"bucket_{name}_{place:02d}": count for name, of in counts.items() for place, count in enumerate(of)}


def write(path: str | Path, counts: Mapping[str, list[int]]) -> None:
    """A histogram as CSV for `dvc plots`: a line a bucket, a column a scorer."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["bucket", *counts])
        writer.writerows(zip(range(COUNT), *counts.values(), strict=True))


def _members(groups: Groups) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(group, its rows), in one sort: there may be as many groups as a twentieth of the rows."""
    order = np.argsort(groups, kind="stable")
    present, starts = np.unique(groups[order], return_index=True)
    # Without rows there is no group, and one empty part.
    return zip(present.tolist(), np.split(order, starts[1:]), strict=False)


def _edges(scores: Scores) -> Scores:
    values, repeats = np.unique(scores, return_counts=True)
    below = np.cumsum(repeats) - repeats
    percentile = (below + repeats / 2) / max(1, len(scores))
    starts = np.searchsorted(np.floor(percentile * COUNT), np.arange(1, COUNT), side="left")
    return np.append(values, np.float32(np.inf))[starts].astype(np.float32)
