"""Which rows are the same: exact and near duplicates and clusters of near-duplicate requests, over any number of shards.

Steps of tasks that Datatrove's executors run, each resumed at its first unfinished task: `sign` (a task a shard), `match` (a
task a band), where asked for `embed` and `compare` (a task a shard), `judge` (one task), and the caller's own pass over the
shards with `marked`. Which row of a group stays is decided by its content alone, so neither the order of the rows nor how they
lie in shards makes a difference. The files between the steps lie in a folder that all tasks see, shared where they are many.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper import executors, minhash, mismatch, record, records, semantic
from temper.lsh import Columns, Pairs, Texts
from temper.minhash import SPACE
from temper.records import Row

ROWS_AT_ONCE = 2048
# ASCII in lower case, with a space for whatever str.split() takes for one.
FOLDED = bytes(SPACE if chr(code).isspace() else ord(chr(code).lower()) for code in range(128)) + bytes(range(128, 256))
CHARACTERS_AT_ONCE = 1 << 22
VIEWS = ("text", "request", "response")
"""Request and answer together; the request alone, where numbers do not tell rows apart; and a long answer alone.

Rows leave for the first only. The others put rows into one cluster.
"""
TURNS = ("messages", "chosen", "rejected")
REASONS = ("", "exact", "near", "semantic")
FACTS = np.dtype([("id", "<u8"), ("made", "?"), ("tools", "<u8"), ("subject", "<u8"), ("exact", "<u8", 2)])
"""What is known of each row: whether it was made by us, digests of its tools' names and its subject, 128 bits of its content's."""
VERDICT = np.dtype([("id", "<u8"), ("reason", "u1"), ("kept", "<u8"), ("cluster", "<u8"), ("heads", "?")])
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Semantic:
    similarity: float
    """Cosine of the embeddings from which two rows say the same."""
    max_words: int
    """Longer rows are left to shingles, which tell them apart better."""


@dataclass(frozen=True)
class Settings:
    ngram: int
    bands: int
    rows: int
    threshold: float
    """Jaccard similarity from which two rows are near duplicates, and two requests are of one cluster."""
    seed: int
    semantic: Semantic | None = None
    min_answer_words: int | None = None
    """Shorter answers, which many requests share, link no rows; None: no answer does."""

    def minhash(self, view: str) -> minhash.Settings:
        return minhash.Settings(self.ngram, self.bands, self.rows, self.seed, numbers=view != "request")


def find(
    shards: Sequence[Path],
    settings: Settings,
    work: Path,
    executor: executors.Local | executors.Ray | executors.Slurm | None = None,
) -> list[Path]:
    """For each shard a file that `marked` reads. What `work` holds of an earlier try is taken up: keep it to one input.

    Memory grows by about 200 bytes a row in `judge` (350 where a row is alike to three others), 100 in each task of `match`, and
    a batch of rows elsewhere; the folder by about ten bytes a word and 400 a row.
    """
    count = len(shards)
    steps: list[tuple[str, executors.Task, int]] = [
        ("sign", partial(_sign, tuple(shards), settings, work), count),
        ("match", partial(_match, settings, count, work), settings.bands),
        ("judge", partial(judge, count, work), 1),
    ]
    if settings.semantic:
        steps[2:2] = [
            ("embed", partial(_embed, tuple(shards), settings.semantic, work), count),
            ("compare", partial(_compare, settings.semantic, work), count),
        ]
    for name, task, tasks in steps:
        executors.run(task, tasks, work / "steps" / name, executor)
    return [work / "verdicts" / f"{shard:05d}" for shard in range(count)]


def marked(rows: Iterator[Row], verdicts: Path) -> Iterator[Row]:
    """Each row with its `cluster`; a duplicate also with its `reason` and the id of the row `kept` in its place.

    One row of each cluster that stays has `clusters` in its `counts`.
    """
    for row, (name, reason, kept, cluster, heads) in zip(rows, _verdicts(verdicts), strict=True):
        if int(row["id"], 16) != name:
            raise SystemExit(f"row {row['id']} is not the one that was compared: the shards changed meanwhile; repeat")
        row["cluster"] = _hex(cluster)
        if reason:
            row |= {"reason": REASONS[reason], "kept": _hex(kept)}
        if heads:
            row["counts"] = ["clusters"]
        yield row


def _verdicts(path: Path) -> Iterator[tuple[int, int, int, int, bool]]:
    """The fields of VERDICT, row by row; a batch of arrays at a time becomes Python's numbers."""
    every = np.fromfile(path, VERDICT)
    for start in range(0, len(every), ROWS_AT_ONCE):
        yield from every[start : start + ROWS_AT_ONCE].tolist()


