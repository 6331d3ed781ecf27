"""Leak test rows into the training data of a scratch copy, and see the gate catch them; told to let them pass, what they do.

    python -m commands.contamination_drill [--share 0.01] [override …]       the gate: minutes
    python -m commands.contamination_drill --let-pass [--share 0.01] [override …]   and two trainings, clean and leaked

It runs in clones of HEAD through the graph's own stages, with overrides as `dvc exp run -S` takes them (experiment=smoke), and
shares this repository's DVC cache: what has been run before, such as the clean training, comes from there. With --let-pass the
leaked rows take the places of as many clean ones behind the gate, so that both runs train on as many rows, and the figures go
to reports/benchmarks/drill.json.
"""

import argparse
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from temper import containment, hardware, intervals, metrics, record, records, shards
from temper.records import Row

OUT = Path("reports/benchmarks/drill.json")
SHOWN = 5  # rows of evidence
WIDTH = 100  # characters of a text in the output
CONFIDENCE = 0.95
SPLIT, PASSED, REJECTED = "data/split", "data/contamination", "data/rejected/contamination.jsonl"
SAMPLES, SCORED = "data/evaluate/sft.jsonl", "evaluate@sft"


def main(arguments: list[str]) -> None:
    options = parsed(arguments)
    with tempfile.TemporaryDirectory(prefix="temper-drill-") as folder:
        whole = gate(Scratch(Path(folder) / "gate", options.overrides), options.share, options.seed)
        if options.let_pass:
            values = jump(Scratch(Path(folder) / "training", options.overrides), options.share, options.seed)
            command = " ".join(["python -m commands.contamination_drill", *arguments])
            about = {"share": options.share, "machine": str(hardware.found()), "command": command}
            metrics.write(OUT, values | about | {"gate_caught_all": int(whole)})
    sys.exit(0 if whole else 1)


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m commands.contamination_drill", description=__doc__.split("\n")[0])
    parser.add_argument("--share", type=float, default=0.01, help="of the test rows that leak, at least one (0.01)")
    parser.add_argument("--seed", type=int, default=17, help="of the choice of rows (17)")
    parser.add_argument("--let-pass", action="store_true", help="train and evaluate with and without the leaked rows")
    parser.add_argument("overrides", nargs="*", help="of conf/, such as experiment=smoke")
    options = parser.parse_args(arguments)
    if not 0 < options.share <= 1:
        raise SystemExit(f"--share is {options.share}: choose a share of the test rows above 0 and up to 1")
    return options


class Scratch:
    """A clone of HEAD with this repository's DVC cache, to be run with overrides of conf/."""

    def __init__(self, root: Path, overrides: Sequence[str]) -> None:
        self.root, self.overrides = root, list(overrides)
        cache = subprocess.run(
            [sys.executable, "-m", "dvc", "cache", "dir"], check=True, capture_output=True, text=True
        )
        subprocess.run(["git", "clone", "--quiet", ".", str(root)], check=True)
        self.run("dvc", "cache", "dir", "--local", cache.stdout.strip())

    def run(self, *module: str) -> "subprocess.CompletedProcess[str]":
        """Run a Python module in the clone; what it says is kept, and printed if it should not have failed."""
        command = [sys.executable, "-m", *module]
        environment = os.environ | {"PYTHONPATH": str(self.root)}
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)

    def repro(self, stage: str, *overrides: str) -> "subprocess.CompletedProcess[str]":
        """Compose conf/ and reproduce the graph up to `stage`."""
        composed = self.run("commands.compose", *self.overrides, *overrides)
        return composed if composed.returncode else self.run("dvc", "repro", stage)

    def must(self, stage: str, *overrides: str) -> None:
        done = self.repro(stage, *overrides)
        if done.returncode:
            raise SystemExit(f"{stage} failed in the scratch copy:\n{(done.stdout + done.stderr)[-3000:]}")

    def replace(self, stage: str, rows: list[Row]) -> None:
        """Put `rows` in the place of what `stage` wrote; frozen, it keeps DVC from writing its own again."""
        folder = self.root / "data" / stage
        # The shards may be links into the cache: new files take their place, and the cached ones stay as they are.
        shutil.rmtree(folder)
        records.write(folder / "00000.jsonl", rows)
        self.run("dvc", "freeze", stage)

    def rows(self, path: str) -> list[Row]:
        """Of a data set, or of one file."""
        return list(shards.read(self.root / path) if (self.root / path).is_dir() else records.read(self.root / path))


