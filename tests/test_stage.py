"""A stage ends in one line on a user's mistake or a full disk, and never outlives what started it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from temper import graph

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


# What was seen of safetensors 0.8, torch 2.13 (which keeps no reason), and code of ours that took the failure for another.
WRAPPED = {
    "in a Rust library": "raise RuntimeError('Error while serializing: I/O error: No space left on device (os error 28)')",
    "in torch.save": "raise RuntimeError('unexpected pos 704 vs 598') from RuntimeError('basic_ios::clear: iostream error')",
    "behind another remedy": "raise SystemExit('choose another model') from OSError(28, 'No space left on device', 'f')",
}


@pytest.mark.parametrize("failure", WRAPPED.values(), ids=WRAPPED)
def test_a_full_disk_is_one_line_whatever_wraps_it(tmp_path: Path, failure: str) -> None:
    result = run(tmp_path, failure)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert result.stderr.endswith(": free space or permissions, then repeat\n")


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    limited = "import resource, numpy; from safetensors.numpy import save_file; "
    limited += (
        "resource.setrlimit(resource.RLIMIT_FSIZE, (999, 999)); save_file({'w': numpy.zeros(999)}, 'w.safetensors')"
    )
    assert run(tmp_path, limited).stderr == "output: File too large: free space or permissions, then repeat\n"


@pytest.mark.parametrize("failure", ["raise ValueError('no')", "raise SystemExit('choose another model')"])
def test_what_is_not_the_disk_stays_as_it_is(tmp_path: Path, failure: str) -> None:
    result = run(tmp_path, failure)
    assert "free space" not in result.stderr
    assert ("Traceback" in result.stderr) == ("ValueError" in failure)


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
    assert_all_end_with(process)


def assert_all_end_with(process: "subprocess.Popen[bytes]") -> None:
    """Kill `process` as nothing can survive it, and see what it started end too."""
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while (alive := [one for one in started if _is_alive(one)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for one in alive:
        one.kill()
    assert not alive


def _is_alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_what_a_stage_forks_dies_with_it(tmp_path: Path) -> None:
    body = "import multiprocessing, time; fork = multiprocessing.get_context('fork'); "
    body += "fork.Process(target=time.sleep, args=(60,)).start(); print('up', flush=True); time.sleep(60)"
    script = f"{HEAD}def main():\n    {body}\nstage.run(main, 'probe')"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert_all_end_with(process)


# Stand-ins for torch and Axolotl: torchrun starts one worker, which gets as far as setting its threads.
TORCH = "import time\nclass Tensor: pass\ndef set_num_threads(_):\n    print('up', flush=True); time.sleep(60)\n"
TORCHRUN = "import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[sys.argv.index('-m'):]])\n"
LAUNCHES = {
    "sft": "from temper import launcher; launcher.run(['-m', 'temper.axolotl_plugin', 'axolotl.yaml', 'log.json'], 'sft')",
    "dpo": "from temper import trl; trl.train({'trainer': {}, 'stage': 'dpo'}, Path('.'), None, [], 2)",
}


@pytest.mark.parametrize("name", LAUNCHES)
def test_torchrun_and_its_workers_die_with_the_stage(tmp_path: Path, name: str) -> None:
    for module, text in {
        "torch/__init__": TORCH,
        "torch/distributed/__init__": "",
        "torch/distributed/run": TORCHRUN,
        "torch/utils/__init__": "",
        "torch/utils/data": "class BatchSampler: pass\nclass RandomSampler: pass\nclass Sampler(list): pass\n",
        "axolotl/__init__": "",
        "axolotl/integrations/__init__": "",
        "axolotl/integrations/base": "class BasePlugin: pass\nclass AdapterCapabilities: pass\n",
        "transformers/__init__": "class TrainerCallback: pass\n",
    }.items():
        (tmp_path / module).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{module}.py").write_text(text)
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    process = subprocess.Popen(
        [sys.executable, "-c", f"from pathlib import Path; {LAUNCHES[name]}"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    assert len(psutil.Process(process.pid).children(recursive=True)) == 2
    assert_all_end_with(process)


def test_a_stage_dies_with_dvc_whatever_shell_starts_it(tmp_path: Path) -> None:
    # Without SHELL, DVC takes /bin/sh, which waits for its child and would keep it from seeing that DVC is gone.
    command = next(stage.cmd for stage in graph.stages(ROOT / "dvc.yaml") if stage.name == "ingest")
    probe = command.replace("python -m scripts.ingest", f"{sys.executable} probe.py")
    assert probe != command
    body = "import time\ndef main():\n    open('up', 'w').close(); time.sleep(60)\nstage.run(main, 'probe')"
    (tmp_path / "probe.py").write_text(f"{HEAD}{body}")
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  probe:\n    cmd: {probe}\n")
    environment = {name: value for name, value in os.environ.items() if name != "SHELL"}
    environment |= {"PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--quiet", "--no-scm"], cwd=tmp_path, env=environment, check=True)
    process = subprocess.Popen([*dvc, "repro"], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not (tmp_path / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert_all_end_with(process)


def test_bad_lines_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(b'{"a": 1}\n{"a": \n')
    result = run(tmp_path, "list(records.read('bad.jsonl'))")
    assert result.returncode == 1
    assert result.stderr.startswith("bad.jsonl:2: not JSON")
    (tmp_path / "latin.jsonl").write_bytes('{"a": "é"}\n'.encode("latin-1"))
    assert run(tmp_path, "list(records.read('latin.jsonl'))").stderr.startswith("latin.jsonl:1: not UTF-8 at byte 7")
