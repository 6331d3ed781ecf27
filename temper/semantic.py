"""Short rows that say the same in other words: by the cosine of their embeddings (SemDeDup: Abbas et al. 2023, in spirit).

Every short row is compared with every other, block by block, so this is for what words cannot tell and not for the whole of a
large set: n rows cost n²·192 multiplications. Rows with different numbers never count as one, since embeddings hardly see
numbers. An embedding's last bits depend on its batch, so a pair at the very threshold may fall either way between runs.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from temper import embeddings, minhash
from temper.lsh import Columns, Pairs

BLOCK = 4096  # rows on each side that are compared at a time: 64 MB of cosines


def save_vectors(texts: Iterator[str], columns: Columns, shard: int, max_words: int) -> None:
    """Columns `positions` (in the shard), `numbers` (a digest) and `vectors` of the texts of at most `max_words` words."""
    short = [(position, text) for position, text in enumerate(texts) if 0 < len(minhash.split(text)) <= max_words]
    vectors = embeddings.embed([text for _, text in short])
    columns.append("positions", shard, np.array([position for position, _ in short], np.int64), new=True)
    columns.append("numbers", shard, np.array([_numbers(text) for _, text in short], np.uint64), new=True)
    columns.append("vectors", shard, np.asarray(vectors, np.float32), new=True)


def pairs(columns: Columns, first_rows: NDArray[np.int64], shard: int, similarity: float) -> Iterator[Pairs]:
    """The alike pairs of a shard's texts with each other and with those of later shards.

    `first_rows` are the positions of the shards' first rows in all shards.
    """
    rows, numbers, vectors = _read(columns, shard)
    for other in range(shard, columns.shards):
        other_rows, other_numbers, other_vectors = _read(columns, other)
        for left in range(0, len(rows), BLOCK):
            for right in range(left if other == shard else 0, len(other_rows), BLOCK):
                ours, theirs = slice(left, left + BLOCK), slice(right, right + BLOCK)
                alike = vectors[ours] @ other_vectors[theirs].T >= similarity
                i, j = np.nonzero(alike & (numbers[ours, None] == other_numbers[None, theirs]))
                found = np.stack((rows[ours][i] + first_rows[shard], other_rows[theirs][j] + first_rows[other]), axis=1)
                yield found[found[:, 0] < found[:, 1]]


def _read(columns: Columns, shard: int) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.float32]]:
    positions = columns.read_shard("positions", shard, np.int64)
    vectors = columns.mapped("vectors", shard, np.float32)
    return (
        positions,
        columns.read_shard("numbers", shard, np.uint64),
        vectors.reshape(len(positions), vectors.size // max(1, len(positions))),
    )


def _numbers(text: str) -> int:
    """A digest of which numbers there are, whatever their order and how often each is said."""
    return int.from_bytes(minhash.digest(" ".join(sorted(set(minhash.NUMBER.findall(text)))).encode()), "little")
