"""Before hours of work: every section of params.yaml, and of what conf/ composes to now, is one that the code takes."""

import dataclasses
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from commands.compare_bases import Compare
from commands.compose import composed
from commands.deploy import Deploy
from commands.launch import Launch
from commands.mine import Mine
from commands.synthesize import METHODS, Synthesize
from scripts.bench import Bench
from temper import base_model, cost, executors, graph, health, params, plan, recipe, serving, sources, study, vllm


@dataclasses.dataclass
class Model:
    name: str
    licence: str
    context: int
    """Tokens that the model can attend to."""
    layers: int | None
    rope: base_model.Rope | None
    end_of_turn: str | None
    group_size: int
    """Weights that share a scale in int4."""
    gguf: str
    """llama.cpp's name of what the GGUF is quantized to."""
    source: base_model.Source
    shape: dict[str, Any] | None
    """What its config.json says of its layers, for `make plan`."""


@dataclasses.dataclass
class Data:
    sources: list[sources.Source]
    max_tokens: int


@dataclasses.dataclass
class GlobalBatch:
    sft: int
    """Packed sequences in an optimizer step."""
    dpo: int
    """Pairs in an optimizer step."""


@dataclasses.dataclass
class Hardware:
    name: str
    precision: str
    dtype: str
    attention: str
    micro_batch: int
    global_batch: GlobalBatch
    gradient_checkpointing: bool
    deepspeed: str | None
    fsdp: str | None
    price: cost.Price
    power: cost.Power
    runtime: params.Runtime


VALUES = {"seed", "served", "tracking"}


def main(asked: Sequence[str] = ()) -> None:
    """Check every section, and that the recipe has the stages `asked` for: DVC runs the whole graph for one that it has not."""
    intended, found = DictConfig(OmegaConf.create(composed([]))), params.tree()
    tracked = stages()
    check(intended, tracked, "conf/")
    if found != intended:
        # Composed with overrides on purpose, or conf/ was edited since.
        print("params.yaml is not what conf/ composes to now: `make params` composes it again", flush=True)
    number = check(found, tracked, str(params.PARAMS))
    params.tracking()
    judged(recipe.load(), params.value("judge.weights"))
    made(found)
    for name in asked:
        running(name)
    if not asked:
        # The whole graph ends in stages that sample; one alone, such as sft, may need no vLLM.
        vllm.require_build()
    print(f"params.yaml: {number} sections fit their stages")


def made(settings: DictConfig) -> None:
    """Exit unless some stage makes what each variant of `bench` serves."""
    outs = {out for stage in graph.stages() for out in stage.outs}
    for variant, section in settings.served.items():
        folder, key = f"models/{section.model}", f"bench.{variant}"
        if folder not in outs:
            raise SystemExit(f"{key}: no stage of this recipe makes {folder}: correct {key}.model in conf/bench")


def running(name: str) -> None:
    """Exit unless the recipe switches the stage `name` on."""
    found = [stage for stage in graph.stages() if stage.script == name]
    if not found:
        recipes = [
            file.stem for file in sorted(Path("conf/recipe").glob("*.yaml")) if name in composed_recipe(file.stem)
        ]
        raise SystemExit(
            f"{name} is no part of this recipe (recipe.{recipe.SWITCHES.get(name, name)} is empty in params.yaml): take one "
            "that has it, "
            f"`dvc exp run -S recipe={' or '.join(recipes)}`"
        )


def composed_recipe(name: str) -> list[str]:
    """The stages that conf/recipe/<name>.yaml switches on."""
    settings = DictConfig(OmegaConf.create(composed([f"recipe={name}"])))
    found = params.fitted(settings, "recipe", recipe.Recipe, f"conf/recipe/{name}.yaml")
    return found.stages() + found.measuring()


def judged(chosen: recipe.Recipe, weights: str) -> None:
    """Exit where the judge is a reward model that the recipe does not train."""
    if chosen.judged and not chosen.reward and Path(weights) == Path("models/reward"):
        raise SystemExit(
            "recipe.judged asks for the reward model, which this recipe does not train: set recipe.reward in conf/recipe "
            "(recipe=sft-dpo-judged), or choose judge=endpoint"
        )


def check(settings: DictConfig, tracked: dict[str, type], place: str) -> int:
    """Hold every section of `settings` against its dataclass and count them; exits naming `place` and the key that does not fit."""
    schemas = tracked | shared(settings, place)
    if strays := unread(settings, {*schemas, *VALUES}):
        raise SystemExit(f"{place}: nothing reads '{strays[0]}': correct its name in conf/ and run `make params`")
    for section, schema in schemas.items():
        params.fitted(settings, section, schema, place)
    return len(schemas)


def stages() -> dict[str, type]:
    """The sections that stages track, each with the dataclass that its script declares."""
    found = graph.definitions()
    scripts = {stage.script: importlib.import_module(f"scripts.{stage.script}") for stage in found}
    # A matrix whose items differ has a section for each, those that the recipe leaves out too.
    sections = {f"{name}.{item}": one for name, script in scripts.items() for item, one in items(script).items()}
    # The sections of `bench` are whichever there are: see shared().
    others = [stage for stage in found if stage.script != "bench" and not items(scripts[stage.script])]
    alike = [(stage.script, section) for stage in others for section in stage.params if section not in VALUES]
    return sections | {section: schema(scripts[name], name) for name, section in alike}


def shared(settings: DictConfig, place: str) -> dict[str, type]:
    """The other sections: those that feed stages by interpolation, and those that no stage tracks."""
    kind, method = (str(OmegaConf.select(settings, key)) for key in ("executor.kind", "synthesize.method"))
    known: dict[str, type] = {
        "model": Model,
        "data": Data,
        "hardware": Hardware,
        "synthesize": Synthesize,
        "recipe": recipe.Recipe,
    }
    known |= {"health": health.Health, "plan": plan.Settings, "ablation": study.Study, "launch": Launch}
    known |= {"deploy": Deploy, "serve": serving.Serve, "cost": cost.Cost, "compare": Compare, "mine": Mine}
    known |= {f"bench.{variant}": Bench for variant in settings.bench}
    if kind not in executors.SCHEMAS:
        raise SystemExit(f"{place}: executor.kind is '{kind}': choose one of {', '.join(executors.SCHEMAS)}")
    if method not in METHODS:
        raise SystemExit(f"{place}: synthesize.method is '{method}': choose one of {', '.join(METHODS)}")
    return known | {"executor": executors.SCHEMAS[kind], "synthesize.options": METHODS[method][0]}


def unread(settings: DictConfig, known: set[str]) -> list[str]:
    """Keys of the top level that are not `known`, and those of groups with one section for each item of a matrix stage."""
    groups = {name.partition(".")[0] for name in known} - known
    keys: dict[str, Any] = {str(key): settings[key] for key in settings}
    found = {key for key in keys if key not in groups}
    found |= {f"{group}.{item}" for group in groups & keys.keys() for item in keys[group]}
    return sorted(found - known)


def items(script: ModuleType) -> dict[str, type]:
    """The settings dataclasses of a matrix stage's script, by item, where they differ."""
    return dict(getattr(script, "SCHEMAS", {}))


def schema(script: ModuleType, name: str) -> type:
    """The settings dataclass of a stage's script: the one named like the stage."""
    found = getattr(script, name.capitalize(), None)
    if not dataclasses.is_dataclass(found) or not isinstance(found, type):
        raise TypeError(f"scripts/{name}.py has no settings dataclass named {name.capitalize()}")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
