"""Environments are built once per lock, safely by two at a time, and again cleanly after a build that was cut short."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from temper import envs

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the builder with one small environment, whose only package is a wheel made here."""
    root = tmp_path / "project"
    (root / "temper").mkdir(parents=True)
    (root / "requirements").mkdir()
    source = (ROOT / "temper/envs.py").read_text()
    edited = source.replace("LOCKS = {", 'LOCKS = {"small": ["small"], ')
    (root / "temper/__init__.py").touch()
    (root / "temper/envs.py").write_text(edited)
    (root / "requirements/excludes.txt").write_text("torchvision\n")
    (root / "requirements/small.txt").write_text(f"{wheel(tmp_path)}\n")
    return root


def wheel(folder: Path) -> Path:
    path = folder / "pebble-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pebble.py", "WEIGHT = 7\n")
        archive.writestr("pebble-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: pebble\nVersion: 1.0\n")
        archive.writestr("pebble-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("pebble-1.0.dist-info/RECORD", "pebble.py,,\n")
    return path


def start(project: Path, *arguments: str) -> "subprocess.Popen[str]":
    # The pinned uv comes from the real cache: what is tested is the building, not pip.
    cache = project.parent / "cache"
    (cache / "envs").mkdir(parents=True, exist_ok=True)
    tool = envs.UV.replace("==", "-")
    if not (cache / "envs" / tool).exists():
        envs._uv_executable()
        (cache / "envs" / tool).symlink_to(envs.cache() / "envs" / tool)
    command = [sys.executable, "-m", "temper.envs", *arguments]
    environment = os.environ | {"TEMPER_CACHE": str(cache)}
    return subprocess.Popen(
        command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def output(process: "subprocess.Popen[str]") -> str:
    text, _ = process.communicate(timeout=120)
    return text


def test_a_missing_environment_names_the_target_that_builds_it(project: Path) -> None:
    process = start(project, "run", "small", "-c", "import pebble")
    assert (
        output(process).strip()
        == "environment 'small' is not built: run `make env-small` (or `make setup` for all of them)"
    )
    assert process.returncode == 1


def test_two_builders_at_once_build_it_once(project: Path) -> None:
    builders = [start(project, "build", "small") for _ in range(3)]
    said = [output(builder) for builder in builders]
    assert [builder.returncode for builder in builders] == [0, 0, 0]
    assert sum("building environment" in text for text in said) == 1
    assert output(start(project, "run", "small", "-c", "import pebble; print(pebble.WEIGHT)")).strip() == "7"


def test_a_build_cut_short_is_started_over(project: Path) -> None:
    place = Path(output(start(project, "path", "small")).strip())
    (place / "bin").mkdir(parents=True)
    (place / "bin/python").symlink_to(sys.executable)
    (place / "half-written").touch()
    assert "is not built" in output(start(project, "run", "small", "-c", "pass"))
    assert "building environment" in output(start(project, "build", "small"))
    assert not (place / "half-written").exists()
    assert output(start(project, "build", "small")) == ""


def test_an_edited_lock_is_another_environment(project: Path) -> None:
    before = output(start(project, "path", "small"))
    with (project / "requirements/small.txt").open("a") as lock:
        lock.write("# a newer set of pins\n")
    assert output(start(project, "path", "small")) != before


def test_every_lock_pins_exactly_and_hashes_all_but_torch() -> None:
    for name in (name for names in envs.LOCKS.values() for name in names):
        blocks = [block for block in (ROOT / f"requirements/{name}.txt").read_text().split("\n") if block[:1].isalpha()]
        assert blocks
        assert all("==" in block for block in blocks)
        unhashed = [block for block in blocks if not block.endswith("\\")]
        assert unhashed in ([], ["torch==2.13.0"])


def test_first_contact_without_an_index_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(tmp_path), envs.UV]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        SystemExit, match=rf"^{envs.UV} was not installed \(ERROR: No matching .*\): mend it, then run"
    ) as error:
        envs._first(pip, "mend it")
    assert "\n" not in str(error.value)
    monkeypatch.setenv("TEMPER_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(SystemExit, match=r"was not installed \(false\): install Python's venv"):
        envs._uv_executable()


def test_a_missing_python_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(envs, "_uv_executable", lambda: "false")
    with pytest.raises(SystemExit, match=r"^uv venv failed \(above\): install Python 3\.11"):
        envs._uv("venv", "--python", "3.11", "x")
    with pytest.raises(SystemExit, match=r"^uv pip failed \(above\): check the network"):
        envs._uv("pip", "install", "x")


def test_pip_s_index_settings_reach_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    settings = envs._pip_settings()
    assert settings["UV_DEFAULT_INDEX"] == "http://127.0.0.1:9/simple"
    assert settings["UV_FIND_LINKS"] == "/wheels"
