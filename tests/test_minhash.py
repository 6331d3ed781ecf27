"""Texts are compared by what their words say, exactly, and meet in bands as often as theory has it."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from temper import lsh, minhash

SETTINGS = minhash.Settings(ngram=5, bands=20, rows=6, seed=17)
SMALL = minhash.Settings(ngram=5, bands=2, rows=2, seed=17)
WORDS = st.lists(st.sampled_from("abcdefgh"), max_size=30).map(" ".join)


def grams(text: str) -> set[tuple[str, ...]]:
    """The shingles of a text, as plain Python has them; a shorter text is one shingle."""
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[start : start + 5]) for start in range(max(1, len(words) - 4))} if words else set()


def likeness(left: str, right: str) -> float:
    shingles, counts = minhash.shingled([left, right], SETTINGS)
    return float(minhash.jaccard(shingles[: counts[0]], counts[:1], shingles[counts[0] :], counts[1:])[0])


@given(WORDS, WORDS)
@example("", "")
@example("a b", "a b c d e")
@example("a a a a a a a", "a a a a a")
def test_likeness_is_the_jaccard_similarity_of_word_five_grams(left: str, right: str) -> None:
    ours, theirs = grams(left), grams(right)
    assert likeness(left, right) == pytest.approx(len(ours & theirs) / max(1, len(ours | theirs)))


@given(st.lists(WORDS, max_size=8))
def test_a_text_has_the_same_signature_in_any_company(texts: list[str]) -> None:
    together = minhash.sign(texts, SMALL)
    for position, text in enumerate(texts):
        alone = minhash.sign([text], SMALL)
        assert (alone.keys[:, 0] == together.keys[:, position]).all()
        assert alone.sets[0] == together.sets[position]


@given(st.text())
@example("ＡＢ ß \ud800 \x00 ١٢٣ 👍🏽")
def test_no_text_is_an_obstacle(text: str) -> None:
    signed = minhash.sign([text, text], SMALL)
    assert (signed.keys[:, 0] == signed.keys[:, 1]).all()
    assert signed.counts[0] == signed.counts[1]


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_ascii_text_has_the_words_that_any_text_would(text: str) -> None:
    assert minhash.split(text) == minhash.WORD.findall(text.casefold())


def test_case_layout_punctuation_and_unicode_forms_are_nothing_and_order_is_something() -> None:
    text = "One two three four five six seven eight"
    assert likeness(text, " one, TWO;\n three - four (five) six. seven eight!") == 1
    assert likeness("cafe\u0301 naïve ﬁve", "CAFÉ nai\u0308ve five") == 1
    assert likeness(text, "eight seven six five four three two one") == 0


def test_scripts_without_spaces_are_compared_by_character() -> None:
    text = "我想在博洛尼亚中央车站附近的一家小旅馆预订一间安静的双人房"
    assert 0.6 < likeness(text, text.replace("双", "单")) < 1
    assert minhash.split("東京 Tokyo 2020年") == ["東", "京", "tokyo", "2020", "年"]


def test_numbers_tell_texts_apart_unless_told_otherwise() -> None:
    texts = ["Transfer 1,250.50 to the account now", "Transfer 3 to the account now"]
    with_numbers = minhash.sign(texts, SETTINGS)
    without = minhash.sign(texts, minhash.Settings(5, 20, 6, 17, numbers=False))
    assert with_numbers.sets[0] != with_numbers.sets[1]
    assert without.sets[0] == without.sets[1]


def test_texts_without_words_have_no_shingles() -> None:
    assert minhash.sign(["", "?!", "hi"], SETTINGS).counts.tolist() == [0, 0, 1]


def pairs_at(similarity: float, count: int, size: int = 60) -> tuple[float, minhash.Shingles, minhash.Shingles]:
    """(likeness, left, right): random sets of `size` shingles, shape [count, size], that share as many as that takes."""
    shared = round(2 * size * similarity / (1 + similarity))
    drawn = np.random.default_rng(3).integers(0, 2**32, (count, 2 * size - shared), dtype=np.uint64).astype(np.uint32)
    left, right = np.sort(drawn[:, :size], axis=1), np.sort(drawn[:, size - shared :], axis=1)
    return shared / (2 * size - shared), left, right


@pytest.mark.parametrize("similarity", [0.3, 0.5, 0.8, 0.9])
@pytest.mark.parametrize(("bands", "rows"), [(14, 8), (20, 6)])
def test_pairs_meet_as_often_as_theory_has_it(similarity: float, bands: int, rows: int) -> None:
    exact, left, right = pairs_at(similarity, 4000)
    starts = np.arange(0, left.size, left.shape[1])
    chosen = minhash.Settings(5, bands, rows, 17)
    keys = [minhash.band_keys(side.ravel(), starts, chosen) for side in (left, right)]
    met = float((keys[0] == keys[1]).any(axis=0).mean())
    expected = 1 - (1 - exact**rows) ** bands
    assert met == pytest.approx(expected, abs=4 * (expected * (1 - expected) / 4000) ** 0.5 + 1e-3)


def compared(points: list[int], keys: list[int]) -> tuple[set[tuple[int, int]], int]:
    """The pairs found among points of equal keys that are alike when they differ by at most 1, and how many were compared."""
    done = 0

    def alike(left: lsh.Rows, right: lsh.Rows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        nonlocal done
        done += len(left)
        return np.abs(np.array(points)[left] - np.array(points)[right]) <= 1

    found = lsh.bucket_pairs(np.arange(len(points)), np.array(keys, dtype=np.uint64), alike)
    return {tuple(pair) for part in found for pair in part.tolist()}, done


def test_texts_of_more_shards_than_a_process_may_have_files_open(
    tmp_path: Path, few_files: Callable[[], AbstractContextManager[None]]
) -> None:
    shards = 40
    columns = lsh.Columns(tmp_path, shards)
    for shard in range(shards):
        signed = minhash.sign([f"one text of shard {shard}", "and another one that all have"], SMALL)
        columns.append("counts", shard, signed.counts.astype(np.uint32))
        columns.append("shingles", shard, signed.shingles)
    texts = lsh.Texts(columns, threshold=0.8)
    with few_files():
        _, counts = texts.shingles(np.arange(2 * shards))
        alike = texts.alike(np.arange(1, 2 * shards - 2, 2), np.arange(3, 2 * shards, 2))
    assert alike.all()
    assert len(counts) == 2 * shards


def test_a_small_bucket_is_compared_each_with_each() -> None:
    found, _ = compared([5, 9, 6, 7, 5, 6], [1, 1, 1, 1, 2, 3])
    assert found == {(0, 2), (2, 3)}


def test_a_large_bucket_costs_no_square_of_its_size() -> None:
    size = 20_000
    found, done = compared([number % 5 * 10 for number in range(size)], [1] * size)
    assert done < 5 * size
    assert len(found) == size - 5


def test_a_bucket_of_strangers_is_given_up() -> None:
    size = 5000
    found, done = compared([number * 10 for number in range(size)], [1] * size)
    assert not found
    assert done <= lsh.MAX_LEADERS * size
