"""The clock as a plugin of Axolotl, named in the YAML: one configuration, timed alike however it is started."""

from typing import Any

from axolotl.integrations.base import BasePlugin

from benchmarks.train_clock import Clock


class Plugin(BasePlugin):
    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        return [Clock()]
