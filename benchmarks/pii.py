"""How many identifiers the pii stage finds, how many of its findings are right, and how fast it is, beside Presidio's defaults.

    TEMPER_TEST_DATA=… python -m benchmarks.pii [--texts 1500] [--repeats 3]

Writes reports/benchmarks/pii.json. The labelled texts are presidio_research's synth_dataset_v2. Patterns, word lists and
thresholds were tuned on one half of it, and figures are of the other. No template is in both halves: templates go, in the
order of a hash, to the half that has fewer spans of the template's rarest entity. The texts' names and towns come from
lists of fakenamegenerator.com, of which nothing was copied; the lists in use are Faker's. The set's own list of templates
was read while the patterns were written, so that expect less on people and places of other texts.

An entity is found if a finding of its kind overlaps it, and a finding is right if it overlaps an entity of its kind.
LOCATION is what the set labels GPE, STREET_ADDRESS or ZIP_CODE; URL is its DOMAIN_NAME.
F2 = 5·P·R / (4·P + R). Intervals are Wilson's, at 95%.

Secrets are drawn at random in the forms of twenty issuers and set in sentences, code and configuration, beside look-alikes
(benchmarks/secret_texts.py). Speed is beside Presidio with all its kinds, and beside Presidio asked for the same kinds only.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from benchmarks import secret_texts
from temper import credentials, hardware, intervals, metrics, names, presidio, recognizers
from temper.recognizers import Span

CONF = Path(__file__).resolve().parent.parent / "conf" / "pii"
KINDS = {"STREET_ADDRESS": "LOCATION", "GPE": "LOCATION", "ZIP_CODE": "LOCATION", "DOMAIN_NAME": "URL"}
SHAPED = tuple(recognizers.PATTERNS)
NAMED = (names.PERSON, names.LOCATION)
AS_SHIPPED = OmegaConf.load(CONF / "strict.yaml")
STRICT = presidio.Search(AS_SHIPPED.model, tuple(AS_SHIPPED.entities), AS_SHIPPED.min_score)
PATTERNS = replace(STRICT, entities=tuple(kind for kind in STRICT.entities if kind not in NAMED))
TARGETS = {f"{kind}_f2": 0.95 for kind in SHAPED} | {
    f"{kind}_{figure}": least for kind in NAMED for figure, least in (("recall", 0.85), ("precision", 0.7))
}
FASTER = 5.0
CONFIDENCE = 0.95
PROCESSES = 2
CHUNK = 64

Texts = list[str]
Found = list[list[Span]]


class Labelled(NamedTuple):
    text: str
    spans: list[Span]


def main() -> None:
    arguments = parse()
    data = Path(os.environ.get("TEMPER_TEST_DATA") or sys.exit("TEMPER_TEST_DATA: set it to the folder of data sets"))
    _, held_out = halves(data)
    clean = questions(data)[: arguments.clean]
    found: dict[str, Any] = {"held_out_texts": len(held_out)}
    for name, find in (("ours", lambda texts: list(presidio.spans(texts, STRICT))), ("presidio", by_default)):
        for key, figure in score(held_out, find([one.text for one in held_out])).items():
            found[f"{name}_{key}"] = figure
        shaped = sum(one.kind in SHAPED for of_text in find(clean) for one in of_text)
        found[f"{name}_findings_per_1000_clean_texts"] = 1000 * shaped / len(clean)
    found |= {f"ours_{key}_target": least for key, least in TARGETS.items()} | secrets(arguments.secrets)
    found |= speed([one.text for half in halves(data) for one in half][: arguments.texts], arguments.repeats)
    given = " ".join(f"--{name} {value}" for name, value in vars(arguments).items())
    command = f"python -m benchmarks.pii {given}"
    metrics.write("reports/benchmarks/pii.json", found | {"machine": str(hardware.found()), "command": command})
    show(found)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--texts", type=int, default=1500, help="timed")
    parser.add_argument("--repeats", type=int, default=3, help="of the timed runs")
    parser.add_argument("--clean", type=int, default=500, help="questions of GSM8K, which have no identifiers")
    parser.add_argument("--secrets", type=int, default=40, help="texts of each form of secret and of each look-alike")
    return parser.parse_args()


def halves(data: Path) -> tuple[list[Labelled], list[Labelled]]:
    """(tuned on, reported on): the set's texts, with no template in both."""
    rows = json.loads((data / "presidio_research" / "synth_dataset_v2.json").read_text())
    total = Counter(span["entity_type"] for row in rows for span in row["spans"])
    of_template: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        of_template[row["template_id"]].update(span["entity_type"] for span in row["spans"])
    have: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    side: dict[int, int] = {}
    for template in sorted(of_template, key=lambda one: hashlib.sha256(str(one).encode()).hexdigest()):
        spans = of_template[template]
        rarest = min(spans, key=lambda kind: (total[kind], kind), default="")
        side[template] = int(have[0][rarest] > have[1][rarest])
        have[side[template]].update(spans or {"": 1})
    first, second = ([labelled(row) for row in rows if side[row["template_id"]] == half] for half in (0, 1))
    return first, second


