"""A stage ends in one line on a user's mistake or a full disk, and never outlives what started it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
HEAD = "import sys; from temper import metrics, records, stage\n"


def run(folder: Path, body: str) -> "subprocess.CompletedProcess[str]":
    script = f"{HEAD}def main():\n    {body}\nstage.run(main, 'probe')"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_stage_leaves_its_time_memory_and_machine(tmp_path: Path) -> None:
    result = run(tmp_path, "stage.measured(tokens_per_second=7.0)")
    assert result.returncode == 0, result.stderr
    timing = json.loads((tmp_path / "reports/timing/probe.json").read_text())
    assert timing["tokens_per_second"] == 7.0
    assert timing["peak_memory_gb"] > 0
    assert timing.keys() == {"seconds", "peak_memory_gb", "hardware", "tokens_per_second"}


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    # /dev/full answers every write as a full disk does.
    result = run(tmp_path, "open('/dev/full', 'w').write('x' * 100_000)")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "No space left on device" in result.stderr
    assert not (tmp_path / "reports").exists()


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    result = run(tmp_path, "open('no such folder/file')")
    assert "Traceback" in result.stderr


def test_a_written_file_is_whole_or_absent(tmp_path: Path) -> None:
    # A generator that fails midway stands for a kill: the rows before it are on disk, but under no name that a stage reads.
    result = run(tmp_path, "records.write('out/rows.jsonl', ({'n': 1 // (3 - n)} for n in range(9)))")
    assert "ZeroDivisionError" in result.stderr
    assert not (tmp_path / "out/rows.jsonl").exists()


def test_a_stage_dies_with_what_started_it(tmp_path: Path) -> None:
    child = f"{HEAD}import time\ndef main():\n    print('up', flush=True); time.sleep(60)\nstage.run(main, 'probe')"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    stage = psutil.Process(process.pid).children()[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 10
    while stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not stage.is_running() or stage.status() == psutil.STATUS_ZOMBIE


def test_bad_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b'{"a": 1}\n{"a": \n')
    result = run(tmp_path, "list(records.read('bad.jsonl'))")
    assert result.returncode == 1
    assert result.stderr.startswith("bad.jsonl:2: not JSON")
    (tmp_path / "latin.jsonl").write_bytes('{"a": "é"}\n'.encode("latin-1"))
    assert run(tmp_path, "list(records.read('latin.jsonl'))").stderr.startswith("latin.jsonl:1: not UTF-8 at byte 7")
