"""A supervised fastText model file (such as DCLM's quality classifier), by fasttext-predict: no training, no network."""

from functools import cache
from pathlib import Path
from typing import Any


def probability(model: Path, text: str, label: str) -> float:
    """How likely `model` finds `label` (without its `__label__`) for `text`, in [0, 1]; 0 for one that it does not have."""
    labels, values = _loaded(model).predict(" ".join(text.split()), k=-1, threshold=0.0)
    found = dict(zip(labels, values, strict=True))
    return min(1.0, float(found.get(f"__label__{label}", 0.0)))


@cache
def _loaded(model: Path) -> Any:
    import fasttext

    try:
        return fasttext.load_model(str(model))
    except (ValueError, OSError) as error:
        raise SystemExit(f"{model}: not a fastText model ({error}): correct its file in conf/quality") from None
