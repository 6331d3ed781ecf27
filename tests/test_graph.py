"""dvc.yaml says what the scripts do: DVC cannot see imports or which params a script reads, so we look."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from commands import check, deps
from temper import graph, recipe

STAGES = graph.definitions()
SCRIPTS = sorted({stage.script for stage in STAGES})


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_deps_name_the_script_its_modules_and_its_lock(stage: graph.Stage) -> None:
    assert {dep for dep in stage.deps if deps.is_code(dep)} == set(deps.code(stage))


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_params_are_the_sections_the_script_loads(stage: graph.Stage) -> None:
    source = Path(f"scripts/{stage.script}.py").read_text()
    calls = [
        node.args[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.load"
    ]
    # A matrix stage loads f"quantize.{item}": its literal beginning is the section.
    loaded = {ast.unparse(call).strip("f'\"").split(".")[0] for call in calls}
    loaded |= {"recipe"} if "recipe.load()" in source else set()
    # Which stages there are, and so which reports are of this run, follows from these.
    loaded |= {"recipe", "served"} if "graph.stages()" in source else set()
    assert {param.split(".")[0] for param in stage.params} == loaded


@pytest.mark.parametrize("name", SCRIPTS)
def test_stage_reads_as_one_screen_and_says_what_it_reads_and_writes(name: str) -> None:
    source = Path(f"scripts/{name}.py").read_text()
    assert len(source.splitlines()) <= 150
    assert re.search(r"^Reads +\S", source, re.MULTILINE)
    assert re.search(r"^Writes +\S", source, re.MULTILINE)


def test_every_script_is_a_stage_and_no_script_imports_another() -> None:
    files = {path.stem for path in Path("scripts").glob("*.py")} - {"__init__"}
    assert files == set(SCRIPTS)
    for name in files:
        assert "scripts" not in Path(f"scripts/{name}.py").read_text().split('"""', 2)[2].replace("requirements", "")


def test_every_stage_has_its_section_and_its_group() -> None:
    for stage in STAGES:
        assert Path(f"conf/{stage.script}").is_dir(), stage.name
        training = stage.script in recipe.STAGES
        name = f"training/{stage.script}" if training else stage.name.replace("@", "/")
        assert f"reports/timing/{name}.json" in stage.outs
    check.main()


def test_an_unknown_key_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edited = tmp_path / "params.yaml"
    edited.write_text(Path("params.yaml").read_text().replace("  beta:", "  betta: 1\n  beta:"))
    schema = check.schema(importlib.import_module("scripts.dpo"), "dpo")
    from temper import params

    with pytest.raises(SystemExit, match=r"section 'dpo'.*betta.*make params"):
        params.load("dpo", schema, edited)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_dvc_starts_a_stage_without_a_shell_in_between(stage: graph.Stage) -> None:
    assert stage.cmd.startswith("exec python -m ")


def test_the_library_imports_one_way() -> None:
    for source in Path("temper").rglob("*.py"):
        for line in source.read_text().splitlines():
            assert not re.match(r"\s*(from|import) (scripts|commands|tests)\b", line), source


def test_edges_join_a_dep_to_the_stage_that_makes_it() -> None:
    pairs = graph.edges(graph.stages())
    assert ("base", "ingest") in pairs  # a file inside the out models/base
    assert ("sft@base", "preferences@sft") in pairs
    assert ("sft@base", "base") not in pairs


def test_stages_stand_in_the_order_that_they_run() -> None:
    place = {stage.name: number for number, stage in enumerate(graph.stages())}
    assert [pair for pair in graph.edges(graph.stages()) if place[pair[0]] > place[pair[1]]] == []


def test_the_picture_shows_every_stage() -> None:
    stages = graph.stages()
    svg = graph.picture(stages)
    assert svg == graph.picture(stages)
    assert all(f">{stage.name}<" in svg for stage in stages)
