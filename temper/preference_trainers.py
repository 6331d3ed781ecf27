"""DPO, KTO and ORPO: sections of params.yaml as TRL's trainers take them, and these trainers over pairs of answers."""

import json
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from temper import records, trl
from temper.trl import Config, Log

Pair = dict[str, Any]
SIDES = ("chosen", "rejected")
ANSWERS = (*SIDES, "completion")
# What TRL's DPO and KTO trainers know, which look at the name in their first step only, and what its CPO trainer knows, which
# keeps no reference.
DPO_LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
REFERENCE_FREE_LOSSES = ("sigmoid", "hinge", "ipo", "simpo")
KTO_LOSSES = ("kto", "apo_zero_unpaired")
# CPO's and ORPO's trainers collate columns that the model itself does not take.
TEXTS = {"remove_unused_columns": False}
# Metrics of a run, by what the trainers call them: implicit rewards (Rafailov et al. 2023, section 4) and log-probabilities of
# answers, summed over tokens by DPO and KTO and averaged by ORPO.
LOGPS = {"chosen_logp": "logps/chosen", "rejected_logp": "logps/rejected"}
REWARDS = {"reward_margin": "rewards/margins", "reward_accuracy": "rewards/accuracies", **LOGPS}
KTO_REWARDS = {"reward_chosen": "rewards/chosen", "reward_rejected": "rewards/rejected", "kl": "kl", **LOGPS}


def render_dpo(cfg: Any, start: Path, processes: int) -> Config:
    """What DPOConfig and LoraConfig take for section `dpo`; CPOConfig where no reference is kept."""
    config = _rendered(cfg, start, processes, "dpo")
    if not cfg.reference:
        config["trainer"] |= reference_free(cfg)
        names = {"builder": "temper.preference_trainers:cpo", "settings": "trl.experimental.cpo:CPOConfig"}
    else:
        config["trainer"] |= losses(cfg)
        names = {"builder": "temper.preference_trainers:dpo", "settings": "trl:DPOConfig"}
    return config | names


def losses(cfg: Any) -> Config:
    """The preference loss, and beside it the cross-entropy of chosen answers where it has a weight."""
    known(cfg.loss, DPO_LOSSES, "dpo")
    highest = {"robust": 0.5}.get(cfg.loss, 1.0)
    if not 0 <= cfg.label_smoothing < highest or (cfg.loss == "exo_pair" and not cfg.label_smoothing):
        raise SystemExit(
            f"dpo.label_smoothing is {cfg.label_smoothing}, expected 0 to {highest} of loss '{cfg.loss}' "
            "(exo_pair wants more than 0: 0.001): correct it in conf/dpo"
        )
    own = {"label_smoothing": cfg.label_smoothing, "ld_alpha": cfg.ld_alpha}
    if not cfg.sft_weight:
        return own | {"loss_type": [cfg.loss]}
    return own | {"loss_type": [cfg.loss, "sft"], "loss_weights": [1.0, cfg.sft_weight]}


def reference_free(cfg: Any) -> Config:
    """The losses that look at the policy alone: CPO (Xu et al. 2024, arXiv:2401.08417) and SimPO (Meng et al. 2024, 2405.14734)."""
    known(cfg.loss, REFERENCE_FREE_LOSSES, "dpo")
    if cfg.ld_alpha is not None:
        raise SystemExit(
            "dpo.ld_alpha: TRL has it for losses with a reference only: set it to null or dpo.reference to true"
        )
    return TEXTS | {
        "loss_type": cfg.loss,
        "cpo_alpha": cfg.sft_weight,
        "simpo_gamma": cfg.target_margin,
        "label_smoothing": cfg.label_smoothing,
    }


def render_kto(cfg: Any, start: Path, processes: int, answers: Sequence[Pair]) -> Config:
    """What KTOConfig and LoraConfig take for section `kto`, with the weights that the number of answers asks for."""
    known(cfg.loss, KTO_LOSSES, "kto")
    if cfg.loss == "kto" and cfg.micro_batch < 2:
        raise SystemExit("kto.micro_batch is 1: the KL is estimated between neighbours: raise it to 2 or more in conf/")
    config = _rendered(cfg, start, processes, "kto")
    config["trainer"] |= {"loss_type": cfg.loss, **weights(answers)}
    return config | {"builder": "temper.preference_trainers:kto", "settings": "trl:KTOConfig"}