def _sign(shards: Sequence[Path], settings: Settings, work: Path, rank: int, world_size: int) -> None:
    """The facts and signatures of one shard, a batch at a time."""
    facts = Columns(work, world_size)
    views = {view: Columns(work / view, world_size) for view in VIEWS}
    # The first batch has no rows, so that an empty shard leaves files too, and a repeated task starts from nothing.
    facts.append("facts", rank, np.empty(0, FACTS), new=True)
    for view, columns in views.items():
        _append(columns, rank, minhash.sign([], settings.minhash(view)), new=True)
    for batch, said in _batches(records.read(shards[rank])):
        facts.append("facts", rank, _facts(batch, said))
        for view, columns in views.items():
            texts = [_text(row, view, settings.min_answer_words) for row in batch]
            _append(columns, rank, minhash.sign(texts, settings.minhash(view)))


def _append(columns: Columns, shard: int, signed: minhash.Signed, *, new: bool = False) -> None:
    for band, keys in enumerate(signed.keys):
        columns.append(f"keys-{band:03d}", shard, keys, new=new)
    columns.append("sets", shard, signed.sets, new=new)
    columns.append("counts", shard, signed.counts.astype(np.uint32), new=new)
    columns.append("shingles", shard, signed.shingles, new=new)


def _match(settings: Settings, shards: int, work: Path, rank: int, world_size: int) -> None:
    """The pairs that one band finds in each view."""
    for view in VIEWS:
        texts = Texts(Columns(work / view, shards), settings.threshold)
        _save_pairs(work, view, rank, texts.edges(rank))


def _embed(shards: Sequence[Path], settings: Semantic, work: Path, rank: int, world_size: int) -> None:
    """The embeddings of one shard's short rows."""
    texts = (_text(row, "text", None) for row in records.read(shards[rank]))
    semantic.save_vectors(texts, Columns(work / "semantic", world_size), rank, settings.max_words)


def _compare(settings: Semantic, work: Path, rank: int, world_size: int) -> None:
    """The pairs that mean the same, of one shard with itself and with all later ones."""
    sizes = Columns(work, world_size).sizes("facts", FACTS.itemsize)
    found = semantic.pairs(Columns(work / "semantic", world_size), np.cumsum([0, *sizes]), rank, settings.similarity)
    _save_pairs(work, "semantic", rank, found)


def judge(shards: int, work: Path, rank: int, world_size: int) -> None:
    """A verdict for every row of every shard."""
    columns = Columns(work, shards)
    views = sorted(folder.name for folder in (work / "pairs").iterdir())
    verdicts = judged(columns.read("facts", FACTS), {view: _load_pairs(work, view) for view in views})
    ends = np.cumsum(columns.sizes("facts", FACTS.itemsize))
    for shard, part in enumerate(np.split(verdicts, ends[:-1])):
        columns.append("verdicts", shard, part, new=True)


def judged(facts: NDArray[Any], pairs: dict[str, Pairs]) -> NDArray[Any]:
    """Verdicts, given what is known of each row and the alike pairs of each view.

    Of rows equal in content, and then of rows in one cluster of alike texts under tools of the same names (other tools make
    another question), the first by content stays. A cluster takes in whatever rows are alike in any way, and is named after
    the least digest of what its rows ask, those that leave too: of all names the one that more rows can only make less.
    """
    count = len(facts)
    ranks = np.empty(count, dtype=np.int64)
    # Made rows last; of rows with one id, which are the same row, any.
    ranks[np.lexsort((facts["id"], facts["made"]))] = np.arange(count)
    exact = _labels_of(facts["exact"][:, 0], facts["exact"][:, 1])
    same = _pairs_of(exact)
    near = components(count, [same, pairs["text"]])
    layers = [("exact", exact), ("near", _labels_of(near, facts["tools"]))]
    if "semantic" in pairs:
        close = components(count, [same, pairs["text"], pairs["semantic"]])
        layers.append(("semantic", _labels_of(close, facts["tools"])))
    verdicts = np.zeros(count, VERDICT)
    verdicts["id"] = facts["id"]
    kept_by, verdicts["reason"] = _kept(ranks, layers)
    verdicts["kept"] = facts["id"][kept_by]
    clusters = components(count, [same, *pairs.values()])
    verdicts["cluster"] = facts["subject"][_first(clusters, facts["subject"])]
    stays = kept_by == np.arange(count)
    verdicts["heads"] = _first(_labels_of(verdicts["cluster"]), np.where(stays, ranks, count)) == np.arange(count)
    return verdicts


def _kept(ranks: Ints, layers: list[tuple[str, Ints]]) -> tuple[Ints, NDArray[np.uint8]]:
    """(the row that stays for each row, reason's number): each layer compares what the layers before it left."""
    count = len(ranks)
    kept_by = np.arange(count)
    reasons = np.zeros(count, dtype=np.uint8)
    for reason, labels in layers:
        stays = kept_by == np.arange(count)
        first = _first(labels, np.where(stays, ranks, count))
        leaves = stays & (first != np.arange(count))
        reasons[leaves] = REASONS.index(reason)
        # Rows that left for one that leaves now follow it.
        kept_by[leaves] = first[leaves]
        kept_by = kept_by[kept_by]
    return kept_by, reasons


