"""A stage's settings: one section of params.yaml, checked against a dataclass."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

PARAMS = Path("params.yaml")
T = TypeVar("T")


@dataclass
class Runtime:
    """What may differ between machines without changing a result: tracked by no stage."""

    processes: int
    """On one node."""
    nodes: int
    threads: int
    serve_memory_gb: int
    """Of vLLM's KV cache."""
    serve_eager: bool
    serve_port: int | None
    """Of the benchmarked server; null takes a free one."""
    min_memory_gb: int
    min_disk_gb: int


def load(section: str, schema: type[T], path: Path = PARAMS) -> T:
    """Return `section` (dotted for a matrix item: `quantize.gguf`) as a `schema`.

    Schemas have no defaults, so an unknown, missing or mistyped key exits with its name: conf/ is the one home of values.
    """
    return fitted(tree(path), section, schema, str(path))


def fitted(settings: DictConfig, section: str, schema: type[T], place: str) -> T:
    """`section` of `settings`, which `place` holds, as a `schema`."""
    found = OmegaConf.select(settings, section)
    if not isinstance(found, DictConfig):
        raise SystemExit(f"{place}: no section '{section}'. Run `make params` to compose it from conf/ again.")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), found)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise SystemExit(
            f"{place}: section '{section}': {reason}. Correct it in conf/ and run `make params`."
        ) from None


def runtime(path: Path = PARAMS) -> dict[str, Any]:
    """The values of Runtime."""
    return asdict(load("hardware.runtime", Runtime, path))


def value(key: str, path: Path = PARAMS) -> Any:
    """One value by its dotted key, None where there is none."""
    return OmegaConf.select(tree(path), key)


def tracking(path: Path = PARAMS) -> str:
    """Where training curves go besides reports/: none, wandb or wandb-offline. Tracked by no stage."""
    choice = str(value("tracking", path))
    if choice not in ("none", "wandb", "wandb-offline"):
        raise SystemExit(f"{path}: tracking is '{choice}': choose none, wandb or wandb-offline")
    return choice


def tree(path: Path = PARAMS) -> DictConfig:
    """All of a file's sections."""
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `make params` in the repository's root")
    try:
        found = OmegaConf.load(path)
    except (YAMLError, UnicodeDecodeError) as error:
        raise SystemExit(f"{path}: {' '.join(str(error).split())}: run `make params` to compose it again") from None
    if not isinstance(found, DictConfig):
        raise SystemExit(f"{path}: holds a list, expected sections: run `make params` to compose it again")
    return found
