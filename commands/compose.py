"""Compose conf/ into params.yaml exactly as `dvc exp run` would; `--check` only compares."""

import sys
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from temper.params import PARAMS


def main(arguments: list[str]) -> None:
    text = composed([argument for argument in arguments if argument != "--check"])
    if "--check" in arguments and text != PARAMS.read_text():
        raise SystemExit("params.yaml is not what conf/ composes to. Run `make params` and commit the result.")
    if "--check" not in arguments:
        PARAMS.write_text(text)


def composed(overrides: list[str]) -> str:
    """params.yaml's text for `overrides`, byte-equal to what DVC dumps."""
    try:
        with initialize_config_dir(str(Path("conf").resolve()), version_base=None):
            cfg = compose("config", overrides)
        OmegaConf.resolve(cfg)
    except UnicodeDecodeError as error:
        raise SystemExit(f"{_not_utf8()}: {error}: save it as UTF-8") from None
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise SystemExit(f"conf/: {' '.join(str(error).split())}") from None
    if missing := OmegaConf.missing_keys(cfg):
        raise SystemExit(f"conf/: no value for {', '.join(sorted(missing))}")
    return OmegaConf.to_yaml(cfg)


def _not_utf8() -> Path:
    """The file of conf/ that a UnicodeDecodeError, which names none, is about."""
    for file in sorted(Path("conf").rglob("*.yaml")):
        try:
            file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return file
    return Path("conf")


if __name__ == "__main__":
    main(sys.argv[1:])
