"""Pictures for the data page, as SVG text that takes the page's own text colour: the funnel as a Sankey, and histograms.

The funnel runs down the page, a row of text for every reason, so that any number of reasons can be read, on a phone too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

KEPT, LEFT, ASIDE, ADDED = "#3b82f6", "#94a3b8", "#10b981", "#f59e0b"
WIDTH = 500  # of the view box; text is 13 of its units high, 10 pixels on a phone
TRUNK, BROAD = 122, 112  # where the stream's left edge is, and how broad it is at its broadest
BEND, LABEL, LETTERS = 288, 295, 23  # where branches end and their words begin, and how many letters have room
LINE, GAP = 19, 26  # height of a branch's row; of the stream between two stages
SERIES = (KEPT, ASIDE, ADDED, "#a855f7", LEFT)


@dataclass(frozen=True)
class Step:
    """A stage of the funnel: rows that came in, and where those went that do not come out."""

    name: str
    seen: int
    kept: int
    left: tuple[tuple[str, int], ...]
    """(reason, rows) that were rejected."""
    aside: tuple[tuple[str, int], ...] = ()
    """(purpose, rows) that go on elsewhere: held out for tests, prompts for preferences."""


@dataclass(frozen=True)
class Branch:
    label: str
    rows: int
    colour: str


def funnel(steps: Sequence[Step]) -> str:
    """The stream of rows from the first stage down, one branch to the right for every stage and reason."""
    broadest = max((step.seen for step in steps), default=0) or 1
    parts: list[str] = []
    top = 10.0
    for place, step in enumerate(steps):
        following = steps[place + 1].seen if place + 1 < len(steps) else _passed_on(step)
        height = max(2, len(_branches(step))) * LINE
        parts += _stage(step, top, height, broadest, following)
        top += height + GAP
    if steps:
        parts += _end(_passed_on(steps[-1]), top, broadest)
        top += 2 * LINE
    return _svg(WIDTH, top + 4, "Rows from stage to stage, and why they left", parts)


def histogram(
    bins: Sequence[tuple[str, float]],
    marks: Sequence[tuple[float, str]] = (),
    colour: str = KEPT,
    title: str = "",
    width: int = 560,
) -> str:
    """Bars side by side, (label, value) each, five of them labelled; `marks` are lines at a share of the width, with words."""
    high = max((value for _, value in bins), default=0) or 1
    wide, floor = (width - 20) / max(len(bins), 1), 150
    parts = []
    for place, (label, value) in enumerate(bins):
        left, height = 10 + place * wide, 100 * value / high
        name = f"<title>{escape(label)}: {value:,.0f}</title>"
        box = f'x="{left + 1:.1f}" y="{floor - height:.1f}" width="{wide - 2:.1f}" height="{height:.1f}"'
        parts.append(f'<rect {box} rx="1.5" fill="{colour}">{name}</rect>')
        if place % max(1, len(bins) // 4) == 0 or place == len(bins) - 1:
            parts.append(_text(left + wide / 2, floor + 17, label, "middle", soft=True))
    for place, (share, words) in enumerate(marks):
        at = 10 + share * (width - 20)
        head = 14 + LINE * (place % 2)
        side = "end" if share > 0.5 else "start"
        parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{head - 9}" y2="{floor}" stroke="currentColor" stroke-dasharray="3 3"/>'
        )
        parts.append(_text(at + (-5 if side == "end" else 5), head, words, side))
    parts.append(f'<line x1="10" x2="{width - 10}" y1="{floor}" y2="{floor}" stroke="currentColor" opacity=".4"/>')
    return _svg(width, floor + 24, title, parts)


def _stage(step: Step, top: float, height: float, broadest: int, following: int) -> list[str]:
    """The stage's name, its bar, its branches, and the stream to the next stage."""
    enters, passes = step.seen * BROAD / broadest, _passed_on(step) * BROAD / broadest
    parts = [
        _text(TRUNK - 12, top + 13, step.name, "end", bold=True),
        _text(TRUNK - 12, top + 13 + LINE, f"{step.seen:,} in", "end", soft=True),
        _stream(top, top + height, enters, passes),
        _stream(top + height, top + height + GAP, passes, following * BROAD / broadest),
        f'<rect x="{TRUNK}" y="{top:.1f}" width="{max(enters, 1.5):.1f}" height="3" fill="{KEPT}"/>',
    ]
    edge = TRUNK + passes
    for row, branch in enumerate(_branches(step)):
        thick = max(branch.rows * BROAD / broadest, 1.5)
        parts += _branch(branch, edge + thick / 2, top + 2, top + row * LINE + 9, thick)
        edge += thick
    if added := following - _passed_on(step):
        sign = "+" if added > 0 else "−"
        words = f"{sign}{abs(added):,} {'added' if added > 0 else 'not passed on'}"
        parts.append(_text(LABEL, top + height + GAP / 2 + 3, words, "start", soft=True))
    return parts