def _first(labels: Ints, ranks: Ints) -> Ints:
    """For each row the row of least rank under its label."""
    order = np.lexsort((ranks, labels))
    starts = np.append(True, labels[order][1:] != labels[order][:-1])[: len(order)]
    first = np.empty(len(labels), dtype=np.int64)
    first[order] = order[starts][np.cumsum(starts) - 1]
    return first


def _labels_of(*keys: NDArray[Any]) -> Ints:
    """A number for each row, equal where all keys are."""
    order = np.lexsort(keys)
    changes = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    labels = np.empty(len(order), dtype=np.int64)
    labels[order] = np.cumsum(np.append(0, changes))[: len(order)]
    return labels


def _pairs_of(labels: Ints) -> Pairs:
    """Each row with another of its label."""
    return np.stack((np.arange(len(labels)), _first(labels, np.arange(len(labels)))), axis=1)


def components(count: int, pairs: list[Pairs]) -> Ints:
    """The number of each row's connected component."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    left, right = np.concatenate(pairs).T
    graph = coo_array((np.ones(len(left), dtype=np.int32), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def _save_pairs(work: Path, view: str, task: int, parts: Iterator[Pairs]) -> None:
    path = work / "pairs" / view / f"{task:05d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as out:
        for pairs in parts:
            out.write(pairs.tobytes())


def _load_pairs(work: Path, view: str) -> Pairs:
    """The pairs that any task found, each once; most of them, several did. Up to 2³² rows."""
    files = sorted((work / "pairs" / view).iterdir())
    parts = [np.fromfile(path, np.uint64).reshape(-1, 2) @ np.array([1 << 32, 1], np.uint64) for path in files]
    found = np.unique(np.concatenate(parts))
    return np.stack((found >> np.uint64(32), found & np.uint64(2**32 - 1)), axis=1).astype(np.int64)


def _batches(rows: Iterator[Row]) -> Iterator[tuple[list[Row], list[str]]]:
    """Rows and their contents, so many at a time as memory holds whatever their length."""
    batch: list[Row] = []
    said: list[str] = []
    characters = 0
    for row in rows:
        batch.append(row)
        said.append(content(row))
        characters += len(said[-1])
        if len(batch) == ROWS_AT_ONCE or characters >= CHARACTERS_AT_ONCE:
            yield batch, said
            batch, said, characters = [], [], 0
    if batch:
        yield batch, said


def _facts(rows: Sequence[Row], said: Sequence[str]) -> NDArray[Any]:
    """FACTS of rows whose contents are `said`."""
    # Another question: the same words to be answered by other tools, or a pair to prefer in beside a chat to learn.
    named = [_joined((record.kind(row), *(record.tool_names(row) if row.get("tools") else ()))) for row in rows]
    exact = [
        minhash.digest(names + b"\0" + _normalised(text), 16) for (names, _), text in zip(named, said, strict=True)
    ]
    facts = np.empty(len(rows), FACTS)
    facts["id"] = np.frombuffer(bytes.fromhex("".join(row["id"] for row in rows)), ">u8")
    facts["made"] = [row.get("category") == mismatch.CATEGORY for row in rows]
    facts["tools"] = np.frombuffer(b"".join(tools for _, tools in named), "<u8")
    facts["subject"] = np.frombuffer(b"".join(minhash.digest(_normalised(record.subject(row))) for row in rows), "<u8")
    facts["exact"] = np.frombuffer(b"".join(exact), "<u8").reshape(-1, 2)
    return facts


def _normalised(text: str) -> bytes:
    """A text in UTF-8 without its case, Unicode form and runs of spaces."""
    if not text.isascii():
        return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode(errors="surrogatepass")
    folded = text.encode().translate(FOLDED)
    return b" ".join(folded.split()) if b"  " in folded else folded.strip()


@lru_cache(maxsize=1 << 16)
def _joined(names: tuple[str, ...]) -> tuple[bytes, bytes]:
    """Names as one, and a digest of it."""
    joined = "\0".join(names).encode(errors="surrogatepass")
    return joined, minhash.digest(joined)


def content(row: Row) -> str:
    """All that a row says: its turns, a preference's two answers, or its text."""
    said = [turn["content"] for key in TURNS if key in row for turn in row[key]]
    return "\n".join([*said, row["text"]] if "text" in row else said)


def _text(row: Row, view: str, min_answer_words: int | None) -> str:
    if view == "request":
        return record.subject(row)
    if view == "response":
        if min_answer_words is None or "text" in row:
            return ""
        answer = record.response(row)
        return answer if len(minhash.split(answer)) >= min_answer_words else ""
    worse = [turn["content"] for turn in row.get("rejected", ())]
    return "\n".join([record.request(row), record.response(row), *worse])


def _hex(number: int) -> str:
    return f"{number:016x}"
