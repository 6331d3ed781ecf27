"""How open a release is: the class agrees with the Model Openness Tool's rules, and reports/mof.yml with its schema."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from benchmarks import openness as rules
from benchmarks.openness import Evaluator
from commands.compose import composed
from scripts.card import Card
from temper import mof, openness, params
from temper import recipe as recipes
from temper.openness import COMPONENTS
from temper.recipe import Recipe

RECIPE = Recipe(
    ["base"], ["sft"], ["sft"], [], [], [], [], [], ["base", "sft", "dpo"], "dpo", ["gguf"], [], [], [], ["base", "dpo"]
)
APACHE = {"apache-2.0": ["SmolLM2-135M-Instruct (base model)", "bfcl-eval 2026.3.23"]}
NAMES = [one.name for one in COMPONENTS]


@pytest.fixture(scope="module")
def published() -> Path:
    """The tool's schema, components and licences."""
    folder = Path(os.environ.get("TEMPER_TEST_DATA", "")) / "mot_schema"
    if not os.environ.get("TEMPER_TEST_DATA") or not folder.is_dir():
        pytest.skip("TEMPER_TEST_DATA has no mot_schema")
    return folder


@pytest.fixture(scope="module")
def validator(published: Path) -> Draft202012Validator:
    schema = json.loads((published / "mof_schema.json").read_text())
    return Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.fixture(scope="module")
def reference(published: Path) -> Evaluator:
    return rules.reference(published)


def test_every_licence_is_as_open_as_the_tool_has_it(published: Path) -> None:
    listed = {
        entry["licenseId"]
        for name in ("mof-licenses.json", "licenses.json")
        for entry in json.loads((published / name).read_text())["licenses"]
    }
    wanted = set(rules.open_by_list(published))
    assert {name for name in listed | wanted if openness.is_open(name)} == wanted
    assert len(wanted) > 200


def test_the_components_are_the_tool_s(published: Path) -> None:
    theirs = yaml.safe_load((published / "mof.settings.yml").read_text())["components"]
    assert len(COMPONENTS) == 17
    assert {(one["name"], one["content_type"], one["class"], one["required"]) for one in theirs} == {
        (one.name, one.type, one.level, one.required) for one in COMPONENTS
    }


LICENCES, CLOSED = st.sampled_from(rules.LICENCES), st.sampled_from(rules.CLOSED)


@st.composite
def releases(draw: st.DrawFn) -> dict[str, Any]:
    """Files of every class: all that a class asks for, less and more, licences of components, of types and of all."""
    level = draw(st.sampled_from([0, 1, 1, 1, 2, 2, 3]))
    changed = draw(st.sets(st.sampled_from(NAMES), max_size=draw(st.sampled_from([0, 0, 1, 2]))))
    names = {one.name for one in COMPONENTS if level and one.level >= level} ^ changed
    if draw(st.booleans()):  # the paper in the place of the report
        names = names - {openness.REPORT} | {openness.PAPER}
    closed = draw(st.sets(st.sampled_from(NAMES), max_size=draw(st.sampled_from([0, 0, 0, 1, 3]))))
    inherits = draw(st.sets(st.sampled_from(NAMES), max_size=draw(st.sampled_from([0, 2, 17]))))
    components = [
        {"name": name} | ({} if name in inherits else {"license": draw(CLOSED if name in closed else LICENCES)})
        for name in sorted(names)
    ]
    shared = st.fixed_dictionaries({"name": st.one_of(LICENCES, LICENCES, CLOSED, st.none()), "path": st.none()})
    licence = draw(st.dictionaries(st.sampled_from(["distribution", "code", "data", "document"]), shared))
    if draw(st.booleans()):
        licence["distribution"] = {"name": "MIT", "path": None}
    return {"name": "a model", "producer": "", "license": licence, "components": draw(st.permutations(components))}


def test_classes_agree_with_the_reference_rules(reference: Evaluator, validator: Draft202012Validator) -> None:
    reached: list[int] = []

    @settings(max_examples=600, deadline=None, derandomize=True, database=None)
    @given(releases())
    def agrees(release: dict[str, Any]) -> None:
        validator.validate({"framework": openness.FRAMEWORK, "release": release})
        found = openness.assess(release).reached
        assert found == reference(release)
        reached.append(found)

    agrees()
    assert all(reached.count(level) >= 30 for level in (0, 1, 2, 3)), [reached.count(level) for level in (0, 1, 2, 3)]


