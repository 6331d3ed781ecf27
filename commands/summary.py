"""Print what the last run made: rows, losses, scores, size, speed, and where to look next."""

import sys

from rich.console import Console
from rich.table import Table

from temper import pages, recipe, results
from temper.results import Results

WIDTH = 140  # of tables that go to a file or a pipe


def main() -> None:
    found = results.load(recipe.load())
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(table("Data", ("stage", "kept", "rejected"), [(n, str(k), str(r)) for n, k, r in found.funnel()]))
    console.print(table("Training", ("", "train loss", "validation loss", "minutes"), training(found)))
    console.print(table("Test rows", ("", *found.variants), scores(found)))
    for line in closing(found):
        console.print(line)


def table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    made = Table(*head, title=title, title_justify="left", box=None, pad_edge=False)
    for row in rows:
        made.add_row(*row)
    return made


def training(found: Results) -> list[tuple[str, ...]]:
    return [
        (
            name,
            f"{values['train_loss']:.3f}",
            f"{values['eval_loss']:.3f}" if "eval_loss" in values else "",
            f"{timing['seconds'] / 60:.1f}",
        )
        for name, (values, timing) in found.trainings().items()
    ]


def scores(found: Results) -> list[tuple[str, ...]]:
    return [
        (label, *(pages.percent(found.interval(v, key)) for v in found.variants)) for key, label, _ in pages.MEASURES
    ]


def closing(found: Results) -> list[str]:
    rates = ", ".join(f"{pages.speed(found, level):.0f} at {level}" for level in found.levels())
    unevaluated = [f"unevaluated models/{name}: no score above is its own" for name in found.recipe.unevaluated()]
    return [
        *unevaluated,
        *(f"quantized   {where}: {line}" for where, line in pages.quants(found).items()),
        *(f"withheld    models/{name}: {why}" for name, why in found.withheld().items()),
        *(f"judged      {line}" for line in pages.judged(found)),
        *(f"rewards     {line}" for line in pages.rewards(found)),
        f"speed       {rates} concurrent requests (tokens/s, vLLM bf16)",
        f"took        {found.minutes():.0f} minutes in all stages, on {found.hardware()}",
        "model card  reports/model-card.md",
        "report      reports/report.html",
        "scorecard   reports/scorecard.md",
        "chat        make chat",
    ]


if __name__ == "__main__":
    main()
