"""Pictures for the report, as SVG text that takes the page's own text colour and so follows its light or dark mode."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # replaced by the page's own colour
SERIES = ("#94a3b8", "#3b82f6", "#10b981", "#f59e0b", "#a855f7", "#ef4444", "#14b8a6", "#ec4899")
STYLES = ("-", "--", "-.")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
NARROW, WIDE = 4.9, 7.2  # inches; of a narrow picture a phone shows letters of 9 points large enough to read


@dataclass
class Picture:
    """A figure while it is drawn; `svg` once it is done."""

    axes: Sequence[Axes]
    svg: str = ""


@dataclass(frozen=True)
class Point:
    """Of a scatter: `value` with its interval is up, a share in 0..1."""

    name: str
    x: float
    value: tuple[float, float, float]
    is_released: bool = True


def scores(variants: Mapping[str, Mapping[str, tuple[float, float, float]]], width: float = NARROW) -> str:
    """Grouped bars with interval whiskers: variant → measure → (value, low, high), shares in 0..1."""
    measures = list(next(iter(variants.values())))
    thick = 0.8 / len(variants)
    with _picture(width, 3.0) as picture:
        (axes,) = picture.axes
        for index, (variant, values) in enumerate(variants.items()):
            places = [place + (index - (len(variants) - 1) / 2) * thick for place in range(len(measures))]
            heights = [values[measure][0] * 100 for measure in measures]
            below = [(values[measure][0] - values[measure][1]) * 100 for measure in measures]
            above = [(values[measure][2] - values[measure][0]) * 100 for measure in measures]
            whiskers: dict[str, Any] = {
                "yerr": [below, above],
                "capsize": 3,
                "ecolor": INK,
                "error_kw": {"linewidth": 1},
            }
            axes.bar(places, heights, thick * 0.92, label=variant, color=SERIES[index % len(SERIES)], **whiskers)
        axes.set_xticks(range(len(measures)), [fill(measure, 18 if width > NARROW else 12) for measure in measures])
        axes.set_ylim(0, 100)
        axes.set_ylabel("% of rows")
        _legend(axes)
    return picture.svg


def curve(rows: Sequence[Mapping[str, str]]) -> str:
    """Of one run: rows of reports/plots/<stage>.csv, columns step, loss and, where there is one, eval_loss."""
    with _picture(4.2, 2.4) as picture:
        (axes,) = picture.axes
        for column, colour, style in (("loss", SERIES[1], "-"), ("eval_loss", SERIES[3], "o-")):
            points = [(int(row["step"]), float(row[column])) for row in rows if row.get(column)]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=column, linewidth=1.5, markersize=4)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0)
        _legend(axes)
    return picture.svg


def forest(rows: Sequence[tuple[str, float, float, float, str]], label: str) -> str:
    """Differences with their intervals, (name, value, low, high, colour) from the top down, and a line at zero."""
    with _picture(NARROW, 0.3 * len(rows) + 0.8) as picture:
        (axes,) = picture.axes
        for place, (_, value, low, high, colour) in enumerate(reversed(rows)):
            axes.plot([low, high], [place, place], color=colour, linewidth=2.2, solid_capstyle="round")
            axes.plot([value], [place], "o", color=colour, markersize=6)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xlabel(label)
    return picture.svg


def scatter(points: Sequence[Point], x: str, y: str) -> str:
    """Points with their names and the intervals of what is up; hollow ones are not released."""
    with _picture(4.2, 2.8) as picture:
        (axes,) = picture.axes
        for number, point in enumerate(points):
            value, low, high = (100 * part for part in point.value)
            colour = SERIES[(number + 1) % len(SERIES)]
            face = colour if point.is_released else "none"
            style: dict[str, Any] = {
                "color": colour,
                "markerfacecolor": face,
                "markersize": 8,
                "capsize": 3,
                "elinewidth": 1,
            }
            marker = MARKERS[number % len(MARKERS)]
            axes.errorbar(
                [point.x], [value], yerr=[[value - low], [high - value]], fmt=marker, label=point.name, **style
            )
        axes.set_xlim(0, 1.15 * max(point.x for point in points))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        axes.margins(y=0.15)
        _legend(axes)
    return picture.svg


def spans(values: Mapping[str, float], label: str) -> str:
    """Horizontal bars with their values, the longest first: name → figure."""
    ordered = sorted(values.items(), key=lambda pair: pair[1])
    with _picture(NARROW, 0.26 * len(ordered) + 0.7) as picture:
        (axes,) = picture.axes
        drawn = axes.barh([name for name, _ in ordered], [value for _, value in ordered], 0.7, color=SERIES[1])
        axes.bar_label(drawn, fmt=" %.3g", color=INK, fontsize=9)
        axes.set_xlabel(label)
        axes.margins(x=0.12)
    return picture.svg


def funnel(steps: Sequence[tuple[str, int, int]]) -> str:
    """Horizontal bars from the first data stage down: (stage, rows kept, rows rejected)."""
    with _picture(NARROW, 0.42 * len(steps) + 0.7) as picture:
        (axes,) = picture.axes
        names = [name for name, _, _ in steps][::-1]
        kept = [count for _, count, _ in steps][::-1]
        rejected = [count for _, _, count in steps][::-1]
        axes.barh(names, kept, color=SERIES[1], label="kept")
        axes.barh(names, rejected, left=kept, color=SERIES[0], label="rejected")
        for row, (inside, outside) in enumerate(zip(kept, rejected, strict=True)):
            label = f" {inside:,}" + (f"  (−{outside:,})" if outside else "")
            axes.text(inside + outside, row, label, va="center", color=INK, fontsize=9)
        axes.set_xlim(0, max(a + b for a, b in zip(kept, rejected, strict=True)) * 1.3)
        _legend(axes)
    return picture.svg


def bars(values: Mapping[str, float], label: str) -> str:
    """Plain bars with their values: name → figure."""
    with _picture(NARROW, 2.4) as picture:
        (axes,) = picture.axes
        drawn = axes.bar(list(values), list(values.values()), 0.5, color=SERIES[2])
        axes.bar_label(drawn, fmt="%.0f", color=INK, fontsize=9)
        axes.set_ylabel(label)
        axes.margins(y=0.15)
    return picture.svg


def lines(series: Mapping[str, Mapping[str, float]], bands: Mapping[str, float], label: str) -> str:
    """A line a series over the same places in their order, {series: {place: value}}, and dashed ones at `bands` by their names."""
    with _picture(WIDE, 2.8) as picture:
        (axes,) = picture.axes
        for number, (name, points) in enumerate(series.items()):
            style, marker = STYLES[number // len(SERIES) % len(STYLES)], "o" if len(points) > 1 else "D"
            colour = SERIES[number % len(SERIES)]
            axes.plot(list(points), list(points.values()), style, marker=marker, color=colour, label=name, markersize=4)
        for name, height in bands.items():
            axes.axhline(height, linestyle=":", linewidth=1, color=INK)
            axes.annotate(
                f" {name}", (1, height), xycoords=("axes fraction", "data"), va="center", fontsize=8, color=INK
            )
        axes.set_ylim(bottom=0)
        axes.set_ylabel(label)
        axes.tick_params(axis="x", labelrotation=20)
        _legend(axes)
    return picture.svg


def histograms(samples: Mapping[str, Sequence[float]], label: str) -> str:
    """Shares of several samples over the same bins; what is beyond the 99th percentile of all counts into the last one."""
    pooled = np.concatenate([np.asarray(one, dtype=float) for one in samples.values()])
    edges = np.linspace(pooled.min(), max(np.quantile(pooled, 0.99), pooled.min() + 1e-9), 31)
    with _picture(WIDE, 2.4) as picture:
        (axes,) = picture.axes
        for number, (name, values) in enumerate(samples.items()):
            counts, _ = np.histogram(np.clip(values, None, edges[-1]), edges)
            shares = counts / max(len(values), 1) * 100
            axes.stairs(shares, edges, color=SERIES[number % len(SERIES)], label=name, fill=True, alpha=0.25)
            axes.stairs(shares, edges, color=SERIES[number % len(SERIES)], linewidth=1.2)
        axes.set_xlabel(label)
        axes.set_ylabel("% of rows")
        _legend(axes)
    return picture.svg


def stacked(counts: Mapping[str, Mapping[str, int]], label: str) -> str:
    """Bars of what adds up, {kind: {place: count}}, every kind with the same places."""
    with _picture(WIDE, 2.4) as picture:
        (axes,) = picture.axes
        places = list(next(iter(counts.values())))
        below = [0] * len(places)
        for number, (name, of_kind) in enumerate(counts.items()):
            heights = [of_kind[place] for place in places]
            axes.bar(range(len(places)), heights, 0.8, bottom=below, label=name, color=SERIES[number % len(SERIES)])
            below = [lower + height for lower, height in zip(below, heights, strict=True)]
        shown = range(0, len(places), max(1, len(places) // 8))
        axes.set_xticks(list(shown), [places[number] for number in shown])
        axes.set_ylabel(label)
        _legend(axes)
    return picture.svg


@contextmanager
def _picture(width: float, height: float) -> Iterator[Picture]:
    """A figure in inches whose text takes the page's colour; the SVG is a function of what is drawn, without a date."""
    settings: Any = {"svg.hashsalt": "temper", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with rc_context(settings | dict.fromkeys(inked, INK)):
        figure = Figure(figsize=(width, height), layout="constrained")
        picture = Picture([figure.add_subplot()])
        for axes in picture.axes:
            axes.spines[["top", "right"]].set_visible(False)
        yield picture
        target = StringIO()
        figure.savefig(target, format="svg", metadata={"Date": None}, transparent=True)
    body = target.getvalue()
    picture.svg = body[body.index("<svg") :].replace(INK, "currentColor")


def _legend(axes: Axes) -> None:
    """Above the axes, where it covers nothing that is drawn."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "ncols": 4}
    axes.legend(frameon=False, labelcolor=INK, fontsize=8, columnspacing=1.2, **place)
