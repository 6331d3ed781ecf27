"""A published quality classifier of transformers (FineWeb-Edu's, Nemotron's): one score a row. Runs in the environment `train`.

    python -m temper.sequence_classifier MODEL MAX_TOKENS ROWS.jsonl SCORES.npy

ROWS have `request` and `response`, which are read as one text. A model of one output gives its value; of several, the mean of their
numbers under their probabilities, such as 0 to 5 for grades.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from temper import progress, records
from temper.perplexity import chunks

BATCH = 16  # texts


def main(arguments: Sequence[str]) -> None:
    import numpy as np

    folder, max_tokens, source, target = arguments
    model, tokenizer = load(Path(folder))
    scores: list[float] = []
    for chunk in chunks(records.read(source)):
        texts = [f"{row['request']}\n{row['response']}".strip() for row in chunk]
        scores += scored(texts, model, tokenizer, int(max_tokens))
    np.save(target, np.array(scores, dtype=np.float32))


def load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) in `folder`, on a GPU if there is one; exits when a weight is missing, which transformers makes up."""
    progress.quiet()
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise SystemExit(f"{folder}: not a classifier that transformers loads: {str(error).splitlines()[0]}") from None
    if missing := sorted(info["missing_keys"]):
        raise SystemExit(f"{folder}: {len(missing)} weights are missing ({missing[0]}, …): it is no trained classifier")
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def scored(texts: Sequence[str], model: Any, tokenizer: Any, max_tokens: int) -> list[float]:
    """The score of each text; texts of like length share a forward pass."""
    order = sorted(range(len(texts)), key=lambda position: (-len(texts[position]), position))
    scores = [0.0] * len(texts)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        for position, score in zip(
            batch, _forward([texts[one] for one in batch], model, tokenizer, max_tokens), strict=True
        ):
            scores[position] = round(score, 4)
    return scores


def _forward(texts: list[str], model: Any, tokenizer: Any, max_tokens: int) -> list[float]:
    import torch

    encoded = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=max_tokens).to(
        model.device
    )
    with torch.inference_mode():
        logits = model(**encoded).logits.float()
    if logits.shape[1] == 1:
        return [float(value) for value in logits[:, 0]]
    grades = torch.arange(logits.shape[1], device=logits.device, dtype=torch.float32)
    return [float(value) for value in logits.softmax(1) @ grades]


if __name__ == "__main__":
    main(sys.argv[1:])
