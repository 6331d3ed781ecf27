"""What make runs besides stages, and that the README's commands exist and its generated parts are fresh."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import ablation, doctor, readme, verify
from temper import graph, hardware

README = Path("README.md").read_text()
MAKEFILE = Path("Makefile").read_text()


def lock(folder: Path, name: str, **hashes: str) -> dict[tuple[str, str], str]:
    outs = "".join(f"    - path: {path}\n      md5: {md5}\n" for path, md5 in hashes.items())
    (folder / name).write_text(f"stages:\n  sft:\n    cmd: x\n    outs:\n{outs}")
    return verify.hashes(folder / name)


def test_verify_names_the_outs_that_differ_and_leaves_out_what_is_measured(tmp_path: Path) -> None:
    first = lock(tmp_path, "a", **{"models/sft": "1", "reports/sft.json": "2", "reports/timing/sft.json": "3"})
    second = lock(tmp_path, "b", **{"models/sft": "9", "reports/sft.json": "2", "reports/timing/sft.json": "8"})
    assert verify.differing(first, second) == [("sft", "models/sft")]
    assert verify.differing(first, first) == []
    del second["sft", "reports/sft.json"]
    assert ("sft", "reports/sft.json") in verify.differing(first, second)


def test_doctor_says_what_this_machine_has() -> None:
    result = subprocess.run([sys.executable, "-m", "commands.doctor"], capture_output=True, text=True, check=False)
    for word in ("git", "environment serve", "disk", "memory", "preset that fits", hardware.found().preset):
        assert word in result.stdout, result.stderr


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    states = {finding.name: finding for finding in doctor.tools()}
    assert states["c++"].state == "missing"
    assert "install it" in states["c++"].detail


@pytest.mark.parametrize(
    ("gpus", "memory", "preset"),
    [(0, 0.0, "cpu"), (1, 12.0, "cpu"), (1, 25.7, "gpu1"), (4, 85.0, "gpu1"), (8, 85.0, "gpu8")],
)
def test_the_preset_follows_the_gpus(gpus: int, memory: float, preset: str) -> None:
    machine = hardware.Machine("a CPU", 8, 64.0, ("H100",) * gpus, memory)
    assert machine.preset == preset
    assert Path(f"conf/hardware/{preset}.yaml").is_file()


ROW = {
    "Experiment": "",
    "rev": "workspace",
    "sft.lora.rank": "16",
    "reports/evaluate/dpo.json:exact": "0.5",
    "reports/evaluate/dpo.json:exact_low": "0.4",
    "reports/evaluate/dpo.json:exact_high": "0.6",
    "reports/sft.json:eval_loss": "1.25",
}


def test_ablation_shows_only_what_differs() -> None:
    rows = [ROW | {"dpo.beta": "0.1"}, ROW | {"dpo.beta": "0.3", "Experiment": "keen-otter"}]
    assert ablation.varied(rows) == ["dpo.beta"]
    with_models = [
        row | {"model.name": name, "base.name": name}
        for row, name in zip([*rows, ROW | {"dpo.beta": "0.3"}], "aab", strict=True)
    ]
    assert ablation.varied(with_models) == ["dpo.beta", "model.name"]
    table = ablation.markdown(rows, ["dpo.beta"])
    assert "| keen-otter | 0.3 | 0.500 |" in table
    assert ablation.plot(rows, ["dpo.beta"]).count("beta=") == 2


def test_every_make_target_of_the_readme_exists() -> None:
    stages = {stage.script for stage in graph.stages()}
    targets = set(re.findall(r"^([a-z][\w-]*)(?:\s[^:]*)?:", MAKEFILE, re.MULTILINE)) | stages
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", README)) - {"runs"}
    assert named <= targets, named - targets
    assert set(re.findall(r"^STAGES := (.*)$", MAKEFILE, re.MULTILINE)[0].split()) == stages


def test_every_target_has_its_line_in_help() -> None:
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^\.PHONY: (.*) \$\(STAGES\)$", MAKEFILE, re.MULTILINE)[0].split()
    assert all(f"make {target} " in shown for target in targets)


def test_every_override_of_the_readme_composes() -> None:
    from commands.compose import composed

    for name, value in re.findall(r"-S '?([a-z][\w.]*)=([\w.,-]+)'?", README):
        if (name, value) != ("data", "mine"):
            for one in value.split(","):
                composed([f"{name}={one}"])


def test_every_path_of_the_readme_exists() -> None:
    for path in re.findall(r"\]\(([\w./-]+)\)", README):
        assert Path(path).exists(), path


def test_the_readme_is_short_and_its_generated_parts_are_fresh() -> None:
    assert len(README.splitlines()) < 250
    readme.main(["--check"])
    assert readme.PICTURE.read_text() == graph.picture(graph.stages())
