"""Entities in many texts by a spaCy model: those of its own pipeline, decoded for all texts together.

spaCy's decoder goes token by token and takes Python's lock several times in each step, which costs as much as its network.
But a state outside of any entity looks at the next token alone, so that one product of matrices decides every token at once,
and steps are left for the tokens inside of entities.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from temper.names import Entity

Floats = NDArray[np.float32]
UNUSED = ("tok2vec", "tagger", "parser", "attribute_ruler", "lemmatizer", "senter")  # the tagger of entities needs none
FEATURES = 3  # tokens that a state looks at: the next one, and the first and the last one of an entity that is open


class Actions(NamedTuple):
    """What may be done with a token outside of an entity, and inside of one by its label: columns of the network's scores."""

    names: list[str]
    outside: NDArray[np.intp]
    inside: dict[str, NDArray[np.intp]]


def entities(texts: Sequence[str], pipeline: Any) -> list[list[Entity]]:
    """The entities of each text by a pipeline of `load`, on one core; memory grows with all of the texts together."""
    with _threads().limit(limits=1):
        if not _is_decoded_here(pipeline):
            documents = pipeline.pipe(texts)
            return [[(one.start_char, one.end_char, one.label_) for one in of.ents] for of in documents]
        documents = [pipeline.make_doc(text) for text in texts]
        found: dict[int, list[Entity]] = {}
        filled = [number for number, document in enumerate(documents) if len(document)]
        if filled:
            of_filled = _decoded(pipeline.get_pipe("ner"), [documents[number] for number in filled])
            found = dict(zip(filled, of_filled, strict=True))
    return [found.get(number, []) for number in range(len(texts))]


@cache
def load(model: str) -> Any:
    """The tagger of entities alone of an installed spaCy model, or of a folder with one; OSError if there is none.

    Its matrices are multiplied by numpy: spaCy's own product was a third as fast on a processor with AVX-512.
    """
    import spacy
    from thinc.api import use_ops

    with use_ops("numpy", use_blis=False):
        return spacy.load(model, exclude=list(UNUSED))


@cache
def _threads() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _is_decoded_here(pipeline: Any) -> bool:
    """Whether the model is of the shape that `_decoded` knows: spaCy's small to large ones are, transformers are not."""
    if pipeline.pipe_names != ["ner"]:
        return False
    network, settings = pipeline.get_pipe("ner").model, pipeline.get_pipe("ner").cfg
    is_plain = network.attrs["has_upper"] and not network.attrs["unseen_classes"] and settings["beam_width"] == 1
    return bool(is_plain and network.get_ref("lower").get_dim("nF") == FEATURES)


def _decoded(ner: Any, documents: list[Any]) -> list[list[Entity]]:
    """The entities of documents that have tokens: what `ner.predict` finds (spaCy's BILUO transitions, taken greedily)."""
    network, actions = ner.model, _actions(tuple(map(ner.moves.get_class_name, range(ner.moves.n_moves))))
    lower, upper = network.get_ref("lower"), network.get_ref("upper")
    parts = lower.predict(network.get_ref("tok2vec").predict(documents))  # (1 + tokens, FEATURES, hidden, pieces)
    absent, parts = parts[0], parts[1:]
    bias = lower.get_param("b")
    weights, offsets = upper.get_param("W"), upper.get_param("b")
    hidden = (parts[:, 0] + absent[1] + absent[2] + bias).max(axis=2)
    chosen = _outside(hidden @ weights.T + offsets, documents, actions)

    def is_last(first: int, at: int, label: str) -> bool:
        state = (parts[at, 0] + parts[first, 1] + parts[at - 1, 2] + bias).max(axis=1)
        goes_on, ends = weights[actions.inside[label]] @ state + offsets[actions.inside[label]]
        return bool(ends > goes_on)

    def of_document(document: Any, start: int) -> Iterator[Entity]:
        end, after = start + len(document), start
        for at in np.flatnonzero(chosen[start:end] != actions.names.index("O")).tolist():
            first = start + at
            if first < after:
                continue
            move, _, label = actions.names[chosen[first]].partition("-")
            last = first
            if move == "B":
                inner = range(first + 1, end - 1)
                last = next((at for at in inner if is_last(first, at, label)), end - 1)
            after = last + 1
            span = document[first - start : after - start]
            yield span.start_char, span.end_char, label

    starts = np.cumsum([0, *map(len, documents)]).tolist()
    return [list(of_document(document, start)) for document, start in zip(documents, starts, strict=False)]


@cache
def _actions(names: tuple[str, ...]) -> Actions:
    outside = [number for number, name in enumerate(names) if name == "O" or (name[:2] in ("B-", "U-") and name[2:])]
    labels = [name[2:] for name in names if name.startswith("B-")]
    inside = {label: np.array([names.index(f"I-{label}"), names.index(f"L-{label}")]) for label in labels}
    return Actions(list(names), np.array(outside), inside)


def _outside(scores: Floats, documents: list[Any], actions: Actions) -> NDArray[np.intp]:
    """The best allowed action at each token, were it in no entity: none begins with white space, or goes beyond the end."""
    from spacy.attrs import IS_SPACE

    begins = np.array([name.startswith("B-") for name in actions.names])
    opens = begins | np.array([name.startswith("U-") for name in actions.names])
    ends = np.cumsum([len(document) for document in documents]) - 1
    blank = np.flatnonzero(np.concatenate([document.to_array(IS_SPACE) for document in documents]))
    scores[np.ix_(ends, begins)] = -np.inf
    scores[np.ix_(blank, opens)] = -np.inf
    return actions.outside[scores[:, actions.outside].argmax(axis=1)]
