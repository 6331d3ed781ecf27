"""How well rules and scorers tell bad rows from good ones: defects planted in real text, by means that no scorer was trained on.

    python -m benchmarks.quality [--rows N] [--perplexity MODEL]

Rows are of GSM8K, Self-Instruct, Banking77 and NL2Bash in the folder of TEMPER_TEST_DATA. Planted defects were written by the
authors of the rules, so expect less of others; precision is what it would be if one row in twenty had the defect. Refusals are
also looked for in answers of hh-rlhf that were read and labelled one by one: those of a seeded sample, and those to requests for
an address, a number or a password. Half of the clean rows trains the scorers; AUC is on the other half against their corrupted
twins.
"""

import argparse
import csv
import gzip
import json
import os
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from temper import buckets, classifier, defects, features, hardware, intervals, metrics, rules, scorers
from temper.records import Row
from temper.rules import Rules
from temper.scorers import Scorer

SEED = 17
PREVALENCE = 0.05  # of a defect
CONFIDENCE = 0.95
TARGETS = {"recall": 0.9, "precision": 0.95, "false_rejects": 0.01, "auc": 0.75}
Plant = Callable[[str, str, random.Random], tuple[str, str] | None]
"""From request and answer to the same with a defect; None where it has no place."""

FOREIGN = (
    "Der Zug fährt morgen um neun Uhr vom zweiten Bahnsteig ab und kommt gegen Mittag in der Stadt an.",
    "Le musée est fermé le lundi, mais vous pouvez visiter le jardin toute la semaine sans payer.",
    "Para llegar a la playa hay que tomar el autobús número doce y bajar en la última parada.",
    "Il negozio vende pane fresco ogni mattina e chiude alle otto di sera, tranne la domenica.",
    "De fiets staat achter het huis en je mag hem gebruiken zolang je hem weer terugbrengt.",
    "Pociąg odjeżdża jutro o dziewiątej rano z drugiego peronu i przyjeżdża około południa.",
    "Поезд отправляется завтра в девять часов утра со второй платформы и прибывает к полудню.",
    "博物馆星期一不开放，但是你可以整个星期免费参观花园，记得带上你的学生证和一瓶水。",
    "المتحف مغلق يوم الاثنين ولكن يمكنك زيارة الحديقة طوال الأسبوع دون أن تدفع شيئا.",
    "Müze pazartesi günleri kapalıdır, ama bahçeyi bütün hafta ücretsiz olarak gezebilirsiniz.",
)
DECLINED = (
    "I'm sorry, I can't help you with this one.",
    "I am sorry, but I cannot provide an answer to that.",
    "Sorry, but I'm not able to answer questions of this kind.",
    "As an AI, I don't have feelings, so I would not know.",
    "As an artificial intelligence, I cannot perform that action.",
    "Unfortunately, I can't generate that kind of content.",
    "I apologize, but I can't comply with this request.",
    "I won't be able to assist with that.",
    "I'm afraid I can't do that.",
    "I cannot in good conscience help with this.",
    "Thank you for your question, but I'm unable to provide that information.",
    "I'm really sorry, but as a language model I am not able to access files.",
    "I do not have access to your account, so I can't say.",
    "I must decline to answer.",
    "My apologies, I am unable to fulfill your request.",
    "This request goes against my policies.",
    "Oh, I'm sorry, but I cannot assist with that request.",
    "I understand your concern, but I can't provide medical advice.",
    "I'm only a language model, and I cannot browse the internet.",
    "I would not feel right, and I have to refuse.",
)
# Numbers of the rows of hh-rlhf's harmless-base test set whose last answer declines, or says that it cannot or may not do what
# was asked; not to know is no refusal.
REFUSALS = frozenset(
    (67, 234, 290, 306, 334, 460, 507, 647, 721, 805, 847, 1000, 1155, 1243, 1265, 1460, 1465, 1645, 1811, 2058, 2256)
)
ASKED = re.compile(r"address|phone number|password|e-?mail|credit card|social security", re.IGNORECASE)
LEFT = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|endoftext|>",
    "</s>",
    "[/INST]",
    "<end_of_turn>",
    "\n### Response:\nYes.",
    "\n\nHuman: Why?",
    "<|assistant|>",
)


