"""reports/released.json: the last release, and what it scored on the golden set, for the gate to hold the next one against.

`make release` writes it. It is in git rather than read from the release's tag, so that the gate follows from files alone: shallow
clones and queued experiments have no tags, and DVC would not see a new one.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from temper.records import Row

FILE = Path("reports/released.json")
MEASURES = ("exact", "valid_json", "argument_f1")
Scores = Mapping[str, Mapping[str, Any]]
"""Of golden rows, by id: what each of MEASURES gave."""


@dataclass(frozen=True)
class Released:
    version: str | None
    """None before the first release."""
    golden: Scores


def read(path: Path = FILE) -> Released:
    """The last release; exits where the file is missing or of another form."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Released(found["version"], found["golden"])
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError) as error:
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SystemExit(f"{path}: {found}: bring it back with `git checkout -- {path}`") from None


def text(version: str | None, golden: Iterable[Row]) -> str:
    """The file for a release whose golden rows were scored as `golden`, a row of data/evaluate/<variant>-golden.jsonl each."""
    scores = {row["id"]: {measure: row[measure] for measure in MEASURES} for row in golden}
    return json.dumps({"golden": scores, "version": version}, indent=1, sort_keys=True) + "\n"
