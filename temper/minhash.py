"""Near-duplicate clusters by MinHash-LSH: the adapter to Datatrove's signature, bucket and cluster stages.

Datatrove's fourth stage, its filter, keeps whichever document the union-find made the root. Which one to keep is the
caller's decision here, so the clusters are read from the third stage's own files instead.
"""

import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper import stage

# A text of fewer words than an n-gram has no shingle and would never match, not even itself.
FILLER = "filler"


@dataclass(frozen=True)
class Settings:
    ngram: int
    """Words in a shingle."""
    bands: int
    rows: int
    """Hashes in a band: two texts of Jaccard similarity s meet with probability 1 − (1 − s^rows)^bands."""
    seed: int
    normalise_numbers: bool
    """Whether every number counts as the same word."""


def clusters(texts: list[str], settings: Settings, processes: int) -> list[int]:
    """For each text, the position of the first text of its cluster (its own where it is alone).

    Equal for any number of processes: they share out files and bands, and neither decides who is first.
    """
    # Datatrove's executor forks a manager process, which would outlive a killed stage.
    os.register_at_fork(after_in_child=stage.die_with_parent)
    with tempfile.TemporaryDirectory(prefix="minhash-") as folder:
        with _stderr_to(Path(folder) / "stderr.log"):
            _run_stages(texts, settings, processes, Path(folder))
        found = _read_clusters(Path(folder) / "clusters", len(texts), processes)
    first: dict[int, int] = {}
    return [
        position if cluster is None else first.setdefault(cluster, position) for position, cluster in enumerate(found)
    ]


def _run_stages(texts: list[str], settings: Settings, processes: int, folder: Path) -> None:
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupSignature,
    )
    from datatrove.utils.text import TextNormConfig

    config = MinhashConfig(
        n_grams=settings.ngram,
        num_buckets=settings.bands,
        hashes_per_bucket=settings.rows,
        seed=settings.seed,
        norm_config=TextNormConfig(norm_numbers=settings.normalise_numbers),
    )
    signatures, buckets = str(folder / "signatures"), str(folder / "buckets")
    padded = [_padded(text, settings.ngram) for text in texts]
    execute = _executor(folder, processes)
    execute("1", [_documents(padded), MinhashDedupSignature(output_folder=signatures, config=config)], processes)
    execute("2", [MinhashDedupBuckets(input_folder=signatures, output_folder=buckets, config=config)], settings.bands)
    cluster = MinhashDedupCluster(
        input_folder=buckets, output_folder=str(folder / "clusters"), config=config, save_cluster_id=True
    )
    execute("3", [cluster], 1)


def _executor(folder: Path, processes: int) -> Callable[[str, list[Any], int], None]:
    """A function that runs a pipeline of so many tasks, its log and bookkeeping in `folder`."""
    from datatrove.executor import LocalPipelineExecutor

    def execute(name: str, pipeline: list[Any], tasks: int) -> None:
        executor = LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(processes, tasks), logging_dir=str(folder / f"logs{name}")
        )
        executor.run()

    return execute


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Datatrove logs each task to stderr whatever its settings, and so do its workers, which inherit descriptor 2."""
    sys.stderr.flush()
    saved = os.dup(2)
    with path.open("w") as log, redirect_stderr(log):
        os.dup2(log.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _documents(texts: list[str]) -> Callable[..., Any]:
    """A reader step: task `rank` of `world_size` gets every world_size-th text."""
    from datatrove.data import Document

    def read(data: Any, rank: int = 0, world_size: int = 1) -> Any:
        for position in range(rank, len(texts), world_size):
            yield Document(text=texts[position], id=str(position))

    return read


def _read_clusters(folder: Path, count: int, tasks: int) -> list[int | None]:
    """Each text's cluster number, from files of (document, cluster) pairs that stage three names after the task."""
    found: list[int | None] = [None] * count
    for path in sorted(folder.glob("*.clusters")):
        rank = int(path.stem)
        for document, cluster in struct.iter_unpack("<2I", path.read_bytes()):
            found[rank + document * tasks] = cluster
    return found


def _padded(text: str, ngram: int) -> str:
    words = len(text.split())
    return text if words >= 2 * ngram else f"{text}{f' {FILLER}' * (ngram - 1)}"
