"""Which split reinforcement learning asks: its stage depends on that one, reads it, and says when nobody is in it."""

import shutil
from pathlib import Path

import pytest

from commands.compose import composed
from scripts.grpo import Grpo
from scripts.ppo import Ppo
from temper import checkpoints, graph, grpo, params, ppo, prompt_set, records

RECIPE = {"grpo": "sft-grpo", "ppo": "sft-ppo"}


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    settings = composed(list(overrides))
    shutil.copy("dvc.yaml", folder)
    monkeypatch.chdir(folder)
    params.PARAMS.write_text(settings)


@pytest.mark.parametrize("split", prompt_set.SPLITS)
@pytest.mark.parametrize("section", RECIPE)
def test_a_stage_depends_on_the_split_that_it_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, split: str
) -> None:
    prepare(tmp_path, monkeypatch, f"recipe={RECIPE[section]}", f"{section}.prompts={split}")
    file = f"data/mix/{split}.jsonl"
    (stage,) = (stage for stage in graph.stages() if stage.script == section)
    assert [dep for dep in stage.deps if dep.startswith("data/")] == [file]
    assert {Path(file), Path("models/sft")} <= set(checkpoints.deps(section))
    start = Path("models/sft")
    rendered = {
        "grpo": lambda: grpo.render(params.load("grpo", Grpo), start, 1, {"exact": 1.0}),
        "ppo": lambda: ppo.render(params.load("ppo", Ppo), start),
    }
    assert rendered[section]()["prompts"] == file


@pytest.mark.parametrize("section", RECIPE)
def test_a_split_without_rows_or_none_at_all_is_one_line_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    monkeypatch.chdir(tmp_path)
    records.write("data/mix/rl.jsonl", [])
    records.write("data/mix/preferences.jsonl", [{"id": "a"}])
    assert prompt_set.required(section, "preferences") == Path("data/mix/preferences.jsonl")
    with pytest.raises(SystemExit) as error:
        prompt_set.required(section, "rl")
    assert str(error.value) == (
        f"data/mix/rl.jsonl: no prompts for {section}: set split.rl above 0 in conf/split or {section}.prompts=preferences"
    )
    with pytest.raises(
        SystemExit, match=rf"^{section}\.prompts is 'train', expected preferences or rl: .*conf/{section}"
    ):
        prompt_set.required(section, "train")
