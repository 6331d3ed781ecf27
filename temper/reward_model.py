"""A Bradley–Terry reward model: TRL trains a score on top of a policy from pairs, and held-out pairs say how good it is."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from temper import adapters, base_model, intervals, merging, preference_trainers, trl
from temper.preference_trainers import SIDES, Pair
from temper.trl import Config, Log

if TYPE_CHECKING:
    from torch import Tensor

METHODS = ("lora", "full")
# How far rounding to bf16 may move a score: where it moves one of two equal answers by d, Bradley–Terry's KL is d²/8 nats, here
# as many as merging allows a token.
ROUNDING = (8 * merging.ROUNDING) ** 0.5
CURVES = {"train_accuracy": "accuracy", "train_margin": "margin"}


def render(cfg: Any, start: Path, processes: int) -> Config:
    """What RewardConfig, and LoraConfig where the method is lora, take for section `reward`."""
    if cfg.method not in METHODS:
        raise SystemExit(f"reward.method is '{cfg.method}', expected {' or '.join(METHODS)}: correct it in conf/reward")
    own = {"max_length": cfg.max_length, "center_rewards_coefficient": cfg.center}
    return {
        "stage": "reward",
        "builder": "temper.reward_model:trainer",
        "settings": "trl:RewardConfig",
        "model": str(start),
        "preferences": "data/preferences.jsonl",
        "held_out": cfg.held_out,
        "end_of_turn": cfg.end_of_turn,
        "attention": cfg.attention,
        "trainer": trl.arguments(cfg, processes, "reward") | own,
        "lora": trl.lora(cfg.lora) if cfg.method == "lora" else None,
    }


def divided(pairs: Sequence[Pair], share: float, seed: int, place: str) -> tuple[list[Pair], list[Pair]]:
    """(pairs to train on, held-out pairs): a share of the prompts, all pairs of a prompt on one side."""
    prompts = sorted({_prompt(pair) for pair in pairs})
    if len(prompts) < 2:
        raise SystemExit(
            f"{place}: pairs of one prompt, where a reward model needs two, one of them held out: raise preferences.samples "
            "or give more data"
        )
    count = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    held = set(random.Random(seed).sample(prompts, count))
    return [pair for pair in pairs if _prompt(pair) not in held], [pair for pair in pairs if _prompt(pair) in held]


def trainer(run: Config) -> Any:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import set_seed
    from trl import RewardTrainer

    arguments, tokenizer = trl.settings(run), padded(trl.tokenizer(run["model"]), run["end_of_turn"])
    # Without an adapter it is the weights themselves that small steps must not vanish in.
    dtype = torch.bfloat16 if arguments.bf16 and run["lora"] else torch.float32
    # The Trainer seeds too late: the score is drawn while the model is being loaded.
    set_seed(arguments.seed)
    model = classifier(run["model"], dtype, run["attention"])
    pairs = preference_trainers.pairs(Path(run["preferences"]), "reward", 1)
    parts = divided(pairs, run["held_out"], arguments.seed, run["preferences"])
    # That no held-out pair fits would otherwise come out after the training.
    rows, _ = (encoded(part, tokenizer, arguments.max_length) for part in parts)
    made = RewardTrainer(
        model,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=run["lora"] and LoraConfig(task_type="SEQ_CLS", **run["lora"]),
    )
    for weight in made.model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.float32)  # the score's too, which PEFT leaves as the model has it
    return made


def classifier(folder: str | Path, dtype: Any, attention: str = "sdpa") -> Any:
    """A model with one score in the place of its vocabulary, which is drawn anew where `folder` has none."""
    from transformers import AutoModelForSequenceClassification
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    with suppress_seqcls_warning():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=1, dtype=dtype, attn_implementation=attention
        )
    model.generation_config = None  # which base_model.save looks for in any model
    return model


def padded(tokenizer: Any, end_of_turn: str | None) -> Any:
    """The tokenizer with its end of turn as EOS, and padding that is another token: a score is read at the last token before it."""
    tokenizer.eos_token = end_of_turn or tokenizer.eos_token
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        added = sorted(tokenizer.get_added_vocab().items(), key=lambda item: item[1])
        free = [token for token, _ in added if token not in (tokenizer.eos_token, tokenizer.bos_token)]
        unnamed = [token for token in free if token not in tokenizer.chat_template]
        if not unnamed:
            raise SystemExit(
                "reward: the tokenizer has no special token to pad with but those of its chats: add a pad_token"
            )
        tokenizer.pad_token = unnamed[0]
    return tokenizer


def encoded(pairs: Sequence[Pair], tokenizer: Any, limit: int) -> list[dict[str, list[int]]]:
    """Token ids of the prompt with each answer, up to the end of its turn, of the pairs that fit."""
    return [
        {f"{side}_ids": _ids(tokenizer, texts["prompt"] + texts[side]) for side in SIDES}
        for texts in fitting(pairs, tokenizer, limit)
    ]


def fitting(pairs: Sequence[Pair], tokenizer: Any, limit: int) -> list[dict[str, str]]:
    """The pairs of up to `limit` tokens, as the chat template renders them."""
    rendered = [preference_trainers.texts(pair, tokenizer) for pair in pairs]
    kept = preference_trainers.fitting(preference_trainers.lengths(rendered, tokenizer), limit, "reward")
    return [rendered[number] for number in kept]


def write(config: Config, trained: Path, adapter: Path, target: Path, pairs: Sequence[Pair]) -> dict[str, float]:
    """The trained model as a bf16 folder: its start with `adapter` merged in float32, or what the trainer left as it is.

    Returns how far the scores of answers in `pairs` are from those of start + adapter; exits if that is not what was trained.
    """
    import torch
    from transformers import set_seed

    tokenizer = padded(trl.tokenizer(config["model"]), config["end_of_turn"])
    if not config["lora"]:
        _save(classifier(trained, torch.float32), tokenizer, target)
        return {}
    set_seed(config["trainer"]["seed"])  # the score that training began with, which is what the adapter is held against
    start = Path(config["model"])
    adapted = adapters.attached(classifier(start, torch.float32), adapter, start)
    adapted.config.pad_token_id = tokenizer.pad_token_id  # before which a score is read
    answers = compared(pairs, tokenizer)
    reference = scores(adapted, answers)
    with adapted.disable_adapter():
        found = {"adapter": scores(adapted, answers)}
    merged = adapted.merge_and_unload()
    found["sum"] = scores(merged, answers)
    _save(merged, tokenizer, target)
    del adapted, merged  # the float32 weights of one model at a time
    found["bf16"] = scores(classifier(target, torch.float32), answers)
    figures = {f"merge_{name}_max": float((reference - other).abs().max()) for name, other in found.items()}
    require_merged(figures, target)
    return figures | {"merge_scores": len(answers)}


def compared(pairs: Sequence[Pair], tokenizer: Any) -> list[list[int]]:
    """Token ids of both answers, behind their prompt, of as many pairs as merging compares rows, and no longer than those."""
    rendered = [preference_trainers.texts(pair, tokenizer) for pair in pairs[: merging.ROWS]]
    return [_ids(tokenizer, row["prompt"] + row[side])[-merging.TOKENS :] for row in rendered for side in SIDES]


def scores(model: Any, answers: Sequence[Sequence[int]]) -> "Tensor":
    """(answers,): the reward of each, in float32."""
    import torch

    with torch.inference_mode():
        return torch.cat([model(input_ids=torch.tensor([ids])).logits[0].float() for ids in answers])


def require_merged(found: dict[str, float], target: Path) -> None:
    """Exit where the scores of a merged model differ by more than float32 and bf16 explain."""
    allowed = merging.SUM_NOISE + merging.SUM_SHARE * found["merge_adapter_max"]
    if not found["merge_sum_max"] <= allowed:
        raise SystemExit(
            f"{target}: summed in float32, its scores differ from base + adapter by up to {found['merge_sum_max']:.2g}, expected "
            f"at most {allowed:.2g}: PEFT merges a layer otherwise than it runs it: leave the option of `lora` out that does so"
        )
    if not found["merge_bf16_max"] <= ROUNDING:
        raise SystemExit(
            f"{target}: as written in bf16 its scores are up to {found['merge_bf16_max']:.2g} from base + adapter, expected at "
            f"most {ROUNDING:.2g}: the weights do not bear rounding to bf16: lower reward.learning_rate"
        )


def margins(folder: Path, pairs: Sequence[Pair], limit: int, batch: int) -> list[float]:
    """The reward of the chosen answer less that of the rejected one, of each pair that fits, by the model in `folder`."""
    import torch

    tokenizer = trl.tokenizer(str(folder))
    tokenizer.padding_side = "right"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = classifier(folder, torch.float32).to(device).eval()
    rows = encoded(pairs, tokenizer, limit)
    found: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(rows), batch):
            part = rows[start : start + batch]
            ids = [row[f"{side}_ids"] for side in SIDES for row in part]
            scores = model(**tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)).logits.squeeze(-1)
            chosen, rejected = scores.chunk(2)
            found += (chosen - rejected).tolist()
    return found


def measured(margins: Sequence[float], log: Log, confidence: float, seed: int) -> dict[str, float]:
    """Accuracy and margin on held-out pairs with their intervals, and on the last tenth of the steps."""
    accuracy = intervals.rate("accuracy", [margin > 0 for margin in margins], confidence)
    margin = intervals.mean("margin", margins, confidence, seed)
    return accuracy | margin | trl.last_tenth(log, CURVES) | {"held_out": len(margins)}


def _save(model: Any, tokenizer: Any, target: Path) -> None:
    model.config.pad_token_id = tokenizer.pad_token_id
    base_model.save(model, tokenizer, target)


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _prompt(pair: Pair) -> str:
    return json.dumps(pair["prompt"], sort_keys=True)
