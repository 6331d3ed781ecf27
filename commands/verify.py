"""Run the smoke preset in two clean clones and print every out whose hash differs.

Outs that hold what a machine took (reports/timing, reports/bench) and the gate and pages that quote them are listed apart. How many
were compared and differ goes to reports/benchmarks/verify.json.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from temper import metrics

MEASURED = (
    "reports/timing/",
    "reports/bench/",
    "reports/gate.json",
    "reports/model-card.md",
    "reports/report.html",
    "reports/scorecard",
)
OUT = "reports/benchmarks/verify.json"


def main() -> None:
    refuse_edits()
    with tempfile.TemporaryDirectory(prefix="temper-verify-") as folder:
        first, second = (run(Path(folder) / name) for name in ("first", "second"))
    different = differing(first, second)
    exempt = [name for name in first if name[1].startswith(MEASURED)]
    for stage, out in different:
        print(f"differs: {stage}: {out}")
    print(
        f"{len(first) - len(exempt)} outs compared, {len(different)} differ; {len(exempt)} quote measured time and were left out"
    )
    metrics.write(OUT, {"compared": len(first) - len(exempt), "differ": len(different), "left_out": len(exempt)})
    sys.exit(1 if different else 0)


def refuse_edits() -> None:
    """Exit when the tree is not what git has: the clones are of HEAD, so an edit would go unverified."""
    status = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    if edited := [line[3:] for line in status.stdout.splitlines()]:
        raise SystemExit(
            f"verify runs clones of HEAD, which lack what is edited here ({', '.join(edited[:3])}): commit or stash it"
        )


def run(clone: Path) -> dict[tuple[str, str], str]:
    """Clone HEAD, run the smoke preset without any cache of results, and return the hash of every (stage, out)."""
    subprocess.run(["git", "clone", "--quiet", ".", str(clone)], check=True)
    # A run that is compared resumes nothing: its checkpoints go to a scratch folder of its own.
    environment = os.environ | {"TEMPER_SCRATCH": str(clone / "tmp")}
    for command in (["-m", "commands.compose", "experiment=smoke"], ["-m", "dvc", "repro", "--force"]):
        subprocess.run([sys.executable, *command], cwd=clone, env=environment, check=True)
    return hashes(clone / "dvc.lock")


def hashes(lock: Path) -> dict[tuple[str, str], str]:
    """(stage, out) → md5, as dvc.lock records them."""
    stages = yaml.safe_load(lock.read_text())["stages"]
    return {(name, out["path"]): out["md5"] for name, stage in stages.items() for out in stage.get("outs", [])}


def differing(first: dict[tuple[str, str], str], second: dict[tuple[str, str], str]) -> list[tuple[str, str]]:
    """Every (stage, out) whose hash is not the same in both, or that only one has; measured outs are not compared."""
    names = {name for name in first.keys() | second.keys() if not name[1].startswith(MEASURED)}
    return sorted(name for name in names if first.get(name) != second.get(name))


if __name__ == "__main__":
    main()
