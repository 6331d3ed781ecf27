"""IFEval's verifiers (Zhou et al. 2023, arXiv:2311.07911) as lm-evaluation-harness has them, in the environment `train`.

They need packages that `serve`, where the harness runs, has not (langdetect, immutabledict):

    python -m temper.ifeval     a line of JSON in, {"doc": …, "response": …}, a line of JSON out: its metrics

Where NLTK's data has no `punkt_tab`, sentences and words are split by NLTK's Punkt without what it learns of a language's
abbreviations, which moves a few of the instructions that count sentences; `sentences` in what was run says so.
"""

from collections.abc import Callable
from typing import Any
from unittest import mock

from temper import piped
from temper.piped import Piped
from temper.records import Row

TRAINED, UNTRAINED = "punkt_tab", "Punkt, untrained (python -m nltk.downloader punkt_tab brings what it learned)"


def _mean_of_parts(items: list[Any]) -> float:
    """The harness wants an aggregation; the figures that count are made of the samples."""
    parts = [part for item in items for part in (item if isinstance(item, list) else [item])]
    return sum(parts) / max(1, len(parts))


METRICS = [
    {"metric": f"{level}_level_{kind}_acc", "aggregation": _mean_of_parts, "higher_is_better": True}
    for level in ("prompt", "inst")
    for kind in ("strict", "loose")
]


class Scorer(Piped):
    """Scores answers for the time of a block; `score` is a process_results of the harness."""

    def __init__(self) -> None:
        super().__init__("train", "temper.ifeval")

    @property
    def sentences(self) -> str:
        """By what they are split."""
        return str(self.greeting["sentences"])

    def score(self, doc: Row, results: list[str]) -> Row:
        """Whether the answer follows all its instructions, and each: strictly, and without what models like to write around."""
        return self.ask({"doc": doc, "response": results[0]})


def split_sentences() -> str:
    """Have NLTK split without data of its own where it has none; returns by what."""
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        splitter = nltk.tokenize.punkt.PunktSentenceTokenizer()
        nltk.data.load = lambda *_args, **_named: splitter
        nltk.tokenize.sent_tokenize = nltk.sent_tokenize = lambda text, *_args: splitter.tokenize(text)
        return UNTRAINED
    return TRAINED


def _begin() -> tuple[Row, Callable[[Row], Row]]:
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0  # it draws, and would not say the same twice
    sentences = split_sentences()
    with mock.patch.object(nltk, "download", lambda *_args, **_named: False):
        from lm_eval.tasks.ifeval import utils

    def score(asked: Row) -> Row:
        found: Row = utils.process_results(asked["doc"], [asked["response"]])
        return found

    return {"sentences": sentences}, score


if __name__ == "__main__":
    piped.serve(_begin)
