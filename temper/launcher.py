"""torchrun: a training's processes on this machine, and on the other nodes of a job that share this folder and the user cache.

The first node runs the graph. Every other one runs this module in the training environment, `python -m temper.launcher`, which
joins each training that the first announces until it says that it is done (`python -m temper.launcher done`). Which nodes
belong together is said by torchrun's own PET_RDZV_ENDPOINT (host:port of the first) and PET_RDZV_ID (of the job);
commands/launch.py writes such jobs.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from temper import health, metrics, params, stage

ANNOUNCED = Path("tmp/launch.json")
POLL = 1.0  # seconds between two looks at what is announced


def processes() -> int:
    """Of one training, on all nodes together: what the global batch is divided by."""
    runtime = params.runtime()
    return int(runtime["processes"] * runtime["nodes"])


def run(module: list[str], name: str) -> None:
    """Start `module` (torchrun's `-m` and what follows) on all processes and wait; exits when one of them fails."""
    launch = {"run": uuid.uuid4().hex, "module": module, "name": name}
    for left in (health.STOPPED, stage.OF_WORKERS):
        left.unlink(missing_ok=True)
    if params.runtime()["nodes"] > 1:
        _announce(launch)
    _torchrun(launch)
    if stage.OF_WORKERS.is_file():
        stage.measured(**metrics.read(stage.OF_WORKERS))


def follow() -> None:
    """Join what the first node of this job announces, until it is done."""
    job, joined = _job(), ""
    while True:
        launch = json.loads(ANNOUNCED.read_text()) if ANNOUNCED.is_file() else {}
        # What an earlier job announced lies there until this one announces something.
        if launch.get("job") != job or launch["run"] == joined:
            time.sleep(POLL)
            continue
        if not launch["module"]:
            return
        _torchrun(launch)
        joined = launch["run"]


def done() -> None:
    """Send the other nodes home."""
    _announce({"run": uuid.uuid4().hex, "module": [], "name": ""})


def _torchrun(launch: dict[str, Any]) -> None:
    """torchrun ends all its workers when one fails; who is the first of the nodes comes out of their rendezvous."""
    runtime = params.runtime()
    together = [f"--nnodes={runtime['nodes']}", "--rdzv_backend=c10d", f"--rdzv_id={launch['run']}"]
    where = together if runtime["nodes"] > 1 else ["--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={runtime['processes']}", *where]
    # Killing the stage ends torchrun, and with it its workers.
    result = subprocess.run([*command, *launch["module"]], check=False, preexec_fn=stage.die_with_parent)
    if result.returncode:
        failed = f"{launch['name']}: torchrun ended with status {result.returncode} (its output is above)"
        raise SystemExit(health.reason() or failed)


def _announce(launch: dict[str, Any]) -> None:
    job = _job()
    ANNOUNCED.parent.mkdir(exist_ok=True)
    part = ANNOUNCED.with_suffix(".part")
    part.write_text(json.dumps(launch | {"job": job}))
    part.replace(ANNOUNCED)


def _job() -> str:
    for name in ("PET_RDZV_ENDPOINT", "PET_RDZV_ID"):
        if name not in os.environ:
            raise SystemExit(
                f"{name} is not set, and hardware.runtime.nodes is more than 1: start the job that `python -m commands.launch` "
                "writes, or set nodes to 1"
            )
    return os.environ["PET_RDZV_ID"]


if __name__ == "__main__":
    stage.bind_to_parent()
    done() if sys.argv[1:] == ["done"] else follow()
