"""What make runs besides stages, and that the README's commands exist and its generated parts are fresh."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from commands import doctor, experiments, readme, verify
from commands.compose import composed
from temper import envs, graph, hardware, params

README = Path("README.md").read_text()
PAGES = README + Path("benchmarks/README.md").read_text()
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


def test_verify_refuses_what_is_not_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "--quiet"], check=True)
    verify.refuse_edits()
    Path("edited.py").touch()
    with pytest.raises(SystemExit, match=r"^verify runs clones of HEAD.*\(edited\.py\): commit or stash it$"):
        verify.main()


def test_what_was_left_out_is_said_with_its_reason() -> None:
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, "-m", "not gpu", "tests/test_gpu.py"], capture_output=True, text=True, check=False)
    assert any(re.fullmatch(r"left out \d+ gpu: needs a GPU", line) for line in done.stdout.splitlines())


def test_doctor_says_what_this_machine_has() -> None:
    # -S: no installed package, as on a fresh machine.
    command = [sys.executable, "-S", "-m", "commands.doctor"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    for word in ("git", "environment serve", "disk", "memory", "preset that fits", hardware.found().preset):
        assert word in result.stdout, result.stderr


def test_doctor_needs_no_environment() -> None:
    made = subprocess.run(["make", "--dry-run", "doctor"], capture_output=True, text=True, check=True).stdout
    assert "temper.envs build" not in made
    assert "-m commands.doctor" in made


def test_doctor_reads_params_yaml_and_counts_what_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = doctor.composed(Path("params.yaml").read_text())
    runtime = params.runtime()
    assert settings["preset"] == params.value("hardware.name")
    assert float(settings["min_memory_gb"]) == runtime["min_memory_gb"]
    assert float(settings["min_disk_gb"]) == runtime["min_disk_gb"]
    monkeypatch.setattr(envs, "is_built", lambda env: env != "serve")
    found = {finding.name: finding for finding in doctor.resources(settings | {"preset": "cpu"})}
    assert f"{runtime['min_disk_gb'] + doctor.COST['serve'][0]:.0f} GB needed" in found["disk"].detail
    assert all(word in found["time"].detail for word in ("cpu: about 70 to 120 min", "1 min", "to build serve"))
    assert all(f"{preset}: not measured" in doctor._time(preset, []) for preset in ("gpu8", "cpu-bf16"))
    assert doctor.composed(composed(["hardware=cpu-bf16"]))["preset"] == "cpu-bf16"
    with pytest.raises(SystemExit, match=r"^params\.yaml: no section 'hardware'.*make params"):
        doctor.composed("seed: 17\n")


def test_doctor_names_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    states = {finding.name: finding for finding in doctor.tools()}
    assert {finding.state for finding in states.values()} == {"missing"}
    assert all("install it" in states[tool].detail for tool in ("python3.11", "c++"))


@pytest.mark.parametrize(
    ("gpus", "memory", "preset"),
    [(0, 0.0, "cpu"), (1, 12.0, "cpu"), (1, 25.7, "gpu1"), (4, 85.0, "gpu1"), (8, 85.0, "gpu8")],
)
def test_the_preset_follows_the_gpus(gpus: int, memory: float, preset: str) -> None:
    machine = hardware.Machine("a CPU", 8, 64.0, ("H100",) * gpus, memory)
    assert machine.preset == preset
    assert Path(f"conf/hardware/{preset}.yaml").is_file()


def test_a_cpu_that_multiplies_bf16_has_a_preset_of_its_own() -> None:
    assert hardware.Machine("a CPU", 8, 64.0, (), 0.0, bf16=True).preset == "cpu-bf16"
    assert hardware.Machine("a CPU", 8, 64.0, ("H100",), 80.0, bf16=True).preset == "gpu1"
    assert Path("conf/hardware/cpu-bf16.yaml").is_file()


ROW = {
    "Experiment": "",
    "rev": "workspace",
    "recipe.release": "dpo",
    "sft.lora.rank": "16",
    "reports/evaluate/dpo.json:exact": "0.5",
    "reports/evaluate/dpo.json:exact_low": "0.4",
    "reports/evaluate/dpo.json:exact_high": "0.6",
    "reports/training/sft.json:eval_loss": "1.25",
}


def test_experiments_show_only_what_differs() -> None:
    rows = [ROW | {"dpo.beta": "0.1"}, ROW | {"dpo.beta": "0.3", "Experiment": "keen-otter"}]
    assert experiments.varied(rows) == ["dpo.beta"]
    with_models = [
        row | {"model.name": name, "base.name": name}
        for row, name in zip([*rows, ROW | {"dpo.beta": "0.3"}], "aab", strict=True)
    ]
    assert experiments.varied(with_models) == ["dpo.beta", "model.name"]
    table = experiments.markdown(rows, ["dpo.beta"])
    assert "| keen-otter | 0.3 | 0.500 |" in table
    assert experiments.plot(rows, ["dpo.beta"]).count("beta=") == 2


def test_every_make_target_of_the_readme_exists() -> None:
    stages = {stage.script for stage in graph.definitions()}
    targets = set(re.findall(r"^([a-z][\w-]*)(?:\s[^:]*)?:", MAKEFILE, re.MULTILINE)) | stages
    named = set(re.findall(r"\bmake ([a-z][\w-]*)", PAGES)) - {"runs"}
    assert named <= targets, named - targets
    assert set(re.findall(r"^STAGES := (.*)$", MAKEFILE, re.MULTILINE)[0].split()) == stages


def targets() -> list[str]:
    """Those of the Makefile that are no stages."""
    return re.findall(r"^\.PHONY: (.*) \$\(STAGES\)$", MAKEFILE, re.MULTILINE)[0].split()


def test_every_target_has_its_line_in_help() -> None:
    shown = subprocess.run(["make", "help"], capture_output=True, text=True, check=True).stdout
    assert all(f"make {target} " in shown for target in targets())


def test_the_readme_s_table_has_every_target() -> None:
    rows = re.findall(r"^\| (`.*?) \|", README.split("## One stage")[1].split("\n## ")[0], re.MULTILINE)
    assert sorted(re.findall(r"`([\w-]+)`", " ".join(rows[1:]))) == sorted(targets())


def test_every_setting_that_the_readme_names_is_one() -> None:
    named = set(re.findall(r"(?<![\w/.<*-])([a-z]+(?:\.[a-z_0-9]+)+)(?=[=`\s\"])", README))
    sections = params.tree()
    found = {key: key.split(".") for key in named if key.split(".")[0] in sections}
    assert len(found) > 10
    for key, parts in found.items():
        node: Any = sections
        for part in parts:
            if node is None:
                break  # what another option of the group fills
            assert part in node, key
            node = node[part]


def test_every_override_of_the_readme_composes() -> None:
    for name, value in re.findall(r"-S '?([a-z][\w.]*)=([\w.,-]+)'?", PAGES):
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