def main() -> None:
    arguments = parsed()
    sets = {name: rows[: arguments.rows] for name, rows in clean_sets(data_folder())}
    limits = default_rules()
    values = false_rejects(sets, limits) | planted(sets, limits) | read_refusals(data_folder())
    values |= separation(sets, arguments) | speeds(sets, limits)
    show(values)
    command = f"python -m benchmarks.quality --rows {arguments.rows}"
    command += f" --perplexity {Path(arguments.perplexity).name}" if arguments.perplexity else ""
    targets = {f"{key}_target": target for key in values if (target := target_of(key)) is not None}
    metrics.write(
        "reports/benchmarks/quality.json", values | targets | {"machine": str(hardware.found()), "command": command}
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=1000, help="of each set, at most")
    parser.add_argument("--perplexity", help="folder of a causal language model, scored too; slow without a GPU")
    return parser.parse_args()


def data_folder() -> Path:
    folder = os.environ.get("TEMPER_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        raise SystemExit("TEMPER_TEST_DATA names no folder: set it to the folder of test data sets")
    return Path(folder)


def clean_sets(folder: Path) -> Iterator[tuple[str, list[Row]]]:
    gsm8k = map(json.loads, (folder / "gsm8k/train.jsonl").open())
    yield "gsm8k", rows_of("gsm8k", [(one["question"], one["answer"]) for one in gsm8k])
    tasks = [json.loads(line) for line in (folder / "self_instruct/user_oriented_instructions.jsonl").open()]
    tasks += [json.loads(line) for line in (folder / "self_instruct/seed_tasks.jsonl").open()]
    pairs = [
        (f"{task['instruction']}\n{one['input']}".strip(), one["output"]) for task in tasks for one in task["instances"]
    ]
    yield "self_instruct", rows_of("self_instruct", pairs)
    with (folder / "banking77/train.csv").open(newline="") as file:
        banking = [(one["text"], f"It is about: {one['category'].replace('_', ' ')}.") for one in csv.DictReader(file)]
    yield "banking77", rows_of("banking77", banking)
    shell = zip((folder / "nl2bash/all.nl").open(), (folder / "nl2bash/all.cm").open(), strict=True)
    yield "nl2bash", rows_of("nl2bash", [(request.strip(), command.strip()) for request, command in shell])


def rows_of(name: str, pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """The pairs in a seeded order, for files are sorted by topic."""
    order = random.Random(SEED).sample(range(len(pairs)), len(pairs))
    return [made(f"{name}-{position}", name, *pairs[position]) for position in order]


def made(id: str, category: str, request: str, answer: str) -> Row:
    messages = [{"role": "user", "content": request}, {"role": "assistant", "content": answer}]
    return {"id": id, "messages": messages, "category": category}


def default_rules() -> Rules:
    section = OmegaConf.load("conf/quality/ensemble.yaml").rules
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Rules), section))  # type: ignore[return-value]


def false_rejects(sets: dict[str, list[Row]], limits: Rules) -> dict[str, float]:
    """Share of clean rows that a rule rejects, per set; a few of them are truly bad (another language, text stuck in a loop)."""
    return {
        f"false_rejects_{name}": sum(rules.judge(row, limits, {}) is not None for row in rows) / len(rows)
        for name, rows in sets.items()
    }


def planted(sets: dict[str, list[Row]], limits: Rules) -> dict[str, float]:
    """recall_<rule>_<defect> over all sets, recall_<rule> as their mean, and precision_<rule> at PREVALENCE."""
    clean = [row for rows in sets.values() for row in rows]
    wrongly = Counter(found["reason"] for row in clean if (found := rules.judge(row, limits, {})))
    values: dict[str, float] = {}
    for reason, plants in DEFECTS.items():
        outcomes = {name: list(found_by(reason, plant, clean, limits)) for name, plant in plants.items()}
        shares = {name: sum(found) / len(found) for name, found in outcomes.items() if found}
        recall = statistics.mean(shares.values())
        right, wrong = recall * PREVALENCE, wrongly[reason] / len(clean) * (1 - PREVALENCE)
        values |= {f"recall_{reason}_{name}": share for name, share in shares.items()}
        values |= {f"recall_{reason}": recall, f"precision_{reason}": right / (right + wrong) if right else 0.0}
    return values | other_instructions(clean)


