"""reports/mof.yml: what this release makes public, in the format of the Model Openness Tool, and the class that it reaches.

The format is the tool's mof_schema.json; the section `assessment` is ours, which the tool passes over.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from temper import licences, openness
from temper.licences import PERMITTED
from temper.openness import UNLICENSED, Assessment, Component, Standing
from temper.recipe import Recipe

# What the schema takes, as far as a model that generates text may be of it.
ALLOWED = {
    "type": ("", "language", "code", "multimodal", "other"),
    "architecture": (
        "",
        "transformer",
        "transformer decoder",
        "transformer encoder-decoder",
        "decoder",
        "hybrid",
        "other",
    ),
    "treatment": ("pre-trained", "instruct fine-tuned", "chat fine-tuned"),
}
# How the text of a licence begins, spaces aside.
TITLES = {
    "apache license version 2.0": "Apache-2.0",
    "mit license": "MIT",
    "isc license": "ISC",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "mozilla public license version 2.0": "MPL-2.0",
    "gnu general public license version 3": "GPL-3.0-only",
    "gnu affero general public license version 3": "AGPL-3.0-only",
}
MADE = ("data", "models", "reports")  # folders whose files a run makes
SCOPE = "what was made of {base} here; that base model has a class of its own"
UNPUBLISHED = "this class is reached once this repository, and what `dvc push` keeps, is public: then set card.openness.repository"


@dataclass
class Place:
    where: list[str] | None
    """Paths in the repository, or addresses; none where the component is not released, null for what the recipe makes."""
    licence: str | None
    """`code`, `document`, `data`, `evaluation` or `model`, or an SPDX id; null for none."""


@dataclass
class Stated:
    """Licences by SPDX id; null where they follow from what the repository has."""

    code: str | None
    document: str | None
    data: str | None
    evaluation: str | None


@dataclass
class Openness:
    repository: str | None
    """Address where all of it is public; null: nowhere yet."""
    producer: str
    contact: str
    version: str
    date: str | None
    type: str
    architecture: str
    treatment: str
    licences: Stated
    components: dict[str, Place]
    """All of openness.COMPONENTS, by `key`."""


@dataclass(frozen=True)
class Grant:
    """A licence that components are released under, or none and why."""

    licence: str | None
    note: str = ""


def document(cfg: Any, used: Mapping[str, Sequence[str]], recipe: Recipe, root: Path = Path()) -> dict[str, Any]:
    """The file, of the section `card`; `used` has who brings each licence, as the data card reads it."""
    check(cfg.openness, root)
    grants = granted(cfg, used, root)
    found = released(cfg.openness, grants, recipe)
    section = {
        "name": cfg.name,
        "version": cfg.openness.version,
        **({"date": cfg.openness.date} if cfg.openness.date else {}),
        "license": {type: _shared(grants[type]) for type in ("code", "document")},
        "type": cfg.openness.type,
        "architecture": cfg.openness.architecture,
        "treatment": cfg.openness.treatment,
        "origin": cfg.base,
        "producer": cfg.openness.producer,
        "contact": cfg.openness.contact,
        **({"repository": cfg.openness.repository} if cfg.openness.repository else {}),
        "components": found,
    }
    notes = {one.name: _grant(cfg.openness.components[key(one)], grants).note for one in openness.COMPONENTS}
    assessed = openness.assess(section)
    return {
        "framework": openness.FRAMEWORK,
        "release": section,
        "assessment": {
            "scope": SCOPE.format(base=cfg.base),
            **assessment(assessed, found, notes, cfg.openness.repository),
        },
    }


def text(document: Mapping[str, Any]) -> str:
    """The file's text."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def key(component: Component) -> str:
    """A component as conf/card names it: `model_parameters_final`."""
    return re.sub(r"\W+", "_", component.name.lower()).strip("_")


def check(settings: Openness, root: Path) -> None:
    """Exit where conf/card names what is not there, or what the format does not take."""
    keys = {key(one) for one in openness.COMPONENTS}
    for name in sorted(keys ^ settings.components.keys()):
        what = "is missing" if name in keys else f"is no component: choose of {', '.join(sorted(keys))}"
        raise SystemExit(f"card.openness.components: {name} {what}: correct conf/card and run `make params`")
    for name, allowed in ALLOWED.items():
        if getattr(settings, name) not in allowed:
            raise SystemExit(f"card.openness.{name} is '{getattr(settings, name)}': choose of {', '.join(allowed[1:])}")
    if settings.date and not _is_date(settings.date):
        raise SystemExit(f"card.openness.date is '{settings.date}': write it as 2026-01-31, or null")
    for name, place in settings.components.items():
        for path in place.where or []:
            if "://" not in path and Path(path).parts[0] not in MADE and not (root / path).exists():
                raise SystemExit(
                    f"card.openness.components.{name}: no {path} here: correct conf/card, [] if not released"
                )


def granted(cfg: Any, used: Mapping[str, Sequence[str]], root: Path) -> dict[str, Grant]:
    """The licences that components may name, by that name."""
    stated, base = cfg.openness.licences, f"{cfg.base} (base model)"
    of_rows = {licence: users for licence, users in used.items() if any(user != base for user in users)}
    of_passages = {str(source.get("licence") or ""): [source["id"]] for source in cfg.passages}
    code = Grant(stated.code) if stated.code else of_file(root / "LICENSE")
    return {
        "code": code,
        "document": Grant(stated.document) if stated.document else code,
        "data": permitted(stated.data, of_rows) if stated.data else joined(list(of_rows)),
        "evaluation": (
            permitted(stated.evaluation, of_rows | of_passages)
            if stated.evaluation
            else joined([*of_rows, *of_passages])
        ),
        "model": permitted(cfg.licence, used),
    }


