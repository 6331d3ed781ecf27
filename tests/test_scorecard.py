"""The scorecard's figures are those of reports/, its points follow from them, and what was not measured has none."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from commands.compose import composed
from scripts import scorecard as stage
from temper import graph, metrics, params, scorecard
from temper.scorecard import Line, Part, Scale

SCALE = Scale("speed", "tokens a second", "bench/bf16.json", "c1", 10, 50, 20, "make bench")
PARTS = {"speed": Part("Speed", 20)}
MAKEFILE = Path("Makefile").read_text()
MADE = {out for one in graph.stages() for out in one.outs}


@pytest.mark.parametrize(
    ("value", "points"), [(5.0, 0), (10.0, 0), (20.0, 5), (50.0, 20), (70.0, 20), (None, 0)], ids=str
)
def test_points_follow_from_the_figure(value: float | None, points: float) -> None:
    assert Line(SCALE, value).points == points


def test_a_scale_may_fall() -> None:
    falling = replace(SCALE, none=50, full=10)
    assert [Line(falling, value).points for value in (50, 40, 10, 0)] == [0, 5, 20, 20]


def test_every_figure_is_read_from_reports() -> None:
    cfg = params.load("scorecard", stage.Scorecard)
    found = scorecard.lines(cfg.lines, cfg.parts, MADE)
    page = scorecard.page(cfg.name, found, cfg.parts)
    for line in found.values():
        report = Path("reports") / line.scale.report
        text = report.read_text() if report.is_file() else ""
        if line.value is None:
            assert line.doubt or scorecard.figure(report, line.scale.key) is None
            assert f"| {line.scale.what} | {line.doubt or 'not measured'} |" in page
        else:
            stated = re.search(rf'(?<!\w)"?{line.scale.key.rpartition(".")[2]}"?: ([^,\n]+)', text)
            assert stated, line.scale.key
            assert float(stated[1]) == line.value
            assert f"| {line.scale.what} | {line.value:.4g}{f', {line.doubt}' if line.doubt else ''} |" in page
        sources = ", ".join(filter(None, (scorecard.evidence(line.scale.report, line.scale.key), line.source)))
        assert f"| {sources} | `{line.scale.command}` |" in page


def test_weights_are_those_of_the_deliverable_and_lines_add_up_to_them() -> None:
    cfg = params.load("scorecard", stage.Scorecard)
    assert [part.weight for part in cfg.parts.values()] == [25, 20, 20, 20, 15]
    scorecard.check(cfg.lines, cfg.parts)
    with pytest.raises(SystemExit, match=r"lines of speed have 19 points, its weight is 20"):
        scorecard.check({"one": replace(SCALE, points=19)}, PARTS)
    with pytest.raises(SystemExit, match=r"scorecard\.lines\.one: part is 'sped', none of speed"):
        scorecard.check({"one": replace(SCALE, part="sped")}, PARTS)
    with pytest.raises(SystemExit, match=r"scorecard\.lines\.one: none is full"):
        scorecard.check({"one": replace(SCALE, full=10)}, PARTS)


def test_the_command_behind_each_line_exists() -> None:
    stages = {one.script for one in graph.definitions()}
    targets = set(re.findall(r"^([a-z][\w-]*)(?:\s[^:]*)?:", MAKEFILE, re.MULTILINE)) | stages
    for line in params.load("scorecard", stage.Scorecard).lines.values():
        assert line.command == "no stage yet" or line.command.removeprefix("make ") in targets, line.command


def test_the_stage_writes_what_its_reports_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    metrics.write("reports/bench/bf16.json", {"c1": 20.0})
    (tmp_path / "reports/mof.yml").write_text("assessment: {class: 2}\n")
    openness = Scale("speed", "class", "mof.yml", "assessment.class", 4, 1, 6, "make card")
    lines = {"rate": replace(SCALE, points=10), "class": openness, "lost": replace(SCALE, key="c8", points=4)}
    monkeypatch.setattr(stage.params, "load", lambda *_: stage.Scorecard("caller", PARTS, lines))
    made = graph.Stage("bench@bf16", "", "", (), (), ("reports/bench/bf16.json", "reports/mof.yml"))
    monkeypatch.setattr(stage.graph, "stages", lambda: [made])
    stage.main()
    found = metrics.read("reports/scorecard.json")
    assert (found["total"], found["speed"], found["unmeasured"]) == (6.5, 6.5, 1)
    assert (found["line_rate"], found["line_class"], found["line_lost"]) == (2.5, 4, 0)
    text = Path("reports/scorecard.md").read_text()
    assert text.startswith("# Scorecard of caller\n\n**6 of 20 points.**")
    assert "## Speed: 6.5 of 20" in text
    assert "| class | 2 | 4 to 1 | 4.0 of 6 | `reports/mof.yml`: `assessment.class` | `make card` |" in text


def test_what_the_recipe_left_out_earns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = composed(["recipe.formats=[gptq]"])
    monkeypatch.setattr(graph.params, "tree", lambda *_: OmegaConf.create(settings))
    made = {out for one in graph.stages() for out in one.outs}
    quant = replace(SCALE, key="ratio", none=1, full=0.25, points=5)
    names = [f"{place}/{name}" for place in ("quantize", "benchmarks") for name in ("gptq", "gguf")]
    scales = {name: replace(quant, report=f"{name}.json") for name in names}
    monkeypatch.chdir(tmp_path)
    for scale in scales.values():
        metrics.write(f"reports/{scale.report}", {"ratio": 0.25})
    found = scorecard.lines(scales, PARTS, made)
    assert {name for name, line in found.items() if line.value is None} == {"quantize/gguf"}
    assert found["quantize/gguf"].points == 0
    assert "| not measured |" in scorecard.page("caller", found, PARTS)


def test_a_quant_that_is_not_released_earns_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    size = replace(SCALE, what="size", report="quantize/gguf.json", key="ratio", none=1, full=0.25)
    kept = replace(SCALE, what="kept", report="retention/gguf.json", key="exact_kept", none=0.9, full=1)
    scales = {"size": replace(size, points=15), "kept": replace(kept, points=5)}
    metrics.write("reports/quantize/gguf.json", {"ratio": 0.25})
    for withheld, points in (("", 20), ("kl 0.3 > 0.1", 0)):
        metrics.write(
            "reports/retention/gguf.json", {"exact_kept": 1.0, "released": not withheld, "withheld": withheld}
        )
        found = scorecard.lines(scales, PARTS, {f"reports/{scale.report}" for scale in scales.values()})
        assert scorecard.values(found, PARTS)["total"] == points
    assert {line.value for line in found.values()} == {None}
    assert scorecard.values(found, PARTS)["unmeasured"] == 0
    evidence = "`reports/quantize/gguf.json`: `ratio`, `reports/retention/gguf.json`: `withheld`"
    assert f"| size | not released: kl 0.3 > 0.1 | 1 to 0.25 | 0.0 of 15 | {evidence} |" in scorecard.page(
        "caller", found, PARTS
    )


def test_a_class_of_openness_counts_once_its_condition_is_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    scale = replace(SCALE, what="class", report="mof.yml", key="assessment.class", none=4, full=1)
    for assessment, points in (({"class": 1}, 20), ({"class": 0}, 0), ({"class": 2, "condition": "once public"}, 0)):
        Path("reports/mof.yml").write_text(yaml.safe_dump({"assessment": assessment}))
        found = scorecard.lines({"class": scale}, PARTS, {"reports/mof.yml"})
        assert scorecard.values(found, PARTS)["total"] == points, assessment
    evidence = "`reports/mof.yml`: `assessment.class`, `reports/mof.yml`: `assessment.condition`"
    told = f"| class | 2, on a condition, so not counted: once public | 4 to 1 | 0.0 of 20 | {evidence} |"
    assert told in scorecard.page("caller", found, PARTS)


def test_words_are_no_figure(tmp_path: Path) -> None:
    metrics.write(tmp_path / "gate.json", {"safety_value": "no stage of this recipe writes it"})
    assert scorecard.figure(tmp_path / "gate.json", "safety_value") is None
    assert scorecard.figure(tmp_path / "none.json", "safety_value") is None


def test_every_report_that_a_stage_makes_is_a_dep() -> None:
    (own,) = (one for one in graph.stages() if one.name == "scorecard")
    made = {out for one in graph.stages() for out in one.outs}
    for line in params.load("scorecard", stage.Scorecard).lines.values():
        path = f"reports/{line.report}"
        assert path not in made or any(path == dep or path.startswith(f"{dep}/") for dep in own.deps), path