def weights(answers: Sequence[Pair]) -> Config:
    """The rarer kind weighs as much more as it is rarer (Ethayarajh et al. 2024, arXiv:2402.01306, equation 8)."""
    good = sum(row["label"] for row in answers)
    bad = len(answers) - good
    if not (good and bad):
        raise SystemExit(
            f"kto: {good} answers to be preferred and {bad} others are no longer than kto.max_length, expected some of each: "
            "raise dpo.max_length in conf/dpo, which kto follows"
        )
    return {"desirable_weight": max(1.0, bad / good), "undesirable_weight": max(1.0, good / bad)}


def render_orpo(cfg: Any, start: Path, processes: int) -> Config:
    """What ORPOConfig and LoraConfig take for section `orpo`."""
    names = {"builder": "temper.preference_trainers:orpo", "settings": "trl.experimental.orpo:ORPOConfig"}
    config = _rendered(cfg, start, processes, "orpo")
    config["trainer"] |= TEXTS
    return config | names


def known(loss: str, names: tuple[str, ...], section: str) -> None:
    if loss not in names:
        raise SystemExit(f"{section}.loss is '{loss}', expected {', '.join(names)}: correct it in conf/{section}")


def pairs(path: Path, section: str, global_batch: int) -> list[Pair]:
    """The preference rows as TRL takes them: prompt, chosen and rejected, each a list of messages; at least one step's worth."""
    rows = [{key: row[key] for key in ("prompt", *SIDES)} for row in records.read(path)]
    if not rows:
        raise SystemExit(f"{path}: no pairs to train on: raise preferences.samples or preferences.temperature in conf/")
    require_a_step(len(rows), str(path), "pairs", section, global_batch)
    return rows


def require_a_step(count: int, place: str, what: str, section: str, global_batch: int) -> None:
    """A step of fewer rows than was asked for would pass in silence."""
    if count < global_batch:
        raise SystemExit(
            f"{place}: {count} {what}, fewer than a step of {section} takes ({section}.global_batch is {global_batch}): "
            f"raise preferences.samples or dpo.max_length, give more data, or lower {section}.global_batch in conf/"
        )


def unpaired(rows: Sequence[Pair], seed: int) -> list[Pair]:
    """Each answer by itself, once, with whether it was chosen (`label`), in seeded order: TRL's KTO trainer shuffles nothing."""
    answers = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"} for row in rows for side in SIDES
    ]
    once = list({json.dumps(row, sort_keys=True): row for row in answers}.values())
    random.Random(seed).shuffle(once)
    return once


def texts(row: Pair, tokenizer: Any) -> dict[str, str]:
    """`prompt` and each answer as the chat template renders them, the answers up to their end of turn."""
    from trl import apply_chat_template

    rendered = apply_chat_template(row, tokenizer)
    return rendered | {side: _ended(rendered[side], tokenizer.eos_token) for side in ANSWERS if side in rendered}


def lengths(rendered: Sequence[dict[str, str]], tokenizer: Any) -> list[tuple[int, ...]]:
    """Tokens of the prompt with each answer."""
    sides = [side for side in ANSWERS if side in rendered[0]]
    each = [
        [
            len(ids)
            for ids in tokenizer([row["prompt"] + row[side] for row in rendered], add_special_tokens=False)["input_ids"]
        ]
        for side in sides
    ]
    return list(zip(*each, strict=True))