def permitted(licence: str, used: Mapping[str, Sequence[str]]) -> Grant:
    """`licence`, where those of what it is made from permit a release under it."""
    verdict = licences.verdict(used, licence)
    if verdict.outcome == PERMITTED:
        return Grant(_spdx(licence))
    return Grant(None, f"a release under {verdict.release} is {verdict.outcome}: {verdict.reason}")


def joined(parts: Sequence[str]) -> Grant:
    """The one licence of `parts`; of several their expression, which is no open licence of the whole."""
    if not parts or "" in parts:
        return Grant(None, "not every source states a licence: state it in conf/data")
    expression = licences.together(map(_spdx, parts))
    note = "several licences: the tool takes one; state it in card.openness.licences where you may release all of it under it"
    return Grant(expression, note if " AND " in expression or " OR " in expression else "")


def of_file(path: Path) -> Grant:
    """The licence whose text a file has."""
    if not path.is_file():
        return Grant(None, f"there is no {path.name}")
    text = " ".join(path.read_text(encoding="utf-8").lower().split())
    for title, licence in TITLES.items():
        if text.startswith(title):
            return Grant(licence)
    raise SystemExit(
        f"{path}: its licence is not known by its title: state it in card.openness.licences.code (conf/card)"
    )


def released(settings: Openness, grants: Mapping[str, Grant], recipe: Recipe) -> list[dict[str, str]]:
    """The components that the release has, as the format lists them."""
    places = [(one, settings.components[key(one)]) for one in openness.COMPONENTS]
    return [_entry(one, place, where, grants) for one, place in places if (where := _where(one, place, recipe))]


def _entry(component: Component, place: Place, where: Sequence[str], grants: Mapping[str, Grant]) -> dict[str, str]:
    licence = _grant(place, grants).licence
    text = {"license_path": "LICENSE"} if licence and place.licence in ("code", "document") else {}
    return {"name": component.name, "license": licence or UNLICENSED, **text, "component_path": ", ".join(where)}


def assessment(
    found: Assessment, entries: Sequence[Mapping[str, str]], notes: Mapping[str, str], repository: str | None
) -> dict[str, Any]:
    """The class, what is missing for the next one, and how each of the 17 components stands."""
    paths = {one["name"]: one["component_path"] for one in entries}
    described = {
        "class": found.reached,
        "label": openness.CLASSES[found.reached],
        **({} if repository or not found.reached else {"condition": UNPUBLISHED}),
        "next": openness.CLASSES[found.following] if found.following else None,
        "missing": [{"name": one.component.name, "reason": _reason(one, notes)} for one in found.missing],
    }
    return described | {"components": [_row(one, paths, notes) for one in found.standings]}


def _row(standing: Standing, paths: Mapping[str, str], notes: Mapping[str, str]) -> dict[str, Any]:
    component, reason = standing.component, _reason(standing, notes)
    if standing.open and not openness.is_type_appropriate(str(standing.licence), component.type):
        reason = f"open; the framework prefers a licence for {component.type}"
    return {
        "name": component.name,
        "class": component.level,
        "required": component.required,
        "released": standing.included,
        "where": paths.get(component.name),
        "license": standing.licence,
        "open": standing.open,
        **({"note": reason} if reason else {}),
    }


def _reason(standing: Standing, notes: Mapping[str, str]) -> str:
    """Why a component does not count; empty where it does."""
    note = notes[standing.component.name] if standing.included and not standing.open else ""
    return ": ".join(filter(None, (standing.gap, note)))


def _where(component: Component, place: Place, recipe: Recipe) -> list[str]:
    return place.where if place.where is not None else list(_made(component, recipe))


def _made(component: Component, recipe: Recipe) -> Iterator[str]:
    """What the recipe makes of a component."""
    if component.name == "Training code":
        yield from (f"scripts/{stage}.py" for stage in recipe.stages())
    if component.name == "Model parameters (Final)":
        yield from (f"models/{model}" for model in (recipe.release, *recipe.formats))
    if component.name == "Model parameters (Intermediate)":
        yield from (f"models/{model}" for model in recipe.chain()[1:-1])


def _grant(place: Place, grants: Mapping[str, Grant]) -> Grant:
    if place.licence is None:
        return Grant(None, "conf/card states none")
    return grants.get(place.licence) or Grant(_spdx(place.licence))


def _shared(grant: Grant) -> dict[str, str | None]:
    return {"name": grant.licence, "path": "LICENSE" if grant.licence else None}


def _spdx(licence: str) -> str:
    """One licence by its SPDX id, however it is spelt; an expression as it is."""
    exact = openness.spdx(licence)
    if openness.is_open(exact) or re.search(r"\s(AND|OR)\s", licence):
        return exact
    return openness.spdx(licences.identified(licence))


def _is_date(text: str) -> bool:
    try:
        return bool(date.fromisoformat(text)) and len(text) == 10
    except ValueError:
        return False
