"""IFEval's verifiers (Zhou et al. 2023, arXiv:2311.07911) as lm-evaluation-harness has them, in the environment `train`.

They need packages that `serve`, where the harness runs, has not (langdetect, immutabledict):

    python -m temper.ifeval     a line of JSON in, {"doc": …, "response": …}, a line of JSON out: its metrics

Where NLTK's data has no `punkt_tab`, sentences and words are split by NLTK's Punkt without what it learns of a language's
abbreviations, which moves a few of the instructions that count sentences; `sentences` in what was run says so.
"""

import json
import os
import subprocess
import sys
import tempfile
from types import TracebackType
from typing import Any
from unittest import mock

from temper import envs, stage
from temper.records import Row

LAST_LINES = 3
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


class Scorer:
    """Scores answers for the time of a block; `score` is a process_results of the harness."""

    def __enter__(self) -> "Scorer":
        self._said = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(envs.python("train")), "-m", "temper.ifeval"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        self.sentences = str(self._asked("")["sentences"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def __deepcopy__(self, known: dict[int, Any]) -> "Scorer":
        """Itself: the harness copies a task's settings with the function that scores it, and there is one process."""
        return self

    def score(self, doc: Row, results: list[str]) -> Row:
        """Whether the answer follows all its instructions, and each: strictly, and without what models like to write around."""
        return self._asked(json.dumps({"doc": doc, "response": results[0]}) + "\n")

    def _asked(self, line: str) -> Row:
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # It ended at its start: the empty answer says so here.
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._said.seek(0)
            last = " / ".join(self._said.read().strip().splitlines()[-LAST_LINES:])
            raise SystemExit(f"ifeval: its verifiers ended (status {self._process.returncode}): {last}")
        found: Row = json.loads(answer)
        return found


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


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    # What the libraries print is no answer.
    os.dup2(2, 1)
    import langdetect
    import nltk

    langdetect.DetectorFactory.seed = 0  # it draws, and would not say the same twice
    sentences = split_sentences()
    with mock.patch.object(nltk, "download", lambda *_args, **_named: False):
        from lm_eval.tasks.ifeval import utils
    print(json.dumps({"sentences": sentences}), file=out, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(utils.process_results(asked["doc"], [asked["response"]])), file=out, flush=True)


if __name__ == "__main__":
    stage.die_with_parent()
    main()
