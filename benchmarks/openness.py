"""The Model Openness Tool's rules, written from its README and its own files beside what temper.openness has, and files to judge.

A class is reached where as many of its components count as it asks for. `folder` is the tool's: mof.settings.yml,
mof-licenses.json and licenses.json.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from temper import openness
from temper.openness import COMPONENTS

Evaluator = Callable[[dict[str, Any]], int]
NAMES = [one.name for one in COMPONENTS]
LICENCES = ("Apache-2.0", "MIT", "CC-BY-4.0", "CDLA-Permissive-2.0", "OpenMDW-1.0", "ODC-By-1.0")
CLOSED = ("unlicensed", "", "CC-BY-NC-4.0", "llama3.1", "apache-2.0", "MIT AND CC-BY-4.0", "PDDL-1.0")
SHARED = ("distribution", "code", "data", "document")


def reference(folder: Path) -> Evaluator:
    """From the section `release` of a file to its class, 1 to 3, or 0 for none."""
    components = yaml.safe_load((folder / "mof.settings.yml").read_text())["components"]
    open_ids = set(open_by_list(folder))

    def counts(release: dict[str, Any], one: dict[str, Any]) -> bool:
        found = [listed for listed in release["components"] if listed["name"] == one["name"]]
        if not found:
            return False
        shared = release["license"]
        choices = [shared.get(one["content_type"], {}).get("name"), shared.get("distribution", {}).get("name")]
        own = found[0].get("license")
        return (own if own is not None else next((name for name in choices if name), None)) in open_ids

    def evaluate(release: dict[str, Any]) -> int:
        counted = {one["name"] for one in components if one["required"] and counts(release, one)}
        paper = "Research paper" in counted
        reached = 0
        for level in (3, 2, 1):
            asked = [one["name"] for one in components if one["required"] and one["class"] >= level]
            if paper:  # "If the paper is included, the technical report is optional"
                asked.remove("Technical report")
            if len(counted.intersection(asked)) < len(asked):
                break
            reached = level
        return reached

    return evaluate


def open_by_list(folder: Path) -> Iterator[str]:
    """Ids that the tool takes for open: of an id that is twice in its lists the first entry counts."""
    first: dict[str, Any] = {}
    for name in ("mof-licenses.json", "licenses.json"):
        for entry in json.loads((folder / name).read_text())["licenses"]:
            first.setdefault(entry["licenseId"], entry)
    yield from (name for name, entry in first.items() if entry.get("isOsiApproved") or entry.get("isFsfLibre"))
    # What its program names besides: open data licences, and OpenMDW.
    by = ["1.0", "2.0", "2.5", "2.5-AU", "3.0", "3.0-AT", "3.0-AU", "3.0-DE", "3.0-IGO", "3.0-NL", "3.0-US", "4.0"]
    share = ["1.0", "2.0", "2.0-UK", "2.1-JP", "2.5", "3.0", "3.0-AT", "4.0"]
    yield from (*(f"CC-BY-{version}" for version in by), *(f"CC-BY-SA-{version}" for version in share))
    yield from (
        "CC0-1.0",
        "CDLA-Permissive-1.0",
        "CDLA-Permissive-2.0",
        "CDLA-Sharing-1.0",
        "ODC-PDDL-1.0",
        "ODC-By-1.0",
    )
    yield from ("ODbL-1.0", "GFDL-1.3", "OGL-Canada-2.0", "OGL-UK-2.0", "OGL-UK-3.0", "OpenMDW-1.0")


def release(generator: np.random.Generator, level: int) -> dict[str, Any]:
    """The section of a file of about class `level` (0: of none): all that the class asks for, sometimes less or more, with licences
    of components, of their types and of all."""
    names = {one.name for one in COMPONENTS if level and one.level >= level}
    names ^= some(generator, NAMES, (0, 0, 1, 2))
    if generator.random() < 0.5:  # the paper in the place of the report
        names = names - {openness.REPORT} | {openness.PAPER}
    closed, inherits = some(generator, NAMES, (0, 0, 0, 1, 3)), some(generator, NAMES, (0, 2, 17))
    order = generator.permutation(sorted(names)).tolist()
    components = [
        {"name": name}
        | ({} if name in inherits else {"license": one(generator, CLOSED if name in closed else LICENCES)})
        for name in order
    ]
    shared = {key: {"name": one(generator, (*LICENCES, *LICENCES, *CLOSED, None)), "path": None} for key in SHARED}
    kept = some(generator, SHARED, (0, 1, 2, 4))
    licence = {key: value for key, value in shared.items() if key in kept}
    if generator.random() < 0.5:
        licence["distribution"] = {"name": "MIT", "path": None}
    return {"name": "a model", "producer": "", "license": licence, "components": components}


def one(generator: np.random.Generator, values: Any) -> Any:
    return values[int(generator.integers(len(values)))]


def some(generator: np.random.Generator, values: Any, sizes: tuple[int, ...]) -> set[str]:
    return set(generator.permutation(list(values))[: one(generator, sizes)].tolist())