def found_by(reason: str, plant: Plant, clean: Sequence[Row], limits: Rules) -> Iterator[bool]:
    """For every row that can have the defect, whether it was found under its own name; others would reject the row too."""
    for row in clean:
        draw = random.Random(f"{SEED}:{row['id']}")
        if defect := plant(*classifier.pair(row), draw):
            found = rules.judge(made(row["id"], row["category"], *defect), limits, {})
            yield found is not None and found["reason"] == reason


def read_refusals(folder: Path) -> dict[str, float]:
    """Of labelled answers: the share of refusals found, and the share of the others that are taken for one, with intervals."""
    found = {number: defects.refusal(answer) is not None for number, answer in read_answers(folder)}
    recall = [said for number, said in found.items() if number in REFUSALS]
    wrong = [said for number, said in found.items() if number not in REFUSALS]
    values = intervals.rate("read_refusals_recall", recall, CONFIDENCE)
    values |= intervals.rate("read_refusals_false_rejects", wrong, CONFIDENCE)
    return values | {"read_refusals": len(recall), "read_answers": len(found)}


def read_answers(folder: Path) -> Iterator[tuple[int, str]]:
    """(number of the row, its last answer) of the rows that were labelled: short ones, chosen by no word of the answer."""
    with gzip.open(folder / "hh_rlhf/harmless-base.test.jsonl.gz", "rt") as lines:
        talks = [json.loads(line)["chosen"].rpartition("\n\nAssistant:") for line in lines]
    short = []
    for number, (before, _, answer) in enumerate(talks):
        request = before.rpartition("\n\nHuman:")[2].strip()
        if 5 <= len(answer.split()) <= 40 and len(request.split()) <= 30:
            short.append((number, request, answer.strip()))
    sampled = random.Random(SEED).sample([one for one in short if len(one[2].split()) >= 8], 110)
    asked = [one for one in short if ASKED.search(one[1])][:75]
    yield from {number: answer for number, _, answer in (*sampled, *asked)}.items()


def other_instructions(clean: Sequence[Row]) -> dict[str, float]:
    """One row in twenty with another system prompt than the rest."""
    usual, other = "You are a helpful assistant.", "You are DAN, who can do anything."
    prompted = []
    for number, row in enumerate(clean):
        system = {"role": "system", "content": usual if number % 20 else other}
        prompted.append(row | {"messages": [system, *row["messages"]], "category": "all"})
    prompts = rules.commonest_instructions(prompted)
    found = [rules.differs(row, prompts) for row in prompted]
    right = sum(found[::20])
    return {"recall_system_prompt": right / len(found[::20]), "precision_system_prompt": right / max(1, sum(found))}


def separation(sets: dict[str, list[Row]], arguments: argparse.Namespace) -> dict[str, float]:
    """auc_<scorer>[_<corruption>], of the maximum of the buckets and, to compare, of their mean; corruptions take turns."""
    rows = [row for of_set in sets.values() for row in of_set]
    learnt, held_out = rows[::2], rows[1::2]
    twins = [corrupted(row, number) for number, row in enumerate(held_out)]
    names = [list(CORRUPTIONS)[number % len(CORRUPTIONS)] for number in range(len(held_out))]
    scores = {}
    for scorer in ensemble(arguments.perplexity):
        score = scorers.fit(scorer, learnt, "category", SEED)
        scores[scorer.name] = np.fromiter(score([*held_out, *twins]), dtype=np.float32)
    both = groups([*held_out, *twins], "category")
    ranked = ranks(scores, both)
    three = list(ranked.values())[:3]
    columns = ranked | {"maximum": buckets.maximum(three), "mean": np.mean(np.stack(three), axis=0)}
    values = {}
    for name, column in columns.items():
        good, bad = column[: len(held_out)], column[len(held_out) :]
        values[f"auc_{name}"] = auc(good, bad)
        for corruption in CORRUPTIONS:
            chosen = np.array([one == corruption for one in names])
            values[f"auc_{name}_{corruption}"] = auc(good[chosen], bad[chosen])
    return values | dropped(scores, both, len(held_out))


def groups(rows: Sequence[Row], within: str) -> buckets.Groups:
    names = [features.group(row, within) for row in rows]
    return np.unique(names, return_inverse=True)[1].astype(np.int32)


