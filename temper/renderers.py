"""What each training stage makes of its section before it starts, where it refuses what has no meaning, or none together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from temper import axolotl, grpo, ppo, preference_trainers, reward_model

START, ANSWERS = Path("models/base"), ({"label": True}, {"label": False})  # neither decides what is refused
RENDERERS: dict[str, Callable[[Any, int], Any]] = {
    "sft": axolotl.render,
    "dpo": lambda cfg, processes: preference_trainers.render_dpo(cfg, START, processes),
    "kto": lambda cfg, processes: preference_trainers.render_kto(cfg, START, processes, ANSWERS),
    "orpo": lambda cfg, processes: preference_trainers.render_orpo(cfg, START, processes),
    "reward": lambda cfg, processes: reward_model.render(cfg, START, processes),
    "ppo": lambda cfg, _: ppo.render(cfg, START),
    "grpo": lambda cfg, processes: grpo.render(cfg, START, processes, cfg.rewards),
}


def require(settings: DictConfig, processes: int) -> None:
    """Exit as the first training of the recipe would that refuses its settings, in a composition of conf/."""
    for name, render in RENDERERS.items():
        if settings.recipe[name]:
            render(settings[name], processes)
