"""How likely a causal language model finds each answer, given what comes before it. Runs in the environment `train`.

    python -m temper.perplexity MODEL MAX_TOKENS ROWS.jsonl SCORES.npy

ROWS have `messages` (the last is the answer), or no messages and `response`, which is then the whole text. A score is the mean
log-likelihood of an answer's tokens, in nats, so that higher is likelier: minus the logarithm of the perplexity.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from temper import progress, records
from temper.records import Row

CHUNK = 2048  # rows that are sorted by length together
BATCH_TOKENS = 4096  # padded, in one forward pass: a few hundred MB of activations on a model of 135M
DECIMALS = 3  # the batch that a row falls into changes what comes after

Encoded = tuple[list[int], list[int]]
"""Tokens before the answer (at least one) and of the answer (at least one)."""


def main(arguments: Sequence[str]) -> None:
    import numpy as np

    folder, max_tokens, source, target = arguments
    model, tokenizer = load(Path(folder))
    rows = records.read(source)
    scores = [score for chunk in chunks(rows) for score in scored(chunk, model, tokenizer, int(max_tokens))]
    np.save(target, np.array(scores, dtype=np.float32))


def chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    stream = iter(rows)
    while chunk := list(islice(stream, CHUNK)):
        yield chunk


def load(folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer) in `folder`, on a GPU if there is one."""
    progress.quiet()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # A CPU without instructions for bfloat16 is many times slower with it, and float32 hardly moves with the batch.
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return model.to(device).eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


def scored(rows: Sequence[Row], model: Any, tokenizer: Any, max_tokens: int) -> list[float]:
    """The score of each row; rows of like length share a forward pass."""
    encoded = [encode(row, tokenizer, max_tokens) for row in rows]
    scores = [0.0] * len(rows)
    clock = progress.Clock()
    for done, batch in enumerate(batches(encoded), start=1):
        for position, score in zip(batch, _forward([encoded[one] for one in batch], model), strict=True):
            scores[position] = round(score, DECIMALS)
        if line := clock.line(done, len(rows)):
            print(f"perplexity: {line}", file=sys.stderr, flush=True)
    return scores


def encode(row: Row, tokenizer: Any, max_tokens: int) -> Encoded:
    """The last answer and what comes before it: the answer's first tokens, and as much of the end of what comes before as fits."""
    if row["messages"]:
        before = tokenizer.apply_chat_template(row["messages"][:-1], tokenize=False, add_generation_prompt=True)
    else:
        before = tokenizer.bos_token or tokenizer.eos_token
    text = row["messages"][-1]["content"] if row["messages"] else row["response"]
    answer = tokenizer(text, add_special_tokens=False)["input_ids"][: max_tokens - 1]
    answer = answer or [tokenizer.eos_token_id]
    context = tokenizer(before, add_special_tokens=False)["input_ids"]
    return context[-(max_tokens - len(answer)) :], answer


def batches(encoded: Sequence[Encoded]) -> Iterator[list[int]]:
    """Positions of rows that go through the model together, longest first, at most BATCH_TOKENS with their padding."""
    lengths = [len(before) + len(answer) for before, answer in encoded]
    order = sorted(range(len(encoded)), key=lambda position: (-lengths[position], position))
    while order:
        size = max(1, BATCH_TOKENS // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def _forward(batch: Sequence[Encoded], model: Any) -> list[float]:
    """Padded on the left, so that the answers end together and logits are made for them alone."""
    import torch

    width = max(len(before) + len(answer) for before, answer in batch)
    longest = max(len(answer) for _, answer in batch)
    padding = [width - len(before) - len(answer) for before, answer in batch]
    tokens = [[0] * pad + before + answer for pad, (before, answer) in zip(padding, batch, strict=True)]
    ids = torch.tensor(tokens, device=model.device)
    mask = torch.arange(width, device=model.device) >= torch.tensor(padding, device=model.device).unsqueeze(1)
    places = (mask.long().cumsum(1) - 1).clamp(min=0)
    with torch.inference_mode():
        output = model(input_ids=ids, attention_mask=mask.long(), position_ids=places, logits_to_keep=longest + 1)
    wanted = ids[:, -longest:]
    logits = output.logits[:, :-1].float()
    likelihood = logits.gather(2, wanted.unsqueeze(2)).squeeze(2) - logits.logsumexp(2)
    return [float(line[-len(answer) :].mean()) for line, (_, answer) in zip(likelihood, batch, strict=True)]


if __name__ == "__main__":
    main(sys.argv[1:])
