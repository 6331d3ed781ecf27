"""Wheels come through the real pip, from a folder instead of an index."""

import gzip
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from temper import wheels

MEMBERS = {"demo/rows.jsonl": b'{"a": 1}\n', "demo/rows.jsonl.gz": gzip.compress(b"packed", mtime=0)}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """demo 1.0 in a folder that pip takes for its only index, and a cache of the test's own."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "demo-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("demo-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
        archive.writestr("demo-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("demo-1.0.dist-info/RECORD", "")
        # Importing it would fail the test.
        archive.writestr("demo/__init__.py", "raise RuntimeError('imported')")
        for name, data in MEMBERS.items():
            archive.writestr(name, data)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path / "cache"))
    return path


def test_fetched_once_and_read_as_an_archive(wheel: Path, tmp_path: Path) -> None:
    sha256 = wheels.digest(wheel)
    fetched = wheels.fetch("demo", "1.0", sha256)
    assert fetched.parent == tmp_path / "cache/downloads" / sha256
    wheel.unlink()
    assert wheels.fetch("demo", "1.0", sha256) == fetched
    assert wheels.read(fetched, "demo/rows.jsonl") == b'{"a": 1}\n'
    assert wheels.read(fetched, "demo/rows.jsonl.gz") == b"packed"
    assert wheels.extract(fetched, "demo/rows.jsonl", tmp_path).read_bytes() == b'{"a": 1}\n'


def test_another_hash_is_refused_and_nothing_cached(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refusal:
        wheels.fetch("demo", "1.0", "0" * 64)
    message = str(refusal.value)
    assert "\n" not in message
    assert wheels.digest(wheel) in message
    assert "0" * 64 in message
    assert "make params" in message
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_a_damaged_file_in_the_cache_is_fetched_again(wheel: Path) -> None:
    sha256 = wheels.digest(wheel)
    fetched = wheels.fetch("demo", "1.0", sha256)
    fetched.write_bytes(b"damaged")
    assert wheels.digest(wheels.fetch("demo", "1.0", sha256)) == sha256


def test_without_a_connection(wheel: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^demo==2\.0: pip could not download it \(.+\): check the network"
    ) as refusal:
        wheels.fetch("demo", "2.0", wheels.digest(wheel))
    assert "\n" not in str(refusal.value)


def test_a_name_that_is_not_in_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no file 'demo/none' in it: correct the name in conf/"):
        wheels.read(wheel, "demo/none")
    with pytest.raises(SystemExit, match="no file 'demo/none' in it"):
        wheels.extract(wheel, "demo/none", tmp_path)


@pytest.mark.slow
def test_processes_may_fetch_at_once(wheel: Path) -> None:
    sha256 = wheels.digest(wheel)
    command = [sys.executable, "-c", f"from temper import wheels; print(wheels.fetch('demo', '1.0', '{sha256}'))"]
    root = Path(__file__).resolve().parent.parent
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    paths = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(paths) == 1
