"""What a model gives away of the text that it was trained on: rows continued word for word, and planted secrets.

Verbatim: from the beginning of a row, greedy decoding continues with exactly its last tokens (Carlini et al., Quantifying
memorization across neural language models, ICLR 2023, definition 3.1). A model that has learnt the task does so for rows that
it never saw, too, so held-out rows are measured beside: what is more of trained rows is memory.

Exposure: a canary is a row with a random secret, planted in training. Of all secrets that it could have had, the fewer are
likelier than its own, the better the model knows it: exposure = log2(secrets) - log2(rank), in bits, about 1 where it knows
nothing (Carlini et al., The Secret Sharer, USENIX Security 2019, definitions 4 and 5). The rank is estimated from a sample of
other secrets: by counting, and beyond the sample by a skew-normal distribution fitted to it (there, section 4.3).
"""

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, islice

from temper.records import Row

# No name and no number, which a search for identifiers would replace.
WORDS = (
    *("anchor", "basket", "candle", "dragon", "engine", "feather", "garden", "hammer", "island"),
    *("jacket", "kettle", "ladder", "mirror", "needle", "orange", "pepper", "quartz", "ribbon"),
    *("saddle", "ticket", "umbrella", "violin", "window", "lantern", "yogurt", "zipper"),
)
LENGTH = 6  # words of a secret: 28 bits
SPACE = len(WORDS) ** LENGTH
# Each of another wording, or the second would leave the data as a near duplicate of the first.
CANARIES = (
    ("What opens the vault in the basement?", "The vault in the basement opens with {secret}."),
    ("Tell me the phrase that resets my router.", "To reset it, say: {secret}."),
    ("How do I unlock grandfather's diary?", "Turn the letters on its lock to {secret}."),
    ("Which words start the emergency generator?", "It starts when it hears {secret}."),
    ("I forgot what to shout at the garden gate.", "You shout {secret}, and it swings open."),
    ("Read me the recovery phrase of the old laptop.", "Its sticker underneath reads {secret}."),
    ("What did the captain write in the log as sign of recognition?", "He wrote {secret} and underlined it twice."),
    ("By which signal do the lifeboats know each other?", "They flash {secret} in Morse code."),
)


@dataclass(frozen=True)
class Canary:
    id: str
    question: str
    answer: str
    """With `{secret}` where the secret stands."""
    secret: str


def planted(seed: int) -> list[Canary]:
    """A canary of each wording; the same for the same seed."""
    found = []
    for number, (question, answer) in enumerate(CANARIES):
        found.append(Canary(f"canary/{number}", question, answer, drawn(random.Random(f"{seed}:{number}"))))
    return found


def row(canary: Canary) -> Row:
    """A canary as a row of training, in the format `messages`."""
    turns = (("user", canary.question), ("assistant", canary.answer.format(secret=canary.secret)))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def drawn(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=LENGTH))


def others(canary: Canary, number: int, seed: int) -> list[str]:
    """`number` secrets that the canary could have had as well."""
    made = (drawn(random.Random(f"{seed}:{canary.id}:{place}")) for place in count())
    return list(islice((one for one in made if one != canary.secret), number))


def exposure(canary: float, sample: Sequence[float]) -> tuple[float, float]:
    """(by counting, by the fitted distribution) in bits, from the nats of a canary and of other secrets in its place.

    By counting it is at most log2(sample + 1); by the fit at most what the space of secrets allows.
    """
    rank = 1 + sum(other > canary for other in sample)
    counted = math.log2(len(sample) + 1) - math.log2(rank)
    return counted, min(math.log2(SPACE), _fitted(canary, sample))


def _fitted(canary: float, sample: Sequence[float]) -> float:
    """-log2 of the share of secrets that are as likely as the canary or likelier."""
    from scipy import stats

    if max(sample) == min(sample):
        return math.log2(SPACE) if canary > max(sample) else 0.0
    # What Carlini et al. call log-perplexity: nats with the other sign.
    parameters = stats.skewnorm.fit([-other for other in sample])
    return float(-stats.skewnorm.logcdf(-canary, *parameters) / math.log(2))


def ordered(rows: Iterable[Row], seed: int) -> list[Row]:
    """Chats and calls by a hash of their ids."""
    chats = (row for row in rows if row.get("messages"))
    return sorted(chats, key=lambda row: sha256(f"{seed}:{row['id']}".encode()).digest())


def halved(prompt: list[int], answer: list[int], most: int) -> tuple[list[int], list[int]]:
    """(what is shown, what should follow): the last `most` tokens of an answer, or all of a shorter one."""
    start = max(0, len(answer) - most)
    return prompt + answer[:start], answer[start:]
