"""A benchmark's parts in turn, each written when it is done; one that was measured by the same command is not measured again."""

import argparse
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from temper import hardware, metrics

REPOSITORY = Path(__file__).resolve().parent.parent
Values = dict[str, Any]
Part = Callable[[argparse.Namespace], Values]


def run(module: str, out: Path, parts: Mapping[str, Part], targets: Values, arguments: argparse.Namespace) -> None:
    """Measure `arguments.parts` of `module` into the report `out`, where a part's figures begin with its name.

    Beside them stand the command, which says whether a part is measured again, and the commit, which says of what code it speaks.
    """
    for name in arguments.parts:
        asked = f"python -m {module} --parts {name} {options(arguments)}"
        known = metrics.read(out) if out.is_file() else {}
        if known.get(f"{name}_command") == asked:
            print(f"{name}: measured already")
            continue
        found = parts[name](arguments)
        kept = {key: value for key, value in known.items() if not key.startswith(f"{name}_")}
        aims = {f"{key}_target": value for key, value in targets.items() if key in found}
        about = {f"{name}_command": asked, f"{name}_code": revision(), "machine": str(hardware.found())}
        metrics.write(out, kept | found | aims | about)
        for key in sorted(found):
            print(f"{key:48} {found[key]:.6g}" if isinstance(found[key], float) else f"{key:48} {found[key]}")


def revision() -> str:
    """The commit that is measured, with -dirty where the tree has edits; empty outside of a repository."""
    asked = ["git", "-C", str(REPOSITORY), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def options(arguments: argparse.Namespace) -> str:
    """What was given besides the parts, as on a command line."""
    given = {key: value for key, value in sorted(vars(arguments).items()) if key != "parts"}
    return " ".join(f"--{key} {' '.join(value) if isinstance(value, list) else value}" for key, value in given.items())
