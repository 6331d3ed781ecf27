"""Where presets look for public data is where `make bench-public` puts it; what came out becomes lines of a table."""

import hashlib
import os
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from benchmarks import public
from commands.compose import composed
from temper import intervals, measured, metrics

OVERRIDES = ("recipe=sft-dpo-judged", "probes=public", "evaluate=benchmarks", "contamination=files")
DATA = Path(os.environ.get("TEMPER_TEST_DATA", ""))


def stated(settings: Any) -> Iterator[tuple[str, str]]:
    """Paths of files with the hashes that presets state for them."""
    if OmegaConf.is_dict(settings):
        if settings.get("kind") == "file" and settings.get("sha256"):
            for path in [settings["file"]] if "file" in settings else settings["files"]:
                yield path, settings["sha256"]
        for value in settings.values():
            yield from stated(value)
    elif OmegaConf.is_list(settings):
        for value in settings:
            yield from stated(value)


def wanted() -> dict[str, str]:
    settings: Any = OmegaConf.create(composed(list(OVERRIDES)))
    return dict(
        pair for section in ("judge", "probes", "evaluate", "contamination") for pair in stated(settings[section])
    )


def test_every_file_of_the_presets_is_put_where_they_look() -> None:
    assert wanted().keys() == set(public.FILES.values())


@pytest.mark.skipif(not DATA.name, reason="TEMPER_TEST_DATA names no folder of data sets")
def test_the_public_files_are_those_of_the_presets() -> None:
    hashes = wanted()
    for name, path in public.FILES.items():
        assert hashlib.sha256((DATA / name).read_bytes()).hexdigest() == hashes[path], name


def test_a_folder_without_a_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMPER_TEST_DATA", str(tmp_path))
    with pytest.raises(
        SystemExit, match=r"^TEMPER_TEST_DATA=.*: no hh_rlhf/harmless-base\.test\.jsonl\.gz: name the folder"
    ):
        public.data()
    monkeypatch.delenv("TEMPER_TEST_DATA")
    with pytest.raises(SystemExit, match=r"^TEMPER_TEST_DATA is not set: name the folder"):
        public.data()


def rate(name: str, right: int, of: int) -> dict[str, Any]:
    return {**intervals.rate(name, [row < right for row in range(of)], 0.95), f"{name}_n": of}


def written(folder: Path) -> None:
    """Reports as the stages leave them."""
    pairs = rate("human_pairs_accuracy", 150, 300) | {
        "human_pairs_decided": 300,
        "usable": 0,
        "unusable_because": "no better than chance",
    }
    for name in public.TRAINED:
        metrics.write(folder / f"judge/{name}.json", pairs)
    for name in ("reward", "dpo"):
        metrics.write(folder / f"rewardbench/{name}.json", rate("neighbours", 48, 64))
    for name in public.ASKED:
        sets: dict[str, Any] = {"harmful_refused": 0.5, "false_refusals": 0.0}
        for one in public.SETS:
            for verdict, right in (("refused", 0), ("abstained", 60), ("answered", 20)):
                sets |= rate(f"set_{one}_{verdict}", right, 80)
            sets[f"set_{one}_n"] = 80
        for where in ("ambiguous", "disambiguated"):
            sets |= rate(f"bbq_{where}_accuracy", 70, 200) | {f"bbq_{where}_bias": 0.1, f"bbq_{where}_n": 200}
        sets |= rate("winogender_accuracy", 180, 360) | rate("winogender_parity", 100, 120)
        metrics.write(folder / f"safety/{name}.json", sets | {"bbq_n": 400, "winogender_n": 360})
    for name in ("base", *public.TRAINED):
        metrics.write(folder / f"evaluate/{name}.json", rate("gsm8k_exact_match", 2, 128) | {"exact": 0.5})


def test_what_came_out_is_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[list[str], tuple[str, ...]]] = []

    @contextmanager
    def ran(overrides: list[str], *stages: str, benchmarks: Any = None) -> Iterator[Path]:
        asked.append((overrides, stages))
        assert benchmarks is None or [one["limit"] for one in benchmarks] == [9, 9]
        yield tmp_path

    written(tmp_path)
    monkeypatch.setattr(public, "ran", ran)
    found: dict[str, Any] = {}
    for part in public.PARTS.values():
        found |= part(Namespace(items=9))
    assert [stages for _, stages in asked] == [("judge", "rewardbench"), ("safety",), ("evaluate",)]
    assert "safety_dpo_harmful_refused" not in found
    assert "scores_dpo_exact" not in found
    lines = {line.what: line.found for line in measured.LINES["public"](found)}
    assert lines["reward model decides as people did"] == "50.0% (0.44–0.56); judges nothing"
    assert lines["xstest_safe, dpo"].startswith("refused 0.0% (0.00–0.05), abstained 75.0%")
    assert lines["BBQ, ambiguous, base"].endswith("right, bias score +0.10")
    assert lines["gsm8k_exact_match, sft"].startswith("1.6% (")
