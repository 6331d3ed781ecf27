"""Whether greedy answers with a draft are the model's own: speculation may change how fast tokens come, never which.

Equal text is too strict a test. A model that checks several drafted tokens in one pass adds the same numbers in another order than
one that takes a token at a time, and where two tokens are as good as equally likely, the last bits decide; all that follows then
differs too. So each token of an answer is held against the model's own distribution after the tokens before it, from a pass over
the whole answer in which nothing is drafted. Its gap is the log-probability of the likeliest token less its own, in nats: 0 for
the greedy choice. An answer is lossless where no gap is wider than a tie.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from temper import scrape
from temper.load import Chat

AT_ONCE = 8  # answers, so that drafts are checked in batches, as under load


@dataclass(frozen=True)
class Answer:
    prompt: list[int]
    tokens: list[int]


def held(
    url: str, model: str, sets: Mapping[str, Sequence[Chat | str]], max_tokens: int, tie: float
) -> dict[str, float]:
    """`lossless` (1 or 0) of greedy answers to all chats, and to all texts to go on from, of `sets`, the widest gap, and how many
    of all tokens were ties: not the likeliest, and as good as it. With `<set>_…`, what the draft was worth in the answers to each:
    unlike those of a load of fixed length, they end where the model ends them, and do not go on in circles that any draft foresees.
    """
    import httpx

    answers: list[Answer] = []
    worth: dict[str, float] = {}
    with httpx.Client(base_url=url, timeout=600, trust_env=False) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        for name, prompts in sets.items():
            before = scrape.read(url)
            answers += pool.map(lambda prompt: greedy(client, model, prompt, max_tokens), prompts)
            gained = scrape.speculation(scrape.read(url).since(before))
            worth |= {f"{name}_{key}": value for key, value in gained.items()}
        found = list(pool.map(lambda answer: gaps(client, model, answer), answers))
    return figures(found, tie) | worth


def figures(found: Iterable[list[float]], tie: float) -> dict[str, float]:
    """Of the gaps of answers."""
    every = [gap for of_answer in found for gap in of_answer]
    widest = max(every, default=0.0)
    ties = sum(0 < gap <= tie for gap in every)
    return {
        "lossless": int(widest <= tie),
        "lossless_tokens": len(every),
        "lossless_ties": ties,
        "lossless_gap": widest,
    }


def require(found: dict[str, float], tie: float, place: str) -> None:
    """Exit when answers are not the model's own."""
    if not found["lossless"]:
        raise SystemExit(
            f"{place}: with speculation, a token of an answer is {found['lossless_gap']:.3g} nats less likely than the model's own "
            f"choice, and {tie:g} are a tie: serve without it, or raise speculation.tie in conf/bench where the dtype is coarser"
        )


def greedy(client: Any, model: str, prompt: Chat | str, max_tokens: int) -> Answer:
    asked = {"model": model, "temperature": 0, "max_tokens": max_tokens, "return_token_ids": True}
    if isinstance(prompt, str):
        (choice,) = answered(client, "/v1/completions", asked | {"prompt": prompt})["choices"]
        return Answer(choice["prompt_token_ids"], choice["token_ids"])
    reply = answered(client, "/v1/chat/completions", asked | {"messages": prompt})
    return Answer(reply["prompt_token_ids"], reply["choices"][0]["token_ids"])


def gaps(client: Any, model: str, answer: Answer) -> list[float]:
    """Nats by which each token of an answer is less likely than the likeliest, by the model's pass over all of them."""
    whole = answer.prompt + answer.tokens
    asked = {"model": model, "prompt": whole, "temperature": 0, "max_tokens": 1, "prompt_logprobs": 1}
    reply = answered(client, "/v1/completions", asked)
    places = reply["choices"][0]["prompt_logprobs"][len(answer.prompt) :]
    return [gap(place, token) for place, token in zip(places, answer.tokens, strict=True)]


def gap(place: dict[str, dict[str, float]], token: int) -> float:
    """At one place, whose likeliest token and the one that stands there are given by id."""
    return max(one["logprob"] for one in place.values()) - place[str(token)]["logprob"]


def answered(client: Any, path: str, asked: dict[str, Any]) -> Any:
    reply = client.post(path, json=asked)
    if reply.status_code != 200:
        raise SystemExit(f"{path}: status {reply.status_code}: {' '.join(reply.text.split())[:300]}")
    return reply.json()
