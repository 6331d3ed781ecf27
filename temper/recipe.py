"""Which training stages run, from which model each starts, what is evaluated, and what is released: group `recipe`."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from omegaconf import DictConfig, ListConfig, OmegaConf

from temper import params

OTHERS = ("variants", "release", "formats", "draft", "judged", "scored", "safety")
SCORED = ("reward", "dpo")
# The lists that switch the stages which measure on.
SWITCHES = {"judge": "judged", "rewardbench": "scored"}
FORMATS = ("gptq", "awq", "gguf")
DRAFTS = ("eagle3",)
HEAD = "draft"
"""The folder of models/ that holds the head."""


@dataclass
class Recipe:
    """A stage's list holds the model that it starts from, or nothing where it does not run."""

    sft: list[str]
    preferences: list[str]
    dpo: list[str]
    kto: list[str]
    orpo: list[str]
    reward: list[str]
    ppo: list[str]
    grpo: list[str]
    variants: list[str]
    """Evaluated, in this order, quants too where they are named; the first is what the others are compared with."""
    release: str
    """Quantized, measured, described by the card."""
    formats: list[str]
    """Of FORMATS: the quants that are made of the release."""
    draft: list[str]
    """Of DRAFTS: the head that is trained for the release, or nothing."""
    judged: list[str]
    """Variants whose answers a judge compares with the base's."""
    scored: list[str]
    """Of SCORED: what RewardBench scores, the reward model or the reward that is implicit in DPO."""
    safety: list[str]
    """Models that are asked whether they are safe, and held against the first of `variants`; the release is among them."""

    def stages(self) -> list[str]:
        """The training stages that run, in the order of the graph."""
        return [name for name in STAGES if getattr(self, name)]

    def measuring(self) -> list[str]:
        """The stages of SWITCHES that run."""
        return [name for name, key in SWITCHES.items() if getattr(self, key)]

    def starts(self, variant: str) -> list[str]:
        """The model that a variant was made from; none of the base."""
        return [self.release] if variant in self.formats else getattr(self, variant, [])

    def unevaluated(self) -> list[str]:
        """Models that are trained and that no figure of `evaluate` speaks of."""
        return [name for name in MODELS if getattr(self, name) and name not in self.variants]

    def chain(self) -> list[str]:
        """The models from the base to the release: base, sft, dpo."""
        models = [self.release]
        while starts := getattr(self, models[0], None):
            models.insert(0, str(starts[0]))
        return models


STAGES = tuple(field.name for field in fields(Recipe) if field.name not in OTHERS)
MODELS = tuple(name for name in STAGES if name not in ("preferences", "reward"))


def load(path: Path = params.PARAMS) -> Recipe:
    """The section `recipe`; exits naming the key when a model is asked for that nothing makes."""
    recipe = params.load("recipe", Recipe, path)
    made = {"base", *(name for name in MODELS if getattr(recipe, name))}
    for name in STAGES:
        starts = getattr(recipe, name)
        if len(starts) > 1:
            raise SystemExit(f"{path}: recipe.{name} is {starts}: a stage starts from one model: correct conf/recipe")
        if unmade := [start for start in starts if start not in made or start == name]:
            raise SystemExit(_unmade(path, name, unmade[0], made))
    asked_of = {
        "variants": (recipe.variants, made | set(recipe.formats)),
        "release": ([recipe.release], made),
        "safety": (recipe.safety, made),
    }
    for key, (asked, known) in asked_of.items():
        if unmade := [name for name in asked if name not in known]:
            raise SystemExit(_unmade(path, key, unmade[0], known))
    for is_wrong, message in _together(recipe):
        if is_wrong:
            raise SystemExit(f"{path}: {message}")
    return recipe


def served(bench: DictConfig, formats: ListConfig, draft: ListConfig) -> DictConfig:
    """The sections of `bench` by name, each with its `model`, but for quants and a head that the recipe does not make.

    hydra_plugins/served.py gives it to conf/, so that whoever leaves a quant out need not know what measures it.
    """
    left_out = {*FORMATS} - {*formats} | ({HEAD} if not draft else set())
    models = {name: section.get("model") for name, section in bench.items()}
    return OmegaConf.create({name: {"model": model} for name, model in models.items() if model not in left_out})


def _together(recipe: Recipe) -> Iterator[tuple[bool, str]]:
    """What a recipe cannot be, with what to do."""
    unknown = [name for name in recipe.formats if name not in FORMATS]
    yield (
        bool(unknown),
        f"recipe.formats names '{next(iter(unknown), '')}', expected {', '.join(FORMATS)}: correct conf/recipe",
    )
    is_draft = not recipe.draft or recipe.draft in [[name] for name in DRAFTS]
    yield (
        not is_draft,
        f"recipe.draft is {recipe.draft}, expected one of {', '.join(DRAFTS)}, or []: correct conf/recipe",
    )
    strays = [name for name in recipe.judged if name not in recipe.variants[1:] or name in recipe.formats]
    of = "expected of recipe.variants, but for the first and for quants: correct conf/recipe"
    yield bool(strays), f"recipe.judged names '{next(iter(strays), '')}', {of}"
    strays = [name for name in recipe.scored if name not in SCORED or not getattr(recipe, name)]
    of = f"expected {' or '.join(SCORED)}, and that this recipe makes it: correct conf/recipe"
    yield bool(strays), f"recipe.scored names '{next(iter(strays), '')}', {of}"
    yield bool(recipe.ppo) and not recipe.reward, "recipe.ppo needs a reward model: set recipe.reward in conf/recipe"
    readers = [name for name in ("dpo", "kto", "orpo", "reward") if getattr(recipe, name)]
    needs = f"recipe.{next(iter(readers), '')} needs pairs: set recipe.preferences in conf/recipe"
    yield bool(readers) and not recipe.preferences, needs
    is_in = bool(recipe.variants) and recipe.release in recipe.variants
    yield not is_in, f"recipe.release is {recipe.release}, which recipe.variants lacks: correct conf/recipe"
    first = next(iter(recipe.variants), "")
    yield (
        first in recipe.formats,
        f"recipe.variants begins with {first}, a quant, which others are not held against: correct conf/recipe",
    )
    lacking = {first: "the others are held against", recipe.release: "the gate and the card ask of"}
    for name, why in lacking.items():
        yield name not in recipe.safety, f"recipe.safety lacks {name}, which {why}: correct conf/recipe"


def _unmade(path: Path, key: str, name: str, made: set[str]) -> str:
    return f"{path}: recipe.{key} names '{name}', which this recipe does not make ({', '.join(sorted(made))}): correct conf/recipe"
