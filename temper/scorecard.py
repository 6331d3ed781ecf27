"""The scorecard: the deliverable in points, each line from one figure of reports/ by the scale that conf/scorecard gives it."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPORTS = Path("reports")
QUANTS = ("quantize", "retention")  # folders of reports/ with a file a quant
CLASS, CONDITION = "assessment.class", "assessment.condition"  # of reports/mof.yml; class 0 is none
APART = "benchmarks/"  # of reports/, what `make bench-…` and `make verify` write, which no stage does


@dataclass
class Part:
    title: str
    weight: int


@dataclass
class Scale:
    """How one figure makes points: none at `none`, all at `full`, in proportion in between."""

    part: str
    what: str
    report: str
    """Below reports/."""
    key: str
    """With dots where it is nested."""
    none: float
    full: float
    points: int
    command: str
    """That makes the figure."""


@dataclass(frozen=True)
class Line:
    scale: Scale
    value: float | None
    """None where it was not measured, or is of what is not there."""
    doubt: str = ""
    """Why a measured figure does not count."""
    source: str = ""
    """Evidence of the doubt, where it is not the figure's."""

    @property
    def points(self) -> float:
        """What is not measured has none, nor what does not count."""
        if self.value is None or self.doubt:
            return 0.0
        reached = (self.value - self.scale.none) / (self.scale.full - self.scale.none)
        return self.scale.points * min(1.0, max(0.0, reached))


def lines(scales: Mapping[str, Scale], parts: Mapping[str, Part], made: Collection[str]) -> dict[str, Line]:
    """Every line with its figure; exits where points do not add up to the parts' weights.

    A report that is none of `made`, the outs of this recipe's stages, is left over from another: its figure is not of this release.
    """
    check(scales, parts)
    own = {name for name, scale in scales.items() if is_own(scale.report, made)}
    return {name: counted(scale) if name in own else Line(scale, None) for name, scale in scales.items()}


def counted(scale: Scale) -> Line:
    """A quant's figure counts where the quant is released, a class of openness where one is reached and no condition stands."""
    value = figure(REPORTS / scale.report, scale.key)
    folder, _, file = scale.report.rpartition("/")
    if folder in QUANTS and (why := entry(REPORTS / "retention" / file, "withheld")):
        return Line(scale, None, f"not released: {why}", evidence(f"retention/{file}", "withheld"))
    if scale.key == CLASS and value == 0:
        return Line(scale, None, "no class is reached")
    if scale.key == CLASS and (why := entry(REPORTS / scale.report, CONDITION)):
        return Line(scale, value, f"on a condition, so not counted: {why}", evidence(scale.report, CONDITION))
    return Line(scale, value)


def is_own(report: str, made: Collection[str]) -> bool:
    return report.startswith(APART) or str(REPORTS / report) in made


def check(scales: Mapping[str, Scale], parts: Mapping[str, Part]) -> None:
    for name, scale in scales.items():
        if scale.none == scale.full or scale.part not in parts:
            fault = f"part is '{scale.part}', none of {', '.join(parts)}" if scale.part not in parts else "none is full"
            raise SystemExit(f"scorecard.lines.{name}: {fault}: correct conf/scorecard")
    for name, part in parts.items():
        found = sum(scale.points for scale in scales.values() if scale.part == name)
        if found != part.weight:
            raise SystemExit(
                f"scorecard: lines of {name} have {found} points, its weight is {part.weight}: make them equal in conf/scorecard"
            )


def figure(path: Path, key: str) -> float | None:
    """A number of a JSON or YAML file, None where there is no such file or no such number."""
    found = entry(path, key)
    # A check of the gate that was skipped has words for its value.
    return float(found) if isinstance(found, int | float) else None


def entry(path: Path, key: str) -> Any:
    """What a JSON or YAML file has at `key`, None where there is no such file or nothing there."""
    found: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader) if path.is_file() else None
    for step in key.split("."):
        found = found.get(step) if isinstance(found, dict) else None
    return found


def evidence(report: str, key: str) -> str:
    return f"`reports/{report}`: `{key}`"


def values(found: Mapping[str, Line], parts: Iterable[str]) -> dict[str, float | int]:
    """Points by line and part, and in all."""
    by_part = {part: sum(line.points for line in found.values() if line.scale.part == part) for part in parts}
    by_line = {f"line_{name}": line.points for name, line in found.items()}
    unmeasured = sum(line.value is None and not line.doubt for line in found.values())
    return {"total": sum(by_part.values()), "unmeasured": unmeasured, **by_part, **by_line}


def page(name: str, found: Mapping[str, Line], parts: Mapping[str, Part]) -> str:
    """reports/scorecard.md."""
    made = values(found, parts)
    head = [
        f"# Scorecard of {name}",
        "",
        f"**{made['total']:.0f} of {sum(part.weight for part in parts.values())} points.** "
        "Each line is one figure of `reports/`: no points at the first end of its scale, all at the second, in proportion "
        "in between; none where it was not measured, is of a quant that is not released, or stands under a condition. Scales "
        "and their reasons are in `conf/scorecard`.",
    ]
    return "\n".join([*head, *(line for key, part in parts.items() for line in section(key, part, found, made))]) + "\n"


def section(key: str, part: Part, found: Mapping[str, Line], made: Mapping[str, float | int]) -> list[str]:
    return [
        "",
        f"## {part.title}: {made[key]:.1f} of {part.weight}",
        "",
        "| what | figure | scale | points | evidence | command |",
        "|---|---|---|---|---|---|",
        *(row(line) for line in found.values() if line.scale.part == key),
    ]


def row(line: Line) -> str:
    scale = line.scale
    value = "" if line.value is None else f"{line.value:.4g}"
    found = ", ".join(filter(None, (value, line.doubt))) or "not measured"
    shown = ", ".join(filter(None, (evidence(scale.report, scale.key), line.source)))
    cells = (scale.what, found, f"{scale.none:g} to {scale.full:g}", f"{line.points:.1f} of {scale.points}", shown)
    return f"| {' | '.join(cells)} | `{scale.command}` |"
