"""How good answers are by a reward model, or by what DPO made of a policy. Runs in the environment `train`; from any other, apart:

    python -m temper.reward_scores SETTINGS.json CHATS.jsonl SCORES.jsonl

A chat is `{"messages": […]}` that ends with the answer. A reward model (temper/reward_model.py) reads it up to the answer's end of
turn. DPO's implicit reward is that of Rafailov et al. 2023 (arXiv:2305.18290, equation 5, without the term that depends on the
prompt alone): β · (log π(answer) − log π_ref(answer)), over the answer's tokens with its end of turn; per token where the loss that
trained the policy counts so (TRL's sigmoid_norm and ipo), and without a reference where it keeps none (SimPO: β · log π per token).
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from temper import envs, records, stage
from temper.human_labels import Chat

if TYPE_CHECKING:
    from torch import Tensor

PER_TOKEN = ("sigmoid_norm", "ipo", "simpo")  # losses over log-probabilities a token
DECIMALS = 4  # what comes after changes with the batch
LAST_LINES = 3


@dataclass(frozen=True)
class Scorer:
    folder: str
    reference: str | None
    """Of an implicit reward; null where the model is scored by itself."""
    beta: float | None
    """Null for a reward model."""
    per_token: bool
    max_length: int
    """Tokens of a chat; a longer one has no score."""
    batch: int

    @property
    def is_implicit(self) -> bool:
        return self.beta is not None


def reward(folder: Path, max_length: int, batch: int) -> Scorer:
    """The reward model in a folder."""
    if not (folder / "config.json").is_file():
        raise SystemExit(f"{folder}: no reward model: take a recipe that trains one (recipe=sft-dpo-judged)")
    return Scorer(str(folder), None, None, False, max_length, batch)


def implicit(folder: Path, max_length: int, batch: int) -> Scorer:
    """What DPO made of a policy, by the settings that it was trained with (trl.yaml beside its weights)."""
    file = folder / "trl.yaml"
    if not file.is_file():
        raise SystemExit(f"{file}: no such file: an implicit reward is that of a policy which `dpo` trained")
    run = yaml.safe_load(file.read_text())
    losses = run["trainer"].get("loss_type") or ["sigmoid"]
    names = [losses] if isinstance(losses, str) else losses
    has_reference = not run["settings"].endswith(":CPOConfig")
    reference = run["model"] if has_reference else None
    return Scorer(
        str(folder), reference, float(run["trainer"]["beta"]), any(one in PER_TOKEN for one in names), max_length, batch
    )


def scored(scorer: Scorer, chats: Sequence[Chat]) -> list[float | None]:
    """The reward of each chat's answer, None for a chat that is too long or that the template refuses."""
    if not chats:
        return []
    if importlib.util.find_spec("trl"):
        return _scored(scorer, chats)
    with tempfile.TemporaryDirectory(prefix="temper-rewards-") as folder:
        settings, source, target = (Path(folder) / name for name in ("settings.json", "chats.jsonl", "scores.jsonl"))
        settings.write_text(json.dumps(asdict(scorer)))
        records.write(source, ({"messages": chat} for chat in chats))
        command = [str(envs.python("train")), "-m", "temper.reward_scores", str(settings), str(source), str(target)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            last = " / ".join(done.stderr.strip().splitlines()[-LAST_LINES:])
            raise SystemExit(f"{scorer.folder}: scoring ended with status {done.returncode}: {last}")
        return [row["score"] for row in records.read(target)]


def tokens(chats: Sequence[Chat], tokenizer: Any) -> Iterator[tuple[list[int], int] | None]:
    """(ids of the prompt with the answer up to its end of turn, how many are the prompt's) of each chat, as TRL renders it."""
    from jinja2 import TemplateError

    from temper import preference_trainers

    for chat in chats:
        try:
            texts = preference_trainers.texts({"prompt": chat[:-1], "completion": chat[-1:]}, tokenizer)
        except (TemplateError, ValueError):
            yield None
            continue
        before, whole = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (texts["prompt"], texts["prompt"] + texts["completion"])
        )
        yield whole, len(before)


