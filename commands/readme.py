"""Write the generated parts of README.md and benchmarks/README.md and the picture of the graph; `--check` only compares."""

import re
import subprocess
import sys
from pathlib import Path

from temper import graph, measured, pages, recipe, results
from temper.results import Results

PICTURE = Path("reports/graph.svg")
Parts = dict[str, str]


def main(arguments: list[str]) -> None:
    found = {path: (text := path.read_text(), filled(path, text, parts)) for path, parts in pages_of().items()}
    stale = [str(path) for path, (before, after) in found.items() if before != after]
    if "--check" in arguments:
        if stale:
            raise SystemExit(
                f"Generated parts of {' and '.join(stale)} are stale. Run `make readme` and commit the result."
            )
        return
    for path, (_, text) in found.items():
        path.write_text(text)
    PICTURE.write_text(graph.picture(graph.stages()))


def pages_of() -> dict[Path, Parts]:
    """What each page has between its marks."""
    return {
        Path("README.md"): {"results": results_table(results.load(recipe.load())), "stages": stage_table()},
        Path("benchmarks/README.md"): {
            "data": measured.table(measured.DATA),
            "scale": measured.scale_table(),
            "training": measured.table(measured.TRAINING),
            "serving": measured.table(measured.SERVING),
            "evaluation": measured.table(measured.EVALUATION),
            "public": measured.table(measured.PUBLIC),
        },
    }


def filled(path: Path, text: str, parts: Parts) -> str:
    for name, content in parts.items():
        text = fill(path, text, name, content)
    return text


def fill(path: Path, text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`."""
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{path}: no <!-- {name} --> … <!-- /{name} --> to fill")
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def results_table(found: Results) -> str:
    head = f"| held-out test rows | n | {' | '.join(found.variants)} |\n|---|---|{'---|' * len(found.variants)}"
    rows = [
        f"| {label} | {found.stages[f'evaluate/{found.recipe.release}'][count]} | "
        + " | ".join(pages.percent(found.interval(v, key)) for v in found.variants)
        + " |"
        for key, label, count in pages.MEASURES
    ]
    rates = ", ".join(f"{pages.speed(found, level):.0f} at {level}" for level in found.levels())
    notes = [
        f"95% intervals. Quants: {pages.quantized(found)}. vLLM bf16 tokens/s by concurrent requests: {rates}.",
        f"{found.minutes():.0f} minutes in all stages on {found.hardware()}; no GPU, no paid service. Code: {commit()}.",
    ]
    return "\n".join([head, *rows, "", *notes])


def stage_table() -> str:
    """A row a stage; the items of a matrix share one."""
    matrices: dict[tuple[str, str, str], list[str]] = {}
    for stage in graph.stages():
        name, _, item = stage.name.partition("@")
        matrices.setdefault((name, stage.desc, stage.env), []).append(f"`{name}@{item}`" if item else f"`{name}`")
    rows = [f"| {', '.join(names)} | {desc} | {env} |" for (_, desc, env), names in matrices.items()]
    return "\n".join(["| stage | what it does | environment |", "|---|---|---|", *rows])


def named(script: str) -> str:
    """`base`, `sft@base`, or `evaluate@{base,sft}` where a matrix has several items."""
    items = [stage.name.partition("@")[2] for stage in graph.stages() if stage.script == script]
    return f"{script}@{{{','.join(items)}}}" if len(items) > 1 else "@".join([script, *filter(None, items)])


def commit() -> str:
    """The commit that last touched dvc.lock, which records the run that the results come from."""
    command = ["git", "log", "-1", "--format=%h", "--", "dvc.lock"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return f"`{found}`" if found else "not committed yet"


if __name__ == "__main__":
    main(sys.argv[1:])