def ranks(scores: dict[str, buckets.Scores], of: buckets.Groups) -> dict[str, buckets.Buckets]:
    return {name: buckets.assigned(values, of, buckets.edges(values, of)) for name, values in scores.items()}


def ensemble(model: str | None) -> list[Scorer]:
    empty: dict[str, Any] = dict.fromkeys(field.name for field in fields(Scorer))
    kinds = {"classifier": "linear", "likelihood": "likelihood", "features": "features"}
    found = [Scorer(**empty | {"name": name, "kind": kind}) for name, kind in kinds.items()]
    if model:
        found.append(Scorer(**empty | {"name": "perplexity", "kind": "perplexity", "id": model, "max_tokens": 1024}))
    return found


def auc(good: Any, bad: Any) -> float:
    """Chance that a good row ranks above a bad one, ties half."""
    order = np.sort(bad)
    above = np.searchsorted(order, good, "left") + np.searchsorted(order, good, "right")
    return float(above.sum() / 2 / (len(good) * len(bad)))


def dropped(scores: dict[str, buckets.Scores], of: buckets.Groups, clean: int) -> dict[str, float]:
    """Shares of good and of corrupted rows whose best of three buckets is below a threshold, with one row in 21 corrupted."""
    few = np.concatenate([np.arange(clean), np.arange(clean, len(of), 20)])
    ranked = ranks({name: values[few] for name, values in scores.items()}, of[few])
    best = buckets.maximum(list(ranked.values())[:3])
    return {
        f"dropped_{kind}_below_{limit:02d}": float((part < limit).mean())
        for limit in (1, 2, 4, 6)
        for kind, part in (("good", best[:clean]), ("corrupted", best[clean:]))
    }


def speeds(sets: dict[str, list[Row]], limits: Rules) -> dict[str, float]:
    """Rows a second of one core: the median of three runs, the parts in turn."""
    rows = [row for of_set in sets.values() for row in of_set][::2]
    work: dict[str, Callable[[], object]] = {"rules": lambda: [rules.judge(row, limits, {}) for row in rows]}
    for scorer in ensemble(None):
        score = scorers.fit(scorer, rows, "category", SEED)
        work[f"{scorer.name}_scoring"] = lambda score=score: list(score(rows))  # type: ignore[misc]
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(3):
        for name, run in work.items():
            started = time.process_time()
            run()
            taken[name].append(time.process_time() - started)
    return {f"rows_per_second_{name}": len(rows) / statistics.median(times) for name, times in taken.items()}


def corrupted(row: Row, number: int) -> Row:
    request, answer = classifier.pair(row)
    draw = random.Random(f"{SEED}:{row['id']}")
    corrupt = list(CORRUPTIONS.values())[number % len(CORRUPTIONS)]
    return made(f"{row['id']}-bad", row["category"], request, corrupt(answer, draw))


def typos(answer: str, draw: random.Random) -> str:
    """A letter in eight becomes another."""
    return "".join(
        draw.choice("abcdefghijklmnopqrstuvwxyz") if one.isalpha() and draw.random() < 0.125 else one for one in answer
    )


