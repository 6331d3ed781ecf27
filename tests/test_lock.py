"""dvc.lock is of this code: what was committed is what this tree makes."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from temper import graph

CODE = ("scripts/", "temper/", "requirements/")


def changed(stage: graph.Stage, lock: Any, root: Path = Path()) -> Iterator[str]:
    """What `stage` has in the tree and not so in its entry of dvc.lock: command, code, sections of params.yaml."""
    if lock.get("cmd") != stage.cmd:
        yield "cmd"
    hashes = {dep["path"]: dep["md5"] for dep in lock.get("deps", [])}
    for dep in stage.deps:
        if dep.startswith(CODE) and hashes.get(dep) != hashlib.md5((root / dep).read_bytes()).hexdigest():
            yield dep
    params, recorded = OmegaConf.load(root / "params.yaml"), lock.get("params", {}).get("params.yaml", {})
    for section in stage.params:
        if recorded.get(section) != OmegaConf.select(params, section):
            yield f"params.yaml: {section}"


def test_dvc_lock_is_of_this_code() -> None:
    # OmegaConf reads 5e-7 as the number that DVC wrote; PyYAML would make a string of it.
    lock: Any = OmegaConf.load("dvc.lock")
    locked = lock["stages"]
    stale = {stage.name: list(changed(stage, locked.get(stage.name, {}))) for stage in graph.stages()}
    lines = [f"  {name}: {', '.join(what[:4])}{', …' if what[4:] else ''}" for name, what in stale.items() if what]
    lines += [f"  {name}: no longer a stage" for name in sorted(locked.keys() - stale.keys())]
    assert not lines, "\n".join(["dvc.lock is of other code. Run `make repro`, then commit. Stale stages:", *lines])


def test_every_kind_of_change_is_seen(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/mix.py").write_text("print(1)\n")
    (tmp_path / "params.yaml").write_text("mix:\n  rows: null\n  rate: 5.0e-07\n")
    stage = graph.Stage("mix", "", "python -m scripts.mix", ("scripts/mix.py", "data/split"), ("mix",), ())
    md5 = hashlib.md5((tmp_path / "scripts/mix.py").read_bytes()).hexdigest()
    deps = f"deps: [{{path: scripts/mix.py, md5: {md5}}}]"
    lock = OmegaConf.create(f"cmd: {stage.cmd}\n{deps}\nparams: {{params.yaml: {{mix: {{rate: 5e-07, rows: }}}}}}\n")
    assert list(changed(stage, lock, tmp_path)) == []
    (tmp_path / "scripts/mix.py").write_text("print(2)\n")
    (tmp_path / "params.yaml").write_text("mix:\n  rows: 0\n  rate: 5.0e-07\n")
    assert list(changed(stage, lock, tmp_path)) == ["scripts/mix.py", "params.yaml: mix"]
    assert list(changed(stage, {}, tmp_path)) == ["cmd", "scripts/mix.py", "params.yaml: mix"]
