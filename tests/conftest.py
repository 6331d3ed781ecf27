"""What several test modules share: a clone to run in."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def clone_to() -> Callable[[Path], Path]:
    """A function that copies what git would commit (edits and new files included) into a fresh repository."""
    return clone


def clone(target: Path) -> Path:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes((ROOT / name).read_bytes())
    identity = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    for command in (
        ["init", "--quiet", "-b", "main"],
        ["add", "--all"],
        [*identity, "commit", "--quiet", "-m", "snapshot"],
    ):
        subprocess.run(["git", *command], cwd=target, check=True)
    return target