def labelled(row: dict[str, Any]) -> Labelled:
    spans = [
        Span(span["start_position"], span["end_position"], KINDS.get(span["entity_type"], span["entity_type"]), 1.0)
        for span in row["spans"]
    ]
    return Labelled(row["full_text"], spans)


def questions(data: Path) -> Texts:
    lines = (data / "gsm8k" / "test.jsonl").read_text().splitlines()
    return [json.loads(line)["question"] for line in lines]


def score(rows: list[Labelled], found: Found) -> dict[str, float]:
    """`<kind>_recall`, `_precision` and `_f2` in [0, 1] for every kind, the labels in `_spans`, and in `_characters` the share
    of the labels' characters that a finding of the kind covers: the stricter view, since an overlap may leave a part."""
    figures: dict[str, float] = {}
    for kind in (*SHAPED, *NAMED):
        pairs = [(of_kind(row.spans, kind), of_kind(spans, kind)) for row, spans in zip(rows, found, strict=True)]
        expected = sum(len(labels) for labels, _ in pairs)
        given = sum(len(findings) for _, findings in pairs)
        met = sum(hits(labels, findings) for labels, findings in pairs)
        recall = met / expected
        precision = sum(hits(findings, labels) for labels, findings in pairs) / given if given else 1.0
        covered = sum(covers(labels, findings) for labels, findings in pairs)
        characters = sum(label.end - label.start for labels, _ in pairs for label in labels)
        f2 = 5 * precision * recall / (4 * precision + recall) if precision + recall else 0.0
        figures |= {
            f"{kind}_recall": recall,
            f"{kind}_precision": precision,
            f"{kind}_f2": f2,
            f"{kind}_spans": expected,
        }
        figures[f"{kind}_characters"] = covered / characters
        figures[f"{kind}_recall_low"], figures[f"{kind}_recall_high"] = intervals.wilson(met, expected, CONFIDENCE)
    return figures


def secrets(of_each: int) -> dict[str, float]:
    """`secrets_recall` and `secrets_precision` with intervals, the recall of each form, and of each look-alike the share that
    is taken for a secret."""
    made = list(secret_texts.texts(of_each))
    found = list(presidio.spans((one.text for one in made), replace(STRICT, entities=credentials.KINDS)))
    met: dict[str, list[bool]] = defaultdict(list)
    wrong: dict[str, list[bool]] = defaultdict(list)
    right: list[bool] = []
    for one, spans in zip(made, found, strict=True):
        start = one.text.find(one.secret)
        label = [Span(start, start + len(one.secret), "", 1.0)] if one.secret else []
        right += [bool(hits([span], label)) for span in spans]
        if one.secret:
            met[one.form].append(bool(hits(label, spans)))
        else:
            wrong[one.form].append(bool(spans))
    values = intervals.rate("secrets_recall", [one for of in met.values() for one in of], CONFIDENCE)
    values |= intervals.rate("secrets_precision", right, CONFIDENCE)
    values |= intervals.rate("secrets_look_alikes_taken", [one for of in wrong.values() for one in of], CONFIDENCE)
    values |= {f"secrets_{form}_recall": statistics.mean(of) for form, of in met.items()}
    values |= {f"secrets_{form}_taken": statistics.mean(of) for form, of in wrong.items()}
    return values | {"secrets_texts": len(made), "secrets": sum(map(len, met.values()))}


def of_kind(spans: Iterable[Span], kind: str) -> list[Span]:
    return [span for span in spans if span.kind == kind]


def hits(spans: list[Span], others: list[Span]) -> int:
    """How many of `spans` overlap one of `others`."""
    return sum(any(span.start < other.end and other.start < span.end for other in others) for span in spans)


