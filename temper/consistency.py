"""How sure a model is of an answer: the entropy of what it says when it is asked several times.

Answers are taken together when they mean the same: calls when they are the same call, texts when they are the same words or
close enough as embeddings. The entropy over these classes is self-consistency (Wang et al., ICLR 2023) read as uncertainty, which
is semantic entropy in its discrete form (Farquhar et al., Nature 630, 2024). Classes form greedily: an answer joins the first
class whose first member it matches.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from temper import calls

Embed = Callable[[Sequence[str]], NDArray[Any]]


def canonical(answer: str) -> str:
    """What equal answers have in common: a call with its keys sorted; of a text its words, whatever their case."""
    try:
        return json.dumps(calls.parse(answer), sort_keys=True, ensure_ascii=False)
    except ValueError:
        return " ".join(answer.casefold().split())


def is_call(answer: str) -> bool:
    """Whether it is a call or null."""
    try:
        calls.parse(answer)
    except ValueError:
        return False
    return True


def classes(groups: Sequence[Sequence[str]], embed: Embed, least_cosine: float) -> list[list[int]]:
    """For each group of answers to one prompt the class of each answer, classes numbered as they appear."""
    texts = sorted({canonical(one) for group in groups for one in group if not is_call(one) and _varies(group)})
    vectors = dict(zip(texts, embed(texts), strict=True)) if texts else {}
    return [_classed([canonical(one) for one in group], vectors, least_cosine) for group in groups]


def entropy(of: Sequence[int]) -> float:
    """Of the classes of N answers, in [0, 1]: 0 where all are one, 1 where no two are alike (nats, divided by ln N)."""
    shares = [count / len(of) for count in Counter(of).values()]
    return -sum(share * math.log(share) for share in shares) / math.log(len(of)) if len(shares) > 1 else 0.0


def majority(answers: Sequence[str], of: Sequence[int]) -> str:
    """The first answer of the largest class; of classes as large, of the one that comes first."""
    largest = max(dict.fromkeys(of), key=Counter(of).__getitem__)
    return answers[list(of).index(largest)]


def _varies(group: Sequence[str]) -> bool:
    """Whether words alone leave it open if the answers mean the same."""
    return len({canonical(one) for one in group}) > 1


def _classed(answers: Sequence[str], vectors: dict[str, Any], least_cosine: float) -> list[int]:
    heads: list[str] = []
    found = []
    for answer in answers:
        number = next((place for place, head in enumerate(heads) if _same(answer, head, vectors, least_cosine)), None)
        if number is None:
            number = len(heads)
            heads.append(answer)
        found.append(number)
    return found


def _same(one: str, other: str, vectors: dict[str, Any], least_cosine: float) -> bool:
    if one == other:
        return True
    near = one in vectors and other in vectors
    return near and float(np.dot(vectors[one], vectors[other])) >= least_cosine