def gate(scratch: Scratch, share: float, seed: int) -> bool:
    """Leak in front of the gate; print what it does under both policies, and return whether both caught every leaked row."""
    scratch.must("split")
    rows = scratch.rows(SPLIT)
    test, train = of(rows, "test"), of(rows, "train")
    leaked = chosen(test, share, seed)
    scratch.replace("split", mixed(rows + leaked, seed))
    print(f"leaked {len(leaked)} of {len(test)} test rows into {len(train)} training rows")
    refused = scratch.repro("contamination", "contamination.policy=fail")
    reason = next(
        (line for line in refused.stderr.splitlines() if line.startswith("contamination:")), "no reason given"
    )
    # A run that ends for another reason refuses nothing: every leaked row must be in its evidence.
    named = {row["id"] for row in of(scratch.rows(REJECTED), "train")} if (scratch.root / REJECTED).is_file() else set()
    missed = {row["id"] for row in leaked} - named
    print(f"policy=fail: exit {refused.returncode}, {len(leaked) - len(missed)} of {len(leaked)} rows named: {reason}")
    scratch.must("contamination", "contamination.policy=drop")
    print(*lines(scratch.rows(REJECTED), leaked), sep="\n")
    passed = {row["id"] for row in of(scratch.rows(PASSED), "train")} & {row["id"] for row in leaked}
    print(f"policy=drop: exit 0: {len(leaked) - len(passed)} of {len(leaked)} leaked rows caught, {len(passed)} passed")
    if short := too_short([row for row in leaked if row["id"] in missed | passed]):
        ids = ", ".join(row["id"] for row in short[:SHOWN]) + (", …" if len(short) > SHOWN else "")
        print(
            f"of the missed rows {len(short)} have fewer than {containment.FEWEST_WORDS} words, too few to be looked for: {ids}"
        )
    return refused.returncode != 0 and not missed and not passed


def jump(scratch: Scratch, share: float, seed: int) -> dict[str, float]:
    """Train and evaluate on clean data, and with leaked rows behind the gate; print both scores, and return them."""
    scratch.must(SCORED)
    clean, rows = scratch.rows(SAMPLES), scratch.rows(PASSED)
    # evaluate.limit takes the first test rows: only a row that is scored can tell.
    scored = {one["id"] for one in clean}
    leaked = chosen([row for row in of(rows, "test") if row["id"] in scored], share, seed)
    others = [row for row in rows if row["split"] != "train"]
    scratch.replace("contamination", substituted(of(rows, "train"), leaked, seed) + others)
    scratch.must(SCORED)
    parts = compared(clean, scratch.rows(SAMPLES), {row["id"] for row in leaked})
    print(*comparison(parts), verdict(parts["leaked rows"]), sep="\n")
    return figures(parts)


def of(rows: list[Row], split: str) -> list[Row]:
    return [row for row in rows if row["split"] == split]


def chosen(test: list[Row], share: float, seed: int) -> list[Row]:
    """`share` of the test rows, at least one, as training rows."""
    drawn = random.Random(seed).sample(test, max(1, round(share * len(test))))
    return [row | {"split": "train"} for row in drawn]


def too_short(rows: list[Row]) -> list[Row]:
    """Those of which the gate makes no item: see containment.is_telling."""
    return [row for row in rows if not containment.is_telling(record.subject(row))]


def mixed(rows: list[Row], seed: int) -> list[Row]:
    return random.Random(seed).sample(rows, len(rows))


def substituted(train: list[Row], leaked: list[Row], seed: int) -> list[Row]:
    """As many rows as before, the leaked ones among them in random places."""
    kept = random.Random(seed).sample(train, max(0, len(train) - len(leaked)))
    return mixed(kept + leaked, seed)