def of_class(level: int, *less: str, licence: str = "MIT") -> dict[str, Any]:
    names = [one.name for one in COMPONENTS if one.required and one.level >= level and one.name not in less]
    return {"license": {}, "components": [{"name": name, "license": licence} for name in names]}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_class_asks_for_all_of_its_components_and_of_those_above(level: int) -> None:
    assert openness.assess(of_class(level)).reached == level
    for one in COMPONENTS:
        if one.required and one.level >= level and one.name != openness.REPORT:
            found = openness.assess(of_class(level, one.name))
            assert found.reached == (0 if one.level == 3 else one.level + 1)
            assert [lack.component.name for lack in found.missing] == [one.name]


def test_a_paper_stands_in_for_the_report_and_not_the_other_way() -> None:
    assert openness.assess(of_class(1, openness.REPORT)).reached == 1
    assert openness.assess(of_class(1, openness.PAPER)).reached == 2
    assert openness.assess(of_class(1, openness.PAPER, openness.REPORT)).reached == 0


def test_a_licence_is_inherited_where_none_is_stated() -> None:
    shared = {"distribution": {"name": "CC-BY-NC-4.0"}, "code": {"name": "MIT"}, "data": {"name": None}}
    release = {"license": shared, "components": [{"name": name} for name in ("Training code", "Datasets")]}
    release["components"].append({"name": "Inference code", "license": "unlicensed"})  # type: ignore[attr-defined]
    found = {one.component.name: (one.licence, one.gap) for one in openness.assess(release).standings if one.included}
    assert found["Training code"] == ("MIT", "")
    assert found["Datasets"] == ("CC-BY-NC-4.0", "CC-BY-NC-4.0 is not an open licence")
    assert found["Inference code"] == (None, "released without a licence that holds")


# reports/mof.yml


@pytest.fixture(scope="module")
def cfg() -> Card:
    return params.load("card", Card)


def changed(cfg: Card, **openness_changes: Any) -> Card:
    return replace(cfg, openness=replace(cfg.openness, **openness_changes))


def placed(cfg: Card, **places: mof.Place) -> Card:
    return changed(cfg, components=cfg.openness.components | places)


def rows(document: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in document["assessment"]["components"]}


def test_the_default_release_is_open_tooling_and_lacks_a_paper(cfg: Card) -> None:
    made = mof.document(cfg, APACHE, RECIPE)
    found = made["assessment"]
    assert (found["class"], found["next"]) == (2, "Class I - Open Science Model")
    assert found["missing"] == [{"name": "Research paper", "reason": "not released"}]
    assert "set card.openness.repository" in found["condition"]
    assert [one["name"] for one in found["components"]] == NAMES
    assert rows(made)["Model parameters (Final)"]["where"] == "models/dpo, models/gguf"
    assert rows(made)["Model parameters (Intermediate)"]["where"] == "models/sft"
    assert rows(made)["Training code"]["where"] == "scripts/sft.py, scripts/preferences.py, scripts/dpo.py"
    assert {one["license"] for one in made["release"]["components"]} == {"Apache-2.0"}
    assert "Research paper" not in {one["name"] for one in made["release"]["components"]}


def test_the_file_validates_and_is_of_the_class_that_it_states(
    cfg: Card, reference: Evaluator, validator: Draft202012Validator
) -> None:
    paper = mof.Place(["https://example.org/paper.pdf"], "CC-BY-4.0")
    cases = [
        (cfg, APACHE, 2),
        (placed(cfg, research_paper=paper), APACHE, 1),
        (changed(cfg, date="2026-01-31", repository="https://example.org/r", producer="us"), APACHE, 2),
        (placed(cfg, training_code=mof.Place([], "code")), APACHE, 3),
        (placed(cfg, model_card=mof.Place(["reports/model-card.md"], None)), APACHE, 0),
        (replace(cfg, licence="llama3.1", base_licence="llama3.1"), {"llama3.1": ["x (base model)", "y"]}, 0),
    ]
    for case, used, level in cases:
        text = mof.text(mof.document(case, used, RECIPE))
        assert text == mof.text(mof.document(case, used, RECIPE))
        read = yaml.safe_load(text)
        validator.validate(read)
        assert read["assessment"]["class"] == level == reference(read["release"])


