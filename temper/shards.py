"""Data sets as folders of JSONL shards, and stages that pass over them: in parallel, resumed after a kill, counted.

A pass gets rows and gives rows; one that leaves carries its `reason`. Kept rows go to the stage's own shards, the others to
data/rejected/<stage>.jsonl, and what comes in is counted, so that seen == kept + Σ rejected is checked and not assumed.
What else a pass wants counted it names in a row's `counts`, which are taken off before the row is written.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from temper import checkpoints, executors, metrics, records
from temper.records import Row

Work = Callable[[Iterator[Row]], Iterator[Row]]
"""From rows to rows in the same order; picklable, its models loaded when they are first needed."""
Read = Callable[[int], Iterator[Row]]
"""The rows of task number n."""
LIBRARY = Path(__file__).parent


def code() -> list[Path]:
    """Whatever may decide what a task makes: work of other code is not gone on with."""
    return [*sorted(LIBRARY.glob("*.py")), *sorted((LIBRARY.parent / "scripts").glob("*.py"))]


def paths(folder: str | Path) -> list[Path]:
    """The shards of a data set in order; exits when there are none."""
    found = sorted(Path(folder).glob("*.jsonl"))
    if not found:
        raise SystemExit(f"{folder}: no shards: run the stage that writes it with `dvc repro`")
    return found


def read(folder: str | Path) -> Iterator[Row]:
    """Every row of a data set, shard after shard."""
    for path in paths(folder):
        yield from records.read(path)


def apply(stage: str, work: Work, source: str | Path, settings: Any, target: str | Path | None = None) -> Counter[str]:
    """Pass `work` over every shard of `source` into shards of the same names in `target`, data/<stage> by default.

    Returns seen, kept and rejected_<reason>. A killed pass goes on after the last finished shard.
    """
    shards = paths(source)
    names = [shard.name for shard in shards]
    return write(stage, partial(_pass, work, shards), names, settings, [source], target)


def write(
    stage: str,
    read_task: Read,
    names: Sequence[str],
    settings: Any,
    inputs: Sequence[str | Path],
    target: str | Path | None = None,
    shard_rows: int | None = None,
) -> Counter[str]:
    """The rows of each task as a shard named by `names`, or as several of at most `shard_rows` rows, and the counts."""
    target = Path(target or f"data/{stage}")
    with checkpoints.scratch(stage, settings, [*inputs, *code()]) as folder:
        for part in ("kept", "rejected", "counts"):
            (folder / part).mkdir(exist_ok=True)
        executors.run(partial(_task, read_task, tuple(names), folder, shard_rows), len(names), folder)
        shutil.rmtree(target, ignore_errors=True)
        _join(sorted((folder / "rejected").glob("*.jsonl")), Path(f"data/rejected/{stage}.jsonl"))
        # Copied, not moved: killed in between, the next try finds all of its work where the tasks left it.
        shutil.copytree(folder / "kept", target, copy_function=_link)
        counts = sum((Counter(metrics.read(path)) for path in (folder / "counts").glob("*.json")), Counter())
        executors.forget(folder)
        return counts


def balanced(counts: Counter[str]) -> dict[str, int]:
    """The counts as metrics, after the check that no row vanished."""
    rejected = sum(count for key, count in counts.items() if key.startswith("rejected_"))
    if counts["seen"] != counts["kept"] + rejected:
        raise AssertionError(f"{counts['seen']} rows seen, {counts['kept']} kept, {rejected} rejected")
    return {"seen": 0, "kept": 0} | dict(counts)


def _pass(work: Work, shards: Sequence[Path], rank: int) -> Iterator[Row]:
    """What `work` makes of a shard, after a check that it gave back as many rows as it took."""
    taken = given = 0

    def source() -> Iterator[Row]:
        nonlocal taken
        for row in records.read(shards[rank]):
            taken += 1
            yield row

    for row in work(source()):
        given += 1
        yield row
    if taken != given:
        raise AssertionError(f"{shards[rank]}: {taken} rows read, {given} given back")


def _task(
    read_task: Read, names: Sequence[str], folder: Path, shard_rows: int | None, rank: int, world_size: int
) -> None:
    counts: Counter[str] = Counter()
    name = names[rank]
    stem = name.removesuffix(".jsonl")
    with _whole(folder / "rejected" / name) as rejected:
        rows = _kept(read_task(rank), rejected, counts)
        if shard_rows is None:
            records.write(folder / "kept" / name, rows)
        else:
            for part, first in enumerate(rows):
                batch = chain([first], islice(rows, shard_rows - 1))
                records.write(folder / "kept" / f"{stem}-{part:05d}.jsonl", batch)
    # Last: the shard is whole.
    metrics.write(folder / "counts" / f"{stem}.json", dict(counts))


def _kept(rows: Iterator[Row], rejected: BinaryIO, counts: Counter[str]) -> Iterator[Row]:
    for row in rows:
        counts.update(["seen", *row.pop("counts", ())])
        if "reason" in row:
            counts[f"rejected_{row['reason']}"] += 1
            rejected.write(records.line(row))
        else:
            counts["kept"] += 1
            yield row


def _link(source: str, target: str) -> None:
    """Another name for a file, or a copy of it where the scratch folder lies on another file system."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)


def _join(parts: Sequence[Path], target: Path) -> None:
    with _whole(target) as out:
        for part in parts:
            with part.open("rb") as rows:
                shutil.copyfileobj(rows, out)


@contextmanager
def _whole(target: Path) -> Iterator[BinaryIO]:
    """A file to write that appears whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial_file = target.with_name(f".{target.name}.partial")
    with partial_file.open("wb") as out:
        yield out
    partial_file.replace(target)
