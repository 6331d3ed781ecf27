"""The one thing that conf/ computes: ${served:…}. Hydra imports this folder before it composes, DVC's Hydra too."""

from omegaconf import OmegaConf

from temper import recipe

OmegaConf.register_new_resolver("served", recipe.served, replace=True)
