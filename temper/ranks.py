"""The quality stage's work over shards: rules, then scores, then ranks over all rows, kept in a folder between the passes.

Three tasks a shard, so that they run on any executor and go on after a kill: `judged/` has every row with its reason or without,
`scores/` what each scorer gives the rows that pass, `buckets/` their ranks, which need the scores of all shards.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper import buckets, executors, features, records, rules, shards
from temper.buckets import Groups, Scores
from temper.records import Row
from temper.rules import Rules
from temper.scorers import Scoring


def judge(source: list[Path], limits: Rules, prompts: dict[str, str], work: Path) -> None:
    """Every row of each shard, one that breaks a rule with its reason."""
    executors.run(partial(_judge, source, limits, prompts, work), len(source), work / "steps/judge")


def passing(work: Path) -> Iterator[Row]:
    """The rows that break no rule."""
    return without_reason(shards.read(work / "judged"))


def assign(fitted: Mapping[str, Scoring], within: str | None, work: Path) -> dict[str, list[int]]:
    """Score and rank every passing row; returns the rows in each bucket, by scorer and for the best of them."""
    judged = shards.paths(work / "judged")
    executors.run(partial(_score, judged, dict(fitted), within, work), len(judged), work / "steps/score")
    saved = Saved([work / f"scores/{shard.stem}.npz" for shard in judged])
    of = numbered(saved)
    columns = {name: [shard[name] for shard in saved] for name in fitted}
    ranked = _ranked(columns, of)
    for number, shard in enumerate(judged):
        _save(work / f"buckets/{shard.stem}.npz", {name: parts[number] for name, parts in ranked.items()})
    whole = {name: np.concatenate(parts) for name, parts in ranked.items()}
    return buckets.histogram(whole | ({"maximum": buckets.maximum(list(whole.values()))} if whole else {}))


def graded(work: Path, keep_from: int, shard: int) -> Iterator[Row]:
    """The rows of a shard, those that break a rule or rank too low with their reason."""
    judged = shards.paths(work / "judged")[shard]
    [ranked] = map(dict, Saved([work / f"buckets/{judged.stem}.npz"]))
    [scores] = ({name: shard[name] for name in ranked} for shard in Saved([work / f"scores/{judged.stem}.npz"]))
    return buckets.graded(records.read(judged), scores, ranked, keep_from)


def without_reason(rows: Iterable[Row]) -> Iterator[Row]:
    return (row for row in rows if "reason" not in row)


class Saved:
    """The arrays in each of `paths`, as often as they are gone over: read when they are asked for, one file open at a time."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __iter__(self) -> Iterator[Mapping[str, NDArray[Any]]]:
        for path in self.paths:
            with np.load(path) as arrays:
                yield arrays


def numbered(saved: Iterable[Mapping[str, NDArray[Any]]]) -> list[Groups]:
    """The group of each row of each shard; rows of groups below features.SMALLEST_GROUP, too few to rank, are one group."""
    sizes: Counter[str] = Counter()
    # Shard by shard: names of 64 characters, a row each, are larger than all else that is held.
    for shard in saved:
        names, counts = np.unique(shard["groups"], return_counts=True)
        sizes.update(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    large = sorted(name for name, size in sizes.items() if size >= features.SMALLEST_GROUP)
    number = {name: place for place, name in enumerate(large)}
    of = []
    for shard in saved:
        names, places = np.unique(shard["groups"], return_inverse=True)
        numbers = [number.get(name, len(large)) for name in names.tolist()]
        of.append(np.array(numbers, dtype=np.int32)[places])
    return of


def _judge(source: list[Path], limits: Rules, prompts: dict[str, str], work: Path, rank: int, world_size: int) -> None:
    rows = rules.judged(records.read(source[rank]), limits, prompts)
    records.write(work / "judged" / source[rank].name, rows)


def _score(
    judged: list[Path], fitted: dict[str, Scoring], within: str | None, work: Path, rank: int, world_size: int
) -> None:
    def rows() -> Iterator[Row]:
        return without_reason(records.read(judged[rank]))

    found = {name: np.fromiter(score(rows()), dtype=np.float32) for name, score in fitted.items()}
    groups = np.array([features.group(row, within) for row in rows()], dtype=str)
    _save(work / f"scores/{judged[rank].stem}.npz", {"groups": groups, **found})


def _ranked(columns: Mapping[str, list[Scores]], of: list[Groups]) -> dict[str, list[buckets.Buckets]]:
    """scorer → the buckets of each shard's rows, by their rank among the rows of all shards in their group."""
    everyone = np.concatenate(of)
    ranked = {}
    for name, parts in columns.items():
        lowest = buckets.edges(np.concatenate(parts), everyone)
        ranked[name] = [buckets.assigned(part, groups, lowest) for part, groups in zip(parts, of, strict=True)]
    return ranked


def _save(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(arrays))  # type: ignore[arg-type]
