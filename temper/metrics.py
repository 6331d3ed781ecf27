"""A stage's numbers, as DVC reads them: flat sorted JSON."""

import json
from pathlib import Path
from typing import Any


def write(path: str | Path, values: dict[str, Any]) -> None:
    """Write `values` with stable key order and six significant digits, so an unchanged run leaves an unchanged file."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({key: _rounded(values[key]) for key in sorted(values)}, indent=2) + "\n")


def read(path: str | Path) -> dict[str, Any]:
    """The metrics of a stage that ran; exits with the command that runs it when they are not there."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise SystemExit(f"{path} is missing: run `make repro` first") from None


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value