def fitting(sizes: Sequence[tuple[int, ...]], limit: int, section: str) -> list[int]:
    """Which rows are no longer than max_length; says how many leave for it, and exits when all do."""
    whole, what = [number for number, size in enumerate(sizes) if max(size) <= limit], rows_of(section)
    if not whole:
        raise SystemExit(
            f"{section}: all {len(sizes)} {what} are longer than {section}.max_length ({limit} tokens; the shortest has "
            f"{min(map(max, sizes))}): raise dpo.max_length in conf/dpo, which the others follow"
        )
    longer = len(sizes) - len(whole)
    if longer and os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            f"{section}: {longer} of {len(sizes)} {what} are left out at {section}.max_length ({limit} tokens; the longest has "
            f"{max(map(max, sizes))})",
            flush=True,
        )
    return whole


def rows_of(section: str) -> str:
    return "answers" if section == "kto" else "pairs"


def leave_out(config: Config, rows: Sequence[Pair], global_batch: int) -> list[Pair]:
    """The rows that fit into max_length; the numbers of the others are noted in `config`, for its trainer to skip.

    TRL's trainers would cut their answers, and with them the end of the turn, or drop them without a word. Exits when what is
    left makes no step.
    """
    section, limit, tokenizer = config["stage"], config["trainer"]["max_length"], trl.tokenizer(config["model"])
    whole = fitting(lengths([texts(row, tokenizer) for row in rows], tokenizer), limit, section)
    require_a_step(len(whole), f"{config['preferences']} up to {limit} tokens", rows_of(section), section, global_batch)
    config["left_out"] = sorted(set(range(len(rows))) - set(whole))
    return [rows[number] for number in whole]


def dpo(run: Config) -> Any:
    from temper.dpo_trainer import Trainer

    return Trainer(train_dataset=_dataset(_kept(run, _pairs(run))), **trl.policy(run))


def kto(run: Config) -> Any:
    from trl import KTOTrainer

    rows = unpaired(_pairs(run), run["trainer"]["seed"])
    return KTOTrainer(train_dataset=_dataset(_kept(run, rows)), **trl.policy(run))


def cpo(run: Config) -> Any:
    from trl.experimental.cpo import CPOTrainer

    parts = trl.policy(run)
    return CPOTrainer(train_dataset=_dataset(_texts(run, parts["processing_class"])), **parts)


def orpo(run: Config) -> Any:
    from trl.experimental.orpo import ORPOTrainer

    parts = trl.policy(run)
    return ORPOTrainer(train_dataset=_dataset(_texts(run, parts["processing_class"])), **parts)


def rewards(log: Log) -> dict[str, float]:
    """Margin and accuracy of the implicit rewards and log-probabilities of both answers, over the last tenth of the steps."""
    return trl.last_tenth(log, REWARDS)


def kto_rewards(log: Log) -> dict[str, float]:
    """Rewards of both kinds of answers, their margin, and the KL estimate, over the last tenth of the steps that have them."""
    means = trl.last_tenth(log, KTO_REWARDS)
    return means | {"reward_margin": means["reward_chosen"] - means["reward_rejected"]}


def _rendered(cfg: Any, start: Path, processes: int, section: str) -> Config:
    shared = {"beta": cfg.beta, "max_length": cfg.max_length}
    return {
        "stage": section,
        "model": str(start),
        "preferences": "data/preferences.jsonl",
        "left_out": [],
        "attention": cfg.attention,
        "trainer": trl.arguments(cfg, processes, section) | shared,
        "lora": trl.lora(cfg.lora),
    }


def _pairs(run: Config) -> list[Pair]:
    return pairs(Path(run["preferences"]), run["stage"], 1)


def _kept(run: Config, rows: Sequence[Pair]) -> list[Pair]:
    left_out = set(run["left_out"])
    return [row for number, row in enumerate(rows) if number not in left_out]


def _texts(run: Config, tokenizer: Any) -> list[dict[str, str]]:
    """Pairs as text that ends where the turn does: to any other, CPO and ORPO as TRL has them append the EOS."""
    return [texts(row, tokenizer) for row in _kept(run, _pairs(run))]


def _ended(answer: str, end: str | None) -> str:
    """`answer` up to its last end of turn: what templates write after it is no part of the turn."""
    return answer[: answer.rindex(end) + len(end)] if end and end in answer else answer


def _dataset(rows: Sequence[Pair]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(list(rows))