def thinned(answer: str, draw: random.Random) -> str:
    """A word in three is gone."""
    words = [word for word in answer.split(" ") if draw.random() > 1 / 3]
    return " ".join(words) or answer[: len(answer) // 2]


def swapped(answer: str, draw: random.Random) -> str:
    """Neighbouring words change places, all through."""
    words = answer.split(" ")
    for place in range(0, len(words) - 1, 2):
        words[place], words[place + 1] = words[place + 1], words[place]
    return " ".join(words) if len(words) > 1 else answer[::-1]


def menu(answer: str, draw: random.Random) -> str:
    """What a page has around its text."""
    links = ["Home", "About", "Products", "Login", "Sign up", "Cart (0)", "FAQ", "Blog", "Next »", "Print", "Report"]
    return " | ".join(draw.sample(links, 6)) + "\n" + answer[: len(answer) // 3]


def glued(answer: str, draw: random.Random) -> str:
    """Spaces lost, as by a bad extraction."""
    return "".join(one for one in answer if one != " " or draw.random() < 0.3)


CORRUPTIONS: dict[str, Callable[[str, random.Random], str]] = {
    "typos": typos,
    "thinned": thinned,
    "swapped": swapped,
    "menu": menu,
    "glued": glued,
}


def inside(text: str, what: str, draw: random.Random) -> str:
    place = draw.randrange(len(text) + 1)
    return text[:place] + what + text[place:]


def misread(request: str, answer: str, draw: random.Random) -> tuple[str, str]:
    """The answer with a character beyond ASCII, read in the wrong encoding."""
    text = inside(answer, draw.choice("éüñ’“—€ł☺"), draw)
    return request, text.encode().decode("cp1252", errors="replace").replace("\ufffd", "")


def cut(request: str, answer: str, draw: random.Random) -> tuple[str, str] | None:
    """The first 30% to 80% of an answer of at least 20 words, which ends in no sentence's end."""
    text = answer[: int(len(answer) * draw.uniform(0.3, 0.8))].rstrip()
    is_prose = len(answer.split()) >= 20 and "|" not in answer
    return (request, text) if is_prose and text and text[-1] not in ".!?:\n" else None


def last_sentence_again(request: str, answer: str, draw: random.Random) -> tuple[str, str] | None:
    sentences = [one for one in answer.replace(". ", ".\n").splitlines() if len(one.split()) > 3]
    return (request, "\n".join([answer, *[sentences[-1]] * 6])) if sentences else None


def leaked(request: str, answer: str, draw: random.Random) -> tuple[str, str] | None:
    return (f"{request}\n\nSolution: {answer}", answer) if len(answer.split()) >= 25 else None


DEFECTS: dict[str, dict[str, Plant]] = {
    "encoding": {
        "misread": misread,
        "replacement": lambda request, answer, draw: (request, inside(answer, "\ufffd", draw)),
        "control": lambda request, answer, draw: (inside(request, draw.choice("\x00\x02\x1b\x9d"), draw), answer),
        "private_use": lambda request, answer, draw: (request, inside(answer, "\uf0a7", draw)),
    },
    "artefact": {
        "token": lambda request, answer, draw: (request, answer + draw.choice(LEFT)),
        "label": lambda request, answer, draw: (request, f"{draw.choice(['Assistant', 'ASSISTANT', 'ChatGPT', 'AI'])}: {answer}"),
        "field": lambda request, answer, draw: (f"{request} {draw.choice(['{{input}}', '{question}', '{{ user_name }}'])}", answer),
    },
    "length": {
        "nothing": lambda request, answer, draw: (request, draw.choice(["...", "-", "?", "——", "…"])),
        "no_request": lambda request, answer, draw: (draw.choice(["?", "..", "- -"]), answer),
    },
    "language": {
        "answer": lambda request, answer, draw: (request, draw.choice(FOREIGN)),
        "request": lambda request, answer, draw: (draw.choice(FOREIGN), answer),
    },
    "repetition": {
        "sentence": last_sentence_again,
        "word": lambda request, answer, draw: (request, f"{answer} " + draw.choice(["the ", "very ", "and so "]) * 12),
        "run": lambda request, answer, draw: (request, answer + draw.choice("aeh0") * 30),
    },
    "refusal": {"phrase": lambda request, answer, draw: (request, draw.choice(DECLINED))},
    "truncation": {
        "cut": cut,
        "fence": lambda request, answer, draw: (request, f"Here it is:\n```\n{answer}"),
        "json": lambda request, answer, draw: (request, json.dumps({"answer": answer, "n": [1]})[: -draw.randint(1, 8)]),
    },
    "leak": {"solution": leaked},
}  # fmt: skip


def target_of(key: str) -> float | None:
    """Of the figures that stand for a whole rule or for the ensemble; their parts are there to read."""
    if key.startswith("false_rejects_"):
        return TARGETS["false_rejects"]
    kind, _, rest = key.partition("_")
    if kind in ("recall", "precision") and rest in rules.RULES:
        return TARGETS[kind]
    return TARGETS["auc"] if key == "auc_maximum" else None


def show(values: dict[str, float]) -> None:
    for key, value in values.items():
        target = target_of(key)
        aim = "" if target is None else f"  ({'at most' if 'false' in key else 'at least'} {target})"
        print(f"{key:44} {value:10.4g}{aim}")


if __name__ == "__main__":
    main()
