"""Print and plot the experiments side by side, from `dvc exp show`: what each changed, and what came out."""

import csv
import io
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from temper import figures

# Of the released model, which a recipe names.
MEASURES = {
    "exact": "reports/evaluate/{release}.json:exact",
    "call exact": "reports/evaluate/{release}.json:call_exact",
    "null exact": "reports/evaluate/{release}.json:null_exact",
    "sft loss": "reports/training/sft.json:eval_loss",
}
INTERVAL = ("reports/evaluate/{release}.json:exact_low", "reports/evaluate/{release}.json:exact_high")
Row = dict[str, str]

WIDTH = 140  # of tables that go to a file or a pipe


def main() -> None:
    rows = experiments()
    changed = varied(rows)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    table = Table("experiment", *changed, *MEASURES, box=None)
    for row in rows:
        table.add_row(*line(row, changed))
    console.print(table)
    Path("reports/experiments.md").write_text(markdown(rows, changed))
    Path("reports/experiments.svg").write_text(plot(rows, changed))
    console.print("reports/experiments.md, reports/experiments.svg")


def experiments() -> list[Row]:
    """The workspace and every experiment that has results, as columns of `dvc exp show --csv`."""
    command = [sys.executable, "-m", "dvc", "exp", "show", "--csv"]
    shown = subprocess.run(command, capture_output=True, text=True, check=False)
    if shown.returncode:
        raise SystemExit(f"dvc exp show: {shown.stderr.strip().splitlines()[-1]}")
    rows = [row for row in csv.DictReader(io.StringIO(shown.stdout)) if _value(row, MEASURES["exact"])]
    if not rows:
        raise SystemExit("no experiment has results yet: run `dvc exp run -S gate=report -S dpo.beta=0.2` first")
    return rows


def varied(rows: list[Row]) -> list[str]:
    """The parameters that tell the rows apart, one of each set that does so in the same way (base.name follows model.name)."""
    names = sorted(filter(_is_param, rows[0]), key=lambda name: (not name.startswith("model."), name))
    chosen: dict[tuple[int, ...], str] = {}
    for name in names:
        values = [row[name] for row in rows]
        if len(set(values)) > 1:
            chosen.setdefault(tuple(map(values.index, values)), name)
    return sorted(chosen.values())


def line(row: Row, changed: list[str]) -> list[str]:
    name = row["Experiment"] or row["rev"]
    figures = [_value(row, column) for column in MEASURES.values()]
    return [name, *(row[key] for key in changed), *(f"{float(figure):.3f}" if figure else "" for figure in figures)]


def markdown(rows: list[Row], changed: list[str]) -> str:
    head = ["experiment", *changed, *MEASURES]
    lines = [head, ["---"] * len(head), *(line(row, changed) for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def plot(rows: list[Row], changed: list[str]) -> str:
    """Exact answers with their interval, an experiment a bar."""
    shown = {}
    for row in rows:
        label = ", ".join(f"{key.split('.')[-1]}={row[key]}" for key in changed[:3]) or line(row, changed)[0]
        value, low, high = (float(_value(row, column) or 0) for column in (MEASURES["exact"], *INTERVAL))
        shown[f"{line(row, changed)[0]}: {label}"] = {"exact": (value, low, high)}
    return figures.scores(shown, figures.WIDE)


def _is_param(name: str) -> bool:
    return not name.startswith("reports/") and ":" not in name and "." in name and not name.endswith((".py", ".txt"))


def _value(row: Row, measure: str) -> str:
    column = measure.format(release=row["recipe.release"])
    # DVC shortens a column's name where it is unambiguous, and writes "!" for a file that a commit does not have.
    found = row.get(column) or row.get(column.rpartition(":")[2]) or ""
    return "" if found == "!" else found


if __name__ == "__main__":
    main()
