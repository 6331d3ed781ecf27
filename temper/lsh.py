"""Locality-sensitive hashing over signed shards: which texts meet in a band, and which of those are truly alike.

A candidate pair is compared shingle by shingle, so that what comes out is exact and only what never meets is missed.
"""

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from temper import minhash

ALL_PAIRS = 32  # texts of a bucket that are compared each with each
MAX_LEADERS = 64
SHINGLES_AT_ONCE = 1 << 22  # of both sides of the pairs that are compared at a time: about 100 MB

Rows = NDArray[np.int64]
"""Texts by their position in all shards, one after the other."""
Pairs = NDArray[np.int64]
"""Shape [pairs, 2]."""
Alike = Callable[[Rows, Rows], NDArray[np.bool_]]
NO_PAIRS: Pairs = np.empty((0, 2), dtype=np.int64)


class Columns:
    """What the tasks of the first step wrote: a folder per column, in it a file of plain numbers per shard."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards

    def append(self, column: str, shard: int, values: NDArray[Any], *, new: bool = False) -> None:
        path = self._path(column, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb" if new else "ab") as out:
            out.write(values.tobytes())

    def read(self, column: str, dtype: DTypeLike) -> NDArray[Any]:
        """A column of all shards."""
        return np.concatenate([self.read_shard(column, shard, dtype) for shard in range(self.shards)])

    def read_shard(self, column: str, shard: int, dtype: DTypeLike) -> NDArray[Any]:
        return np.fromfile(self._path(column, shard), dtype=dtype)

    def mapped(self, column: str, shard: int, dtype: DTypeLike) -> NDArray[Any]:
        """A shard's column left on disk; only the pages that are looked at are read."""
        path = self._path(column, shard)
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)

    def sizes(self, column: str, itemsize: int) -> list[int]:
        """How many values each shard has."""
        return [self._path(column, shard).stat().st_size // itemsize for shard in range(self.shards)]

    def _path(self, column: str, shard: int) -> Path:
        return self.folder / column / f"{shard:05d}"


class Texts:
    """The shingle sets of one view of all shards, columns `sets`, `counts`, `shingles` and `keys-<band>`."""

    def __init__(self, columns: Columns, threshold: float) -> None:
        self.columns, self.threshold = columns, threshold
        self.counts = columns.read("counts", np.uint32).astype(np.int64)
        self.first_row = np.cumsum([0, *columns.sizes("counts", 4)])

    def edges(self, band: int) -> Iterator[Pairs]:
        """The pairs of alike texts that meet in `band`, enough of them that a cluster hangs together.

        Texts with equal sets are linked to one of them, once for all bands (in band 0), and it alone is compared on.
        """
        rows, keys, sets = self._bucketed(band)
        is_first = _changes(keys) | _changes(sets)
        if band == 0:
            representative = rows[is_first][np.cumsum(is_first) - 1]
            yield _pairs(representative, rows)[~is_first]
        yield from bucket_pairs(rows[is_first], keys[is_first], self.alike)

    def alike(self, left: Rows, right: Rows) -> NDArray[np.bool_]:
        """Whether the nth text on the left and the nth on the right have a Jaccard similarity of at least the threshold."""
        found = np.zeros(len(left), dtype=bool)
        smaller, larger = np.sort([self.counts[left], self.counts[right]], axis=0)
        # Sets of so different sizes cannot share enough, whatever is in them.
        possible = np.flatnonzero(smaller >= self.threshold * larger)
        done = np.cumsum(smaller[possible] + larger[possible]) // SHINGLES_AT_ONCE
        for part in np.split(possible, np.flatnonzero(_changes(done))[1:]):
            if len(part):
                values = minhash.jaccard(*self.shingles(left[part]), *self.shingles(right[part]))
                found[part] = values >= self.threshold
        return found

    def shingles(self, rows: Rows) -> tuple[minhash.Shingles, minhash.Counts]:
        """The shingles of these texts one after the other, and how many each has."""
        counts = self.counts[rows]
        into = np.cumsum(counts) - counts
        flat = np.empty(counts.sum(), dtype=np.uint32)
        shards = np.searchsorted(self.first_row, rows, side="right") - 1
        for shard in np.unique(shards):
            mine = shards == shard
            source = minhash.ragged(self._starts[rows[mine]], counts[mine])
            # Opened for this alone: a descriptor for each of thousands of shards is more than a process may have.
            column = self.columns.mapped("shingles", int(shard), np.uint32)
            flat[minhash.ragged(into[mine], counts[mine])] = column[source]
        return flat, counts

    def _bucketed(self, band: int) -> tuple[Rows, minhash.Hashes, minhash.Hashes]:
        """(rows, keys, sets) of the texts that share their key with another, sorted by key, then set."""
        keys = self.columns.read(f"keys-{band:03d}", np.uint64)
        rows = np.flatnonzero(self.counts)
        rows = rows[np.argsort(keys[rows], kind="stable")]
        starts = _changes(keys[rows])
        rows = rows[~(starts & np.append(starts[1:], True))]
        sets = self.columns.read("sets", np.uint64)[rows]
        order = np.lexsort((sets, keys[rows]))
        return rows[order], keys[rows][order], sets[order]

    @cached_property
    def _starts(self) -> minhash.Counts:
        """Where each text's shingles start in its shard's column."""
        starts = np.cumsum(self.counts) - self.counts
        firsts = np.append(starts, 0)[self.first_row[:-1]]
        return starts - np.repeat(firsts, np.diff(self.first_row))


def bucket_pairs(rows: Rows, keys: minhash.Hashes, alike: Alike) -> Iterator[Pairs]:
    """The alike pairs among texts of equal keys; `rows` are sorted by key, and within it by what a text says.

    A bucket of up to ALL_PAIRS texts is compared each with each. In a larger one the first text leads: those like it leave
    with it, the first of the rest leads next, at most MAX_LEADERS times. Two texts that are like no common leader are
    then not linked here, though another band may link them; the cost stays linear in the bucket.
    """
    sizes = np.diff(np.append(np.flatnonzero(_changes(keys)), len(keys)))
    is_large = np.repeat(sizes > ALL_PAIRS, sizes)
    small, small_keys = rows[~is_large], keys[~is_large]
    for distance in range(1, ALL_PAIRS):
        near = np.flatnonzero(small_keys[distance:] == small_keys[:-distance])
        if not len(near):
            break
        yield _alike(small[near], small[near + distance], alike)
    yield from _led(rows[is_large], keys[is_large], alike)


def _led(rows: Rows, keys: minhash.Hashes, alike: Alike) -> Iterator[Pairs]:
    for _ in range(MAX_LEADERS):
        leads = _changes(keys)
        if leads.all():
            return
        leader = rows[leads][np.cumsum(leads) - 1]
        follows = ~leads
        matches = np.zeros(len(rows), dtype=bool)
        matches[follows] = alike(leader[follows], rows[follows])
        yield _pairs(leader, rows)[matches]
        rest = follows & ~matches
        rows, keys = rows[rest], keys[rest]


def _alike(left: Rows, right: Rows, alike: Alike) -> Pairs:
    return _pairs(left, right)[alike(left, right)]


def _pairs(left: Rows, right: Rows) -> Pairs:
    return np.stack((left, right), axis=1)


def _changes(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Where a value is not the one before it; the first always is."""
    return np.append(True, values[1:] != values[:-1])[: len(values)]
