"""Before hours of work: params.yaml is what conf/ composes to (or was edited on purpose), and every stage accepts its section."""

import dataclasses
import importlib
from types import ModuleType

from temper import graph, params


def main() -> None:
    checked = [check(stage) for stage in graph.stages()]
    params.runtime()
    params.tracking()
    print(f"params.yaml: {sum(checked)} sections fit their stages")


def check(stage: graph.Stage) -> int:
    """Load each section that `stage` tracks with the schema its script declares; exits naming the key that does not fit."""
    script = importlib.import_module(f"scripts.{stage.script}")
    for section in stage.params:
        params.load(section, schema(script, stage.script))
    return len(stage.params)


def schema(script: ModuleType, name: str) -> type:
    """The settings dataclass of a stage's script: the one named like the stage."""
    found = getattr(script, name.capitalize(), None)
    if not dataclasses.is_dataclass(found) or not isinstance(found, type):
        raise TypeError(f"scripts/{name}.py has no settings dataclass named {name.capitalize()}")
    return found


if __name__ == "__main__":
    main()
