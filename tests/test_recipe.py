"""A recipe says which training stages run; one that cannot run is refused before anything does."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from commands import check
from commands.compose import composed
from temper import evaluation_matrix, graph, recipe

RECIPES = sorted(file.stem for file in Path("conf/recipe").glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_gives_a_graph_whose_release_is_made_and_evaluated(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("dvc.yaml",):
        (tmp_path / file).write_text(Path(file).read_text())
    (tmp_path / "params.yaml").write_text(composed([f"recipe={name}"]))
    monkeypatch.chdir(tmp_path)
    found, stages = recipe.load(), graph.stages()
    outs = {out for stage in stages for out in stage.outs}
    assert {stage.script for stage in stages} & set(recipe.STAGES) == set(found.stages())
    assert {f"models/{model}" for model in found.variants} <= outs
    assert found.chain()[0] == "base"
    assert found.chain()[-1] == found.release
    assert found.unevaluated() == (["sft"] if name == "adapter" else [])
    read = {dep for stage in stages for dep in stage.deps if dep.startswith(("models/", "data/pref"))}
    made = {dep for dep in read if any(dep == out or dep.startswith(f"{out}/") for out in outs)}
    assert read == made


WRONG = {
    "release=grpo": "recipe.release names 'grpo', which this recipe does not make",
    "variants=[base,kto]": "recipe.variants names 'kto'",
    "variants=[gguf,dpo]": "recipe.variants begins with gguf, a quant",
    "judged=[gguf]": "recipe.judged names 'gguf'",
    "variants=[base]": "recipe.release is dpo, which recipe.variants lacks",
    "dpo=[kto]": "recipe.dpo names 'kto'",
    "dpo=[dpo]": "recipe.dpo names 'dpo'",
    "dpo=[base,sft]": "a stage starts from one model",
    "preferences=[]": "recipe.dpo needs pairs",
    "formats=[gguf,exl2]": "recipe.formats names 'exl2', expected gptq, awq, gguf",
    "draft=[medusa]": "recipe.draft is ['medusa'], expected one of eagle3, or []",
    "ppo=[sft]": "recipe.ppo needs a reward model",
    "judged=[base]": "recipe.judged names 'base', expected of recipe.variants, but for the first",
    "judged=[grpo]": "recipe.judged names 'grpo'",
    "scored=[reward]": "recipe.scored names 'reward', expected reward or dpo, and that this recipe makes it",
    "scored=[sft]": "recipe.scored names 'sft'",
    "safety=[dpo]": "recipe.safety lacks base",
    "safety=[base]": "recipe.safety lacks dpo, which the gate and the card ask of",
    "safety=[base,kto]": "recipe.safety names 'kto'",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_recipe_that_cannot_run_is_refused_in_one_line(override: str, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed([f"recipe.{override}"]))
    with pytest.raises(SystemExit) as error:
        recipe.load(tmp_path / "params.yaml")
    assert WRONG[override] in str(error.value)
    assert "conf/recipe" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_quant_is_evaluated_where_it_is_named_and_held_against_what_it_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed(["recipe.variants=[base,sft,dpo,awq]"]))
    found = recipe.load(tmp_path / "params.yaml")
    assert found.starts("awq") == ["dpo"]
    assert {("awq", "base"), ("awq", "dpo")} <= set(evaluation_matrix.pairs(found))
    (tmp_path / "params.yaml").write_text(composed(["recipe.variants=[base,sft,dpo,awq]", "recipe.formats=[gptq]"]))
    with pytest.raises(SystemExit, match=r"recipe\.variants names 'awq'"):
        recipe.load(tmp_path / "params.yaml")


def test_a_stage_that_is_switched_off_names_the_recipes_that_have_it() -> None:
    check.running("dpo")
    with pytest.raises(SystemExit, match=r"^kto is no part of this recipe .*recipe=sft-kto`$"):
        check.running("kto")


def test_measuring_stages_are_switched_by_their_lists() -> None:
    with pytest.raises(
        SystemExit, match=r"^judge is no part of this recipe \(recipe\.judged is empty .*recipe=sft-dpo-judged`$"
    ):
        check.running("judge")
    with pytest.raises(SystemExit, match=r"^rewardbench is no part .*\(recipe\.scored is empty"):
        check.running("rewardbench")


def test_a_judge_that_nothing_trains_is_refused(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(composed(["recipe.judged=[dpo]"]))
    chosen = recipe.load(tmp_path / "params.yaml")
    with pytest.raises(
        SystemExit, match=r"^recipe\.judged asks for the reward model, which this recipe does not train"
    ):
        check.judged(chosen, "models/reward")
    check.judged(chosen, "models/base/config.json")


def test_params_has_the_default_recipe() -> None:
    assert OmegaConf.load("params.yaml").recipe == OmegaConf.create(composed([])).recipe