def lines(evidence: list[Row], leaked: list[Row]) -> list[str]:
    """What the gate found of the leaked rows, a row a line."""
    ids = {row["id"] for row in leaked}
    found = [one for one in evidence if one["id"] in ids]
    shown = [
        f"  {one['id']} is {one['benchmark']} {one['item']} by {one['rule']} (score {one['score']:.2f}): "
        f"{one['matched'][:WIDTH]!r} in {record.request(one)[:WIDTH]!r}"
        for one in found[:SHOWN]
    ]
    return shown + ([f"  … and {len(found) - SHOWN} more"] if len(found) > SHOWN else [])


def compared(clean: list[Row], leaked: list[Row], ids: set[str]) -> dict[str, list[tuple[bool, bool]]]:
    """Whether each row is exact in the clean run and in the leaked one: of the leaked rows, the others and all."""
    after = {one["id"]: bool(one["exact"]) for one in leaked}
    pairs = [(one["id"] in ids, bool(one["exact"]), after[one["id"]]) for one in clean]
    return {
        "leaked rows": [(before, now) for is_leaked, before, now in pairs if is_leaked],
        "other rows": [(before, now) for is_leaked, before, now in pairs if not is_leaked],
        "all test rows": [(before, now) for _, before, now in pairs],
    }


def comparison(parts: dict[str, list[tuple[bool, bool]]]) -> list[str]:
    """A line for each part: exact answers of both runs with their intervals, and the change."""
    head = f"exact answers, {CONFIDENCE:.0%} intervals (Wilson); the change is of the same rows"
    return [head, *(_compared(name, pairs) for name, pairs in parts.items())]


def verdict(pairs: list[tuple[bool, bool]]) -> str:
    before, now = zip(*pairs, strict=True)
    clear = "a clear jump" if is_clear(pairs) else "no clear jump"
    return (
        f"verdict: on the {len(pairs)} leaked rows the score goes from {_rate(before)} clean to {_rate(now)} leaked: {clear} "
        f"(exact sign test, p = {sign_test(*changed(pairs)):.3g})"
    )


def figures(parts: dict[str, list[tuple[bool, bool]]]) -> dict[str, float]:
    values: dict[str, float] = {"jump_is_clear": int(is_clear(parts["leaked rows"]))}
    for name, pairs in parts.items():
        key = name.split(" ")[0]
        values |= {f"{key}_n": len(pairs), f"{key}_p": sign_test(*changed(pairs))}
        for side, run in enumerate(("clean", "contaminated")):
            values |= intervals.rate(f"{key}_exact_{run}", [pair[side] for pair in pairs], CONFIDENCE)
    return values


def changed(pairs: list[tuple[bool, bool]]) -> tuple[int, int]:
    """Rows that are right only in the leaked run, and only in the clean one."""
    return pairs.count((False, True)), pairs.count((True, False))


def is_clear(pairs: list[tuple[bool, bool]]) -> bool:
    gained, lost = changed(pairs)
    return gained > lost and sign_test(gained, lost) < 1 - CONFIDENCE


def sign_test(gained: int, lost: int) -> float:
    """Two-sided exact p of as uneven a change if a row were as likely to be gained as lost (McNemar 1947, binomial form)."""
    total = gained + lost
    return min(1.0, 2 * sum(math.comb(total, count) for count in range(min(gained, lost) + 1)) / 2**total)


def _compared(name: str, pairs: list[tuple[bool, bool]]) -> str:
    before, now = ([pair[side] for pair in pairs] for side in (0, 1))
    gained, lost = changed(pairs)
    change = (gained - lost) / max(1, len(pairs))
    return f"  {name} (n={len(pairs)}): clean {_rate(before)}, leaked {_rate(now)}, {change:+.3f} ({gained} gained, {lost} lost)"


def _rate(outcomes: Sequence[bool]) -> str:
    low, high = intervals.wilson(sum(outcomes), len(outcomes), CONFIDENCE)
    return f"{sum(outcomes) / max(1, len(outcomes)):.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main(sys.argv[1:])
