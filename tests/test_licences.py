"""The strictest licence decides, with its reason; what nobody knows needs a person."""

import pytest

from temper import licences
from temper.licences import INCOMPATIBLE, PERMITTED, REVIEW, verdict


def judged(release: str, *used: str) -> licences.Verdict:
    return verdict({licence: [f"source of {licence}"] for licence in used}, release)


@pytest.mark.parametrize(
    ("stated", "expression"),
    [
        (["mit", None, ""], "mit"),
        (["mit", "cc-by-4.0 AND mit"], "cc-by-4.0 AND mit"),
        (["mit OR apache-2.0"], "mit OR apache-2.0"),
        (["cc-by-4.0", "mit OR apache-2.0", "(mit OR apache-2.0)"], "cc-by-4.0 AND (mit OR apache-2.0)"),
        ([], ""),
    ],
)
def test_licences_are_joined_once_each(stated: list[str | None], expression: str) -> None:
    assert licences.together(stated) == expression
    assert licences.together([expression]) == expression


@pytest.mark.parametrize("licence", ["apache-2.0", "mit", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "odc-by"])
def test_permissive_data_permits_a_permissive_release(licence: str) -> None:
    found = judged("apache-2.0", licence)
    assert (found.outcome, found.commercial, found.share_alike) == (PERMITTED, True, ())


@pytest.mark.parametrize(
    ("release", "used", "outcome", "commercial"),
    [
        ("apache-2.0", "cc-by-sa-4.0", INCOMPATIBLE, True),
        ("cc-by-sa-4.0", "cc-by-sa-4.0", PERMITTED, True),
        ("apache-2.0", "cc-by-nc-4.0", INCOMPATIBLE, False),
        ("cc-by-nc-4.0", "cc-by-nc-4.0", PERMITTED, False),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", INCOMPATIBLE, False),
        ("apache-2.0", "cc-by-nd-4.0", INCOMPATIBLE, True),
        ("apache-2.0", "gpl-3.0", INCOMPATIBLE, True),
        ("agpl-3.0", "gpl-3.0", PERMITTED, True),
        ("apache-2.0", "llama3.1", INCOMPATIBLE, True),
        ("llama3.1", "llama3.1", PERMITTED, True),
        ("gemma", "gemma", PERMITTED, True),
        ("apache-2.0", "gemma", INCOMPATIBLE, True),
        ("apache-2.0", "openai-terms", INCOMPATIBLE, True),
        ("apache-2.0", "in-house", REVIEW, None),
        ("apache-2.0", "", REVIEW, None),
    ],
)
def test_what_one_licence_means(release: str, used: str, outcome: str, commercial: bool | None) -> None:
    found = judged(release, used)
    assert (found.outcome, found.commercial) == (outcome, commercial)


def test_the_strictest_licence_decides_and_is_named() -> None:
    found = judged("apache-2.0", "mit", "unheard-of", "cc-by-sa-4.0", "cc0-1.0")
    assert found.outcome == INCOMPATIBLE
    assert "ShareAlike" in found.reason
    assert found.share_alike == ("cc-by-sa-4.0",)
    assert found.commercial is None
    assert "source of cc0-1.0" not in found.attribution
    assert {"source of mit", "source of cc-by-sa-4.0", "source of unheard-of"} <= set(found.attribution)


def test_no_commercial_use_wins_over_unknown() -> None:
    assert judged("cc-by-nc-4.0", "unheard-of", "cc-by-nc-4.0").commercial is False


def test_expressions_take_the_strictest_of_and_and_the_mildest_of_or() -> None:
    assert judged("apache-2.0", "apache-2.0 AND openai-terms").outcome == INCOMPATIBLE
    assert judged("apache-2.0", "mit AND unheard-of").outcome == REVIEW
    assert judged("apache-2.0", "gpl-3.0 OR mit").outcome == PERMITTED
    assert judged("apache-2.0", "(gpl-3.0 OR mit) AND cc-by-4.0").outcome == PERMITTED


SPELLINGS = {
    "Apache 2.0": "apache-2.0",
    "MIT License": "mit",
    "BSD": "bsd-3-clause",
    "CC0": "cc0-1.0",
    "cc-by-sa": "cc-by-sa-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
    "GPL-3.0-or-later": "gpl-3.0",
}


@pytest.mark.parametrize(("text", "known"), SPELLINGS.items())
def test_usual_spellings_are_known(text: str, known: str) -> None:
    assert licences.identified(text) == known
    assert known in licences.LICENCES


def test_without_any_source_it_needs_review() -> None:
    assert verdict({}, "apache-2.0").outcome == REVIEW


def test_whatever_a_licence_passes_on_to_is_in_the_table() -> None:
    for one in licences.LICENCES.values():
        assert set(one.passes_on) <= licences.LICENCES.keys()
    assert set(licences.ALIASES.values()) <= licences.LICENCES.keys()
