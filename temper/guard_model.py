"""A guard model behind an endpoint, measured on labelled prompts as it would be asked about them in service."""

import asyncio
from collections.abc import Sequence

from temper import guard_training, probes
from temper.guard import FAILED, Asked, Finding, Guard
from temper.records import Row

AT_ONCE = 8


def measured(cfg: Guard, rows: Sequence[Row], number: int, confidence: float, seed: int) -> dict[str, float]:
    """`asked_recall`, … of `number` of the prompts; exits when the endpoint does not answer, for that would be no verdict."""
    if cfg.endpoint is None:
        raise SystemExit("guard.asked: has no endpoint: choose a guard with one (serve/guard@guard.asked=llama-guard)")
    cfg.check()
    sample = probes.chosen(rows, number, seed)
    found = asyncio.run(_found(Asked(cfg.endpoint), sample))
    if failed := next((one for one in found if one and one.verdict == FAILED), None):
        raise SystemExit(f"guard.asked.endpoint: {failed.rule}: start what serves it at {cfg.endpoint.base_url}")
    blocked = {row["id"]: one is not None for row, one in zip(sample, found, strict=True)}
    return {"asked_n": len(sample)} | guard_training.measured("asked", blocked, sample, confidence)


async def _found(asked: Asked, rows: Sequence[Row]) -> list[Finding | None]:
    slots = asyncio.Semaphore(AT_ONCE)

    async def one(row: Row) -> Finding | None:
        async with slots:
            return await asked.find([{"role": "user", "content": row["text"]}])

    return list(await asyncio.gather(*map(one, rows)))
