"""What several test modules share: a clone to run in, and the word on what was left out."""

import os
import re
import resource
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import tests.settings_once  # noqa: F401 (settings are remembered from here on)
from commands import compose

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT: Counter[str] = Counter()
"""Tests that -m or -k left out, by the mark that they carry."""

LONGEST = ("test_pipeline", "test_sweeps", "test_methods", "test_same_run", "test_serve", "test_quants", "test_draft")
"""Modules that take minutes: of two processes, neither should be left with one of them when the other has nothing to do."""


def remembering(composed: Callable[[list[str]], str]) -> Callable[[list[str]], str]:
    """`composed`, which takes a second, once for the same overrides of the same files."""
    known: dict[tuple[object, ...], str] = {}

    def remembered(overrides: list[str]) -> str:
        files = tuple((str(file), file.stat().st_mtime_ns) for file in sorted(Path("conf").resolve().rglob("*.yaml")))
        if (files, *overrides) not in known:
            known[files, *overrides] = composed(overrides)
        return known[files, *overrides]

    return remembered


setattr(compose, "composed", remembering(compose.composed))  # noqa: B010 (mypy) -- before a module that imports it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    LEFT_OUT.update(
        next((mark.name for mark in item.iter_markers() if mark.name in reasons(item.config)), "") for item in items
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, count in sorted(LEFT_OUT.items()):
        why = f"{count} {name}: {reasons(config)[name]}" if name else f"{count} others: not asked for"
        terminalreporter.write_line(f"left out {why}")


def reasons(config: pytest.Config) -> dict[str, str]:
    """What pyproject.toml says of each mark that -m names."""
    described = dict(line.split(": ", 1) for line in config.getini("markers") if ": " in line)
    return {name: described[name] for name in re.findall(r"\w+", config.getoption("markexpr")) if name in described}


@pytest.fixture(scope="session")
def few_files() -> Callable[[], AbstractContextManager[None]]:
    """A context in which this process may open ten files more, however many of them earlier tests left open."""
    return ten_more_files


@contextmanager
def ten_more_files() -> Iterator[None]:
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]  # the lowest free numbers: none is left below the last
    for one in free:
        os.close(one)
    lowest, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, highest))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, highest))


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
