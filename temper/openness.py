"""The Model Openness Framework (MOF): which of its 17 components a release has, under which licences, and the class it reaches.

White et al., The Model Openness Framework, arXiv:2403.13784 (2024): class III, Open Model, asks for the model and its documents;
class II, Open Tooling, also for the code around it and the data it is evaluated on; class I, Open Science, for everything, each
under an open licence. Where paper and practice differ, the rules are those that the Model Openness Tool publishes in its README
(https://github.com/lfai/model_openness_tool): a component's licence is its own, else that of its type, else that of the
distribution; open data licences count for every type; a research paper stands in for the technical report, and not the other way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

UNLICENSED = "unlicensed"
PAPER, REPORT = "Research paper", "Technical report"
CLASSES = {
    0: "Unclassified",
    1: "Class I - Open Science Model",
    2: "Class II - Open Tooling Model",
    3: "Class III - Open Model",
}
FRAMEWORK = {"name": "Model Openness Framework", "version": "1.0", "date": "2024-12-15"}
LICENCES = Path(__file__).parent / "open_licences.yaml"


@dataclass(frozen=True)
class Component:
    name: str
    type: str
    """code, data or document."""
    level: int
    """The class that asks for it; lower classes ask for all that higher ones do."""
    required: bool = True


COMPONENTS = (
    Component("Model architecture", "code", 3),
    Component("Model parameters (Final)", "data", 3),
    Component(REPORT, "document", 3),
    Component("Evaluation results", "document", 3),
    Component("Model card", "document", 3),
    Component("Data card", "document", 3),
    Component("Sample model outputs", "document", 3, required=False),
    Component("Training code", "code", 2),
    Component("Inference code", "code", 2),
    Component("Evaluation code", "code", 2),
    Component("Evaluation data", "data", 2),
    Component("Supporting libraries and tools", "code", 2, required=False),
    Component(PAPER, "document", 1),
    Component("Datasets", "data", 1),
    Component("Data preprocessing code", "code", 1),
    Component("Model parameters (Intermediate)", "data", 1),
    Component("Model metadata", "data", 1, required=False),
)


@dataclass(frozen=True)
class Standing:
    """How a component stands in a release."""

    component: Component
    included: bool
    licence: str | None
    """As it was resolved; None where it is not included or has none."""

    @property
    def open(self) -> bool:
        return self.licence is not None and is_open(self.licence)

    @property
    def gap(self) -> str:
        """What keeps it from counting; empty where it counts."""
        if self.open:
            return ""
        if not self.included:
            return "not released"
        return f"{self.licence} is not an open licence" if self.licence else "released without a licence that holds"


@dataclass(frozen=True)
class Assessment:
    reached: int
    """1 to 3, the lower the more open; 0 for none."""
    standings: tuple[Standing, ...]
    """Of all components, in the order of COMPONENTS."""

    @property
    def following(self) -> int | None:
        """The next class to reach; None after the last."""
        return {0: 3, 3: 2, 2: 1}.get(self.reached)

    @property
    def missing(self) -> tuple[Standing, ...]:
        """What the next class asks for and the release lacks."""
        return tuple(_lacking(self.standings, self.following)) if self.following else ()


def assess(release: Mapping[str, Any]) -> Assessment:
    """Of the section `release` of a MOF file."""
    listed = {one["name"]: one for one in release["components"]}
    standings = tuple(
        Standing(one, one.name in listed, _licence(one, listed, release.get("license") or {})) for one in COMPONENTS
    )
    reached = (level for level in (1, 2, 3) if not any(_lacking(standings, level)))
    return Assessment(next(reached, 0), standings)


def is_open(licence: str) -> bool:
    known = _licences()
    return any(licence in known[group] for group in ("approved", "open_data", "by_name"))


def is_type_appropriate(licence: str, type: str) -> bool:
    """Whether it is written for components of a type; the framework prefers such licences and takes other open ones."""
    return licence in _licences()["appropriate"][type] or (type == "data" and licence in _licences()["open_data"])


def spdx(licence: str) -> str:
    """A licence of the table by its SPDX id, which is how the tool knows it; any other as it is written."""
    known = _licences()
    ids = {one.lower(): one for group in ("approved", "open_data", "by_name") for one in known[group]}
    # The Hugging Face Hub's names for licences whose SPDX ids are others.
    ids |= {"odc-by": "ODC-By-1.0", "odbl": "ODbL-1.0", "pddl": "ODC-PDDL-1.0"}
    return ids.get(licence.lower(), licence)


def _licence(component: Component, listed: Mapping[str, Any], shared: Mapping[str, Any]) -> str | None:
    if component.name not in listed:
        return None
    own = listed[component.name].get("license")
    if own is not None:
        return own if own not in ("", UNLICENSED) else None
    names = ((shared.get(key) or {}).get("name") for key in (component.type, "distribution"))
    return next(filter(None, names), None)


def _lacking(standings: tuple[Standing, ...], level: int) -> Iterator[Standing]:
    """The components that a class asks for and that do not count."""
    by_name = {one.component.name: one for one in standings}
    for one in standings:
        wanted = one.component.required and one.component.level >= level
        stood_in = one.component.name == REPORT and by_name[PAPER].open
        if wanted and not one.open and not stood_in:
            yield one


@cache
def _licences() -> dict[str, Any]:
    return yaml.safe_load(LICENCES.read_text())