def _scored(scorer: Scorer, chats: Sequence[Chat]) -> list[float | None]:
    from temper import trl

    tokenizer = trl.tokenizer(scorer.folder)
    rows = list(tokens(chats, tokenizer))
    whole = [number for number, row in enumerate(rows) if row and len(row[0]) <= scorer.max_length]
    # Longest first, so that rows of like length share a forward pass, and memory is short at once or never.
    whole.sort(key=lambda number: (-len(rows[number][0]), number))  # type: ignore[index]
    chosen = [rows[number] for number in whole]
    found = _implicit(scorer, chosen) if scorer.is_implicit else _rewards(scorer, chosen, tokenizer)
    scores: list[float | None] = [None] * len(chats)
    for number, score in zip(whole, found, strict=True):
        scores[number] = round(score, DECIMALS)
    return scores


def _rewards(scorer: Scorer, rows: Sequence[Any], tokenizer: Any) -> list[float]:
    import torch

    from temper import reward_model

    tokenizer.padding_side = "right"
    model = reward_model.classifier(scorer.folder, torch.float32).to(_device()).eval()
    found: list[float] = []
    with torch.inference_mode():
        for part in _parts(rows, scorer.batch):
            padded = tokenizer.pad({"input_ids": [ids for ids, _ in part]}, return_tensors="pt").to(_device())
            found += model(**padded).logits.squeeze(-1).float().tolist()
    return found


def _implicit(scorer: Scorer, rows: Sequence[Any]) -> list[float]:
    """One model at a time: memory holds the weights of one."""
    policy = _likelihoods(scorer.folder, rows, scorer.batch)
    reference = _likelihoods(scorer.reference, rows, scorer.batch) if scorer.reference else [0.0] * len(rows)
    assert scorer.beta is not None
    sizes = [len(ids) - before if scorer.per_token else 1 for ids, before in rows]
    return [
        scorer.beta * (own - other) / max(1, size) for own, other, size in zip(policy, reference, sizes, strict=True)
    ]


def _likelihoods(folder: str, rows: Sequence[Any], batch: int) -> list[float]:
    """Log-probability of each answer behind its prompt, in nats, summed over its tokens."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = loaded.to(_device()).eval()
    found: list[float] = []
    with torch.inference_mode():
        for part in _parts(rows, batch):
            ids = [torch.tensor(one, device=model.device) for one, _ in part]
            padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
            sizes = torch.tensor([len(one) for one in ids], device=model.device)
            places = torch.arange(padded.shape[1], device=model.device)
            mask = (places < sizes.unsqueeze(1)).long()
            logits = model(input_ids=padded, attention_mask=mask).logits[:, :-1].float()
            found += _summed(logits, padded[:, 1:], mask[:, 1:], [before for _, before in part])
    return found


def _summed(logits: "Tensor", wanted: "Tensor", mask: "Tensor", before: Sequence[int]) -> list[float]:
    """Over the tokens from each row's `before` on: (rows, length, vocabulary) and (rows, length) → a number a row."""
    import torch

    likelihood = logits.gather(2, wanted.unsqueeze(2)).squeeze(2) - logits.logsumexp(2)
    places = torch.arange(1, wanted.shape[1] + 1, device=wanted.device)
    is_answer = places >= torch.tensor(before, device=wanted.device).unsqueeze(1)
    values: list[float] = (likelihood * mask * is_answer).sum(1).tolist()
    return values


def _parts(rows: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(arguments: Sequence[str]) -> None:
    from temper import progress, training

    settings, source, target = arguments
    progress.quiet()
    training.prepare()
    scorer = Scorer(**json.loads(Path(settings).read_text()))
    found = _scored(scorer, [row["messages"] for row in records.read(source)])
    records.write(target, ({"score": score} for score in found))


if __name__ == "__main__":
    stage.die_with_parent()
    main(sys.argv[1:])
