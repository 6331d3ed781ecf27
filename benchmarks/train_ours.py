"""Stage `sft` up to the end of training, timed: its settings from ./params.yaml, its rows from ./data/audit.

Run by benchmarks.train, as dvc.yaml runs the stage. It leaves ./scratch/axolotl.yaml, with which Axolotl can be started by hand.
"""

from pathlib import Path

from scripts.sft import Sft
from temper import axolotl, params, training

PLUGIN = "benchmarks.train_plugin.Plugin"


def main() -> None:
    cfg = params.load("sft", Sft)
    processes = int(params.runtime()["processes"])
    config = axolotl.render(cfg, processes)
    training.prepare()
    axolotl.train(config | {"plugins": [*config["plugins"], PLUGIN]}, Path("scratch"), None, [], processes)


if __name__ == "__main__":
    main()