def covers(spans: list[Span], others: list[Span]) -> int:
    """How many characters of `spans` are in one of `others`."""
    covered = {at for other in others for at in range(other.start, other.end)}
    return sum(at in covered for span in spans for at in range(span.start, span.end))


@cache
def engine() -> Any:
    """Presidio's analyzer with all its default recognizers, on the same model; its look-up of domains kept offline."""
    from presidio_analyzer import AnalyzerEngine
    from presidio_analyzer.nlp_engine import SpacyNlpEngine
    from tldextract import tldextract

    tldextract.TLD_EXTRACTOR = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    nlp = SpacyNlpEngine([{"lang_code": "en", "model_name": STRICT.model}])
    nlp.load()
    return AnalyzerEngine(nlp_engine=nlp, supported_languages=["en"])


def by_default(texts: Texts, kinds: tuple[str, ...] | None = None) -> Found:
    """A plain loop of `analyze`, as Presidio's documentation begins; of `kinds` those that Presidio has, or all that it has."""
    analyzer = engine()
    known = [kind for kind in kinds if kind in analyzer.get_supported_entities()] if kinds else None
    return [[as_span(one) for one in analyzer.analyze(text, "en", entities=known)] for text in texts]


def by_batch(texts: Texts) -> Found:
    """Presidio's own way for many texts, on both cores."""
    from presidio_analyzer import BatchAnalyzerEngine

    batch = BatchAnalyzerEngine(engine())
    results = batch.analyze_iterator(texts, "en", batch_size=CHUNK, n_process=PROCESSES)
    return [[as_span(one) for one in of_text] for of_text in results]


def as_span(result: Any) -> Span:
    return Span(result.start, result.end, result.entity_type, result.score)


def by_patterns(texts: Texts) -> Found:
    return list(presidio.spans(texts, PATTERNS))


def by_strict(texts: Texts) -> Found:
    return list(presidio.spans(texts, STRICT))


def speed(texts: Texts, repeats: int) -> dict[str, float]:
    """Texts a second, medians of interleaved runs with every model loaded before; and how many times the plain loop's,
    with all of Presidio's kinds (`_times_loop`) and with the kinds that are searched here (`_times_loop_same_kinds`)."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        runs: dict[str, Callable[[], Any]] = {
            "presidio_loop": lambda: by_default(texts),
            "presidio_loop_patterns": lambda: by_default(texts, PATTERNS.entities),
            "presidio_loop_people_and_places": lambda: by_default(texts, STRICT.entities),
            "presidio_batch_2_processes": lambda: by_batch(texts),
            "patterns_1_process": lambda: by_patterns(texts),
            "patterns_2_processes": lambda: pool.map(by_patterns, chunks, chunksize=1),
            "people_and_places_1_process": lambda: by_strict(texts),
            "people_and_places_2_processes": lambda: pool.map(by_strict, chunks, chunksize=1),
        }
        by_default(texts[:2])
        by_strict(texts[:2])
        pool.map(by_strict, chunks[: 2 * PROCESSES], chunksize=1)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                started = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - started)
    rates = {name: len(texts) / statistics.median(of_run) for name, of_run in seconds.items()}
    values = {f"{name}_texts_per_second": rate for name, rate in rates.items()}
    for name, rate in rates.items():
        if not name.startswith("presidio"):
            same = rates[f"presidio_loop_{name.partition('_1_')[0].partition('_2_')[0]}"]
            values[f"{name}_times_loop"] = rate / rates["presidio_loop"]
            values[f"{name}_times_loop_same_kinds"] = rate / same
            values[f"{name}_times_batch"] = rate / rates["presidio_batch_2_processes"]
    return values | {f"{name}_2_processes_times_loop_target": FASTER for name in ("patterns", "people_and_places")}


def show(found: dict[str, Any]) -> None:
    figures = ("recall", "precision", "f2", "characters")
    print(f"{'':20}ours: {'  '.join(figures):42}Presidio's defaults\n{'':16}spans")
    for kind in (*SHAPED, *NAMED):
        cells = ("  ".join(f"{found[f'{name}_{kind}_{one}']:8.3f}" for one in figures) for name in ("ours", "presidio"))
        print(f"{kind:16}{found[f'ours_{kind}_spans']:5}   " + "   ".join(cells))
    for key in sorted(key for key in found if "second" in key or "times" in key or "clean" in key):
        print(f"{key:52}{found[key]:10.1f}")
    for key in sorted(key for key in found if key.startswith("secrets")):
        print(f"{key:52}{found[key]:10.3f}")


if __name__ == "__main__":
    main()
