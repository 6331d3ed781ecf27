"""Data sets that others publish to evaluate with, at a pinned version: out of a file, the Hub or a wheel, as rows.

temper/benchmarks.py reads them; where it cannot be imported, for want of its libraries, a process of the environment `main` does:

    python -m temper.published PUBLISHED.json ROWS.jsonl
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from temper import envs, records
from temper.records import Row

NEEDED = "zstandard"  # of what temper/files.py imports, the one that environments lack
LAST_LINES = 3


@dataclass
class Published:
    """A file of rows (JSON lines, JSON, CSV or Parquet, .gz too).

    wheel: inside the wheel `id`==`revision` of hash `sha256`; file: a path, of hash `sha256`; hub: inside the data set `id` at the
    commit `revision`. What a kind does not need is null.
    """

    name: str
    """In errors and metrics."""
    kind: str
    id: str | None
    revision: str | None
    sha256: str | None
    file: str
    licence: str


def rows(of: Published) -> list[Row]:
    """All rows; exits where they are not to be had as stated."""
    if importlib.util.find_spec(NEEDED):
        return _read(of)
    with tempfile.TemporaryDirectory(prefix="temper-published-") as folder:
        stated, target = Path(folder) / "published.json", Path(folder) / "rows.jsonl"
        stated.write_text(json.dumps(asdict(of)))
        command = [str(envs.python("main")), "-m", "temper.published", str(stated), str(target)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            # A user's mistake is the one line that the reader ended with.
            raise SystemExit(" / ".join(done.stderr.strip().splitlines()[-LAST_LINES:]))
        return list(records.read(target))


def missing(of: Published | None) -> str:
    """Why a data set cannot be read, empty where it can: the Hub is asked for, a file that is not there is not."""
    if of is None:
        return "not measured: none are named"
    if of.kind == "file" and not Path(of.file).is_file():
        return f"not measured: no file {of.file} (add it, then `dvc repro -f -s` the stage)"
    return ""


def _read(of: Published) -> list[Row]:
    from temper import benchmarks

    return list(benchmarks.rows(benchmarks.Benchmark(**asdict(of), fields=[])))


def main(arguments: Sequence[str]) -> None:
    stated, target = arguments
    records.write(target, _read(Published(**json.loads(Path(stated).read_text()))))


if __name__ == "__main__":
    main(sys.argv[1:])
