"""In the environment that has vLLM's benchmark client: loops over servers in turn, one after the other in changing order.

python -m benchmarks.serve_client SETTINGS.json FOUND.json
"""

import json
import sys
from pathlib import Path
from typing import Any

from temper import levels, load, records


def main(settings: str, target: str) -> None:
    given = json.loads(Path(settings).read_text())
    found = in_turn(given, load.rows(Path(given["rows"])))
    Path(target).write_text(json.dumps(found))


def in_turn(given: dict[str, Any], rows: list[records.Row]) -> dict[str, list[dict[str, float]]]:
    """By contender, the figures of each repeat, `c<concurrency>_…`; no contender is always the first."""
    contenders, names = given["contenders"], list(given["contenders"])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for repeat in range(-1, given["repeats"]):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            figures = loops(contenders[name], rows, given, repeat)
            # The first round only warms up.
            if repeat >= 0:
                found[name].append(figures)
                print(f"  {name}: {told(figures)}", flush=True)
    return found


def loops(contender: dict[str, str], rows: list[records.Row], given: dict[str, Any], repeat: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for concurrency, count in given["loops"]:
        levels.forget(contender["url"])
        chats = load.prompts(rows, count, given["seed"] + repeat)
        options = {"max_tokens": given["max_tokens"], "ends": given["ends"]}
        result = load.run(contender["url"], contender["model"], chats, concurrency=concurrency, **options)
        if not given["ends"]:
            load.check(result, f"concurrency {concurrency}", given["max_tokens"])
        figures |= load.figures([result], f"c{concurrency}")
    return figures


def told(figures: dict[str, float]) -> str:
    rates = {key: value for key, value in figures.items() if key.endswith("_tokens_per_second")}
    return ", ".join(f"{key.split('_')[0]} {value:.1f} tokens/s" for key, value in rates.items())


if __name__ == "__main__":
    main(*sys.argv[1:])
