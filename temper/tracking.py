"""Weights & Biases, when params.yaml's `tracking` asks for it. Keys stay in the environment; nothing here is part of an out."""

import os

from temper import params


def trackers(stage: str) -> list[str]:
    """What the Trainer reports to: [] or ["wandb"], with W&B set up by environment variables alone."""
    choice = params.tracking()
    if choice == "none":
        os.environ["WANDB_DISABLED"] = "true"
        return []
    os.environ.pop("WANDB_DISABLED", None)
    os.environ |= {"WANDB_MODE": "offline" if choice == "wandb-offline" else "online", "WANDB_SILENT": "true"}
    os.environ.setdefault("WANDB_PROJECT", "temper")
    os.environ.setdefault("WANDB_NAME", stage)
    if choice == "wandb" and not (os.environ.get("WANDB_API_KEY") or _logged_in()):
        raise SystemExit(
            "tracking: wandb needs a key: set WANDB_API_KEY, run `wandb login`, or use tracking=wandb-offline"
        )
    return ["wandb"]


def _logged_in() -> bool:
    """Whether `wandb login` left a key in ~/.netrc."""
    from netrc import NetrcParseError, netrc

    try:
        return netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, NetrcParseError):
        return False
