"""Settings that are read once a process: OmegaConf takes half a second for them, a stage asks a dozen times, a test runs many."""

from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from temper import params


def once(tree: Callable[[Path], DictConfig]) -> Callable[[Path], DictConfig]:
    """`tree`, called once for the same bytes; what it refuses is asked again."""
    known: dict[bytes, DictConfig] = {}

    def remembered(path: Path = params.PARAMS) -> DictConfig:
        text = path.read_bytes() if path.is_file() else None
        if text is None:
            return tree(path)
        if text not in known:
            known[text] = tree(path)
            OmegaConf.set_readonly(known[text], True)  # all who ask have the same
        return known[text]

    return remembered


setattr(params, "tree", once(params.tree))  # noqa: B010 (mypy)
