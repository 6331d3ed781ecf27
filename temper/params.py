"""A stage's settings: one section of params.yaml, checked against a dataclass."""

from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

PARAMS = Path("params.yaml")
T = TypeVar("T")


def load(section: str, schema: type[T], path: Path = PARAMS) -> T:
    """Return `section` (dotted for a matrix item: `quantize.gguf`) as a `schema`.

    Schemas have no defaults, so an unknown, missing or mistyped key exits with its name: conf/ is the one home of values.
    """
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), _section(section, path))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(f"{path}: section '{section}': {reason}. Correct it in conf/ and run `make params`.") from None


def runtime(path: Path = PARAMS) -> dict[str, Any]:
    """What may differ between machines without changing a result (threads, processes, ports): tracked by no stage."""
    return dict(OmegaConf.to_container(_section("hardware.runtime", path)))  # type: ignore[arg-type]


def tracking(path: Path = PARAMS) -> str:
    """Where training curves go besides reports/: none, wandb or wandb-offline. Tracked by no stage."""
    choice = str(OmegaConf.select(_tree(path), "tracking"))
    if choice not in ("none", "wandb", "wandb-offline"):
        raise SystemExit(f"{path}: tracking is '{choice}': choose none, wandb or wandb-offline")
    return choice


def _section(section: str, path: Path) -> DictConfig:
    found = OmegaConf.select(_tree(path), section)
    if not isinstance(found, DictConfig):
        raise SystemExit(f"{path}: no section '{section}'. Run `make params` to compose it from conf/ again.")
    return found


def _tree(path: Path) -> DictConfig:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `make params` in the repository's root")
    return OmegaConf.load(path)  # type: ignore[return-value]