def test_data_whose_licences_forbid_the_release_close_the_weights_and_the_file_says_so(
    cfg: Card, reference: Evaluator
) -> None:
    """As the data card judges them: of the weights no licence is left, of the data set their own."""
    made = mof.document(cfg, APACHE | {"cc-by-nc-4.0": ["acme/chats"]}, RECIPE)
    weights, data = (rows(made)[name] for name in ("Model parameters (Final)", "Datasets"))
    assert (weights["open"], weights["license"]) == (False, None)
    assert "a release under apache-2.0 is incompatible: Creative Commons Attribution-NonCommercial" in weights["note"]
    assert not data["open"]
    assert "several licences" in data["note"]
    assert made["assessment"]["class"] == 0 == reference(made["release"])
    assert [one["name"] for one in made["assessment"]["missing"]] == ["Model parameters (Final)"]
    alone = mof.document(cfg, {"apache-2.0": ["SmolLM2-135M-Instruct (base model)"], "cc-by-nc-4.0": ["x"]}, RECIPE)
    assert rows(alone)["Datasets"]["note"] == "cc-by-nc-4.0 is not an open licence"


def test_a_licence_that_nobody_stated_or_knows_opens_nothing(cfg: Card) -> None:
    for unknown in ("", "in-house"):
        found = rows(mof.document(cfg, APACHE | {unknown: ["acme/chats"]}, RECIPE))
        assert "needs review" in found["Model parameters (Final)"]["note"]
        assert not found["Datasets"]["open"]


def test_data_of_several_licences_are_open_under_one_that_all_permit(cfg: Card) -> None:
    used = APACHE | {"cc-by-sa-4.0": ["wiki"]}
    release = replace(cfg, licence="cc-by-sa-4.0")
    undecided = rows(mof.document(release, used, RECIPE))["Datasets"]
    assert (undecided["license"], undecided["open"]) == ("Apache-2.0 AND CC-BY-SA-4.0", False)
    stated = replace(cfg.openness.licences, data="CC-BY-SA-4.0")
    decided = rows(mof.document(changed(release, licences=stated), used, RECIPE))["Datasets"]
    assert (decided["license"], decided["open"]) == ("CC-BY-SA-4.0", True)
    wrong = replace(cfg.openness.licences, data="MIT")
    refused = rows(mof.document(changed(release, licences=wrong), used, RECIPE))["Datasets"]
    assert not refused["open"]
    assert "a release under mit is incompatible" in refused["note"]


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("  Apache License\n   Version 2.0, January 2004", "Apache-2.0"),
        ("MIT License\n\nCopyright", "MIT"),
        ("GNU GENERAL PUBLIC LICENSE\n   Version 3, 29 June 2007", "GPL-3.0-only"),
    ],
)
def test_the_code_s_licence_is_that_of_the_file(tmp_path: Path, text: str, licence: str) -> None:
    (tmp_path / "LICENSE").write_text(text)
    assert mof.of_file(tmp_path / "LICENSE").licence == licence


def test_a_licence_file_that_is_not_known_names_the_remedy(tmp_path: Path) -> None:
    assert mof.of_file(tmp_path / "LICENSE").note == "there is no LICENSE"
    (tmp_path / "LICENSE").write_text("All rights reserved")
    with pytest.raises(SystemExit, match=r"LICENSE: .*card\.openness\.licences\.code"):
        mof.of_file(tmp_path / "LICENSE")


def test_settings_that_cannot_be_are_one_line(cfg: Card) -> None:
    cases = [
        (placed(cfg, research_paper=mof.Place(["paper.pdf"], None)), r"research_paper: no paper\.pdf here"),
        (placed(cfg, weights=mof.Place([], None)), "weights is no component: choose of data_card, "),
        (changed(cfg, components={}), "data_card is missing"),
        (changed(cfg, date="soon"), "date is 'soon': write it as 2026-01-31"),
        (changed(cfg, treatment="tuned"), "treatment is 'tuned': choose of "),
    ]
    for case, message in cases:
        with pytest.raises(SystemExit, match=message) as error:
            mof.document(case, APACHE, RECIPE)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["qwen3-8b", "llama3.1-8b", "gemma3-12b"])
@pytest.mark.parametrize("recipe", ["sft", "orpo", "sft-dpo-grpo"])
def test_other_models_and_recipes_have_a_file(
    tmp_path: Path, validator: Draft202012Validator, reference: Evaluator, model: str, recipe: str
) -> None:
    (tmp_path / "params.yaml").write_text(composed([f"model={model}", f"recipe={recipe}"]))
    cfg, chosen = params.load("card", Card, tmp_path / "params.yaml"), recipes.load(tmp_path / "params.yaml")
    made = mof.document(cfg, {cfg.base_licence: [f"{cfg.base} (base model)"], "apache-2.0": ["bfcl"]}, chosen)
    validator.validate(yaml.safe_load(mof.text(made)))
    assert made["assessment"]["class"] == reference(made["release"]) == (2 if model == "qwen3-8b" else 0)
    assert rows(made)["Model parameters (Intermediate)"]["released"] == (recipe == "sft-dpo-grpo")