def _branch(branch: Branch, left: float, top: float, level: float, thick: float) -> list[str]:
    """A ribbon from the stream to its words; one that is broader than its row is narrowed there."""
    end = min(thick, LINE - 4)
    upper, lower = left - thick / 2, left + thick / 2
    middle = (lower + BEND) / 2
    shape = (
        f"M{upper:.1f},{top:.1f} L{lower:.1f},{top:.1f} "
        f"C{lower:.1f},{level - end / 2:.1f} {middle:.1f},{level - end / 2:.1f} {BEND},{level - end / 2:.1f} "
        f"L{BEND},{level + end / 2:.1f} "
        f"C{middle:.1f},{level + end / 2:.1f} {upper:.1f},{level + end / 2:.1f} {upper:.1f},{top:.1f} Z"
    )
    return [
        f'<path d="{shape}" fill="{branch.colour}" fill-opacity=".55"/>',
        _text(LABEL, level + 4, f"{branch.rows:,} {shorten(branch.label, LETTERS)}", "start"),
    ]


def shorten(words: str, letters: int) -> str:
    return words if len(words) <= letters else words[: letters - 1] + "…"


def _stream(top: float, bottom: float, above: float, below: float) -> str:
    middle = (top + bottom) / 2
    shape = (
        f"M{TRUNK},{top:.1f} L{TRUNK + above:.1f},{top:.1f} C{TRUNK + above:.1f},{middle:.1f} "
        f"{TRUNK + below:.1f},{middle:.1f} {TRUNK + below:.1f},{bottom:.1f} L{TRUNK},{bottom:.1f} Z"
    )
    return f'<path d="{shape}" fill="{KEPT}" fill-opacity=".3"/>'


def _end(rows: int, top: float, broadest: int) -> list[str]:
    return [
        f'<rect x="{TRUNK}" y="{top:.1f}" width="{max(rows * BROAD / broadest, 1.5):.1f}" height="3" fill="{KEPT}"/>',
        _text(TRUNK - 12, top + 13, "trained on", "end", bold=True),
        _text(TRUNK, top + LINE + 1, f"{rows:,} rows", "start"),
    ]


def _branches(step: Step) -> list[Branch]:
    left = [Branch(reason.replace("_", " "), rows, LEFT) for reason, rows in step.left]
    return [*left, *(Branch(f"→ {purpose}", rows, ASIDE) for purpose, rows in step.aside)]


def _passed_on(step: Step) -> int:
    return step.kept - sum(rows for _, rows in step.aside)


def _text(x: float, y: float, words: str, anchor: str, *, bold: bool = False, soft: bool = False) -> str:
    style = ' font-weight="600"' if bold else ' opacity=".65"' if soft else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(words)}</text>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
    words = f'{head} font-size="13" font-family="system-ui, sans-serif" fill="currentColor">'
    return words + f"<title>{escape(title)}</title>" + "".join(parts) + "</svg>"
