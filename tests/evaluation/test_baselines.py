"""Planted corpora: each baseline sees its own feature and is blind to the others."""

from dataclasses import replace

import numpy as np
import pytest

from persrm_jax.evaluation.baselines import (
    BASELINES,
    FUNCTION_WORDS,
    PUNCTUATION,
    WITHOUT_EXEMPLARS,
    baseline_predictions,
    style_features,
)
from persrm_jax.evaluation.statistics import summarize
from persrm_jax.types import Pair

SHIP = "harbour cargo vessel anchor captain sailor tide dock mast rope".split()
FARM = "tractor barley cattle orchard harvest plough meadow shepherd fence soil".split()


def make_pair(number: int, exemplars: list[str], chosen: str, rejected: str) -> Pair:
    return Pair(
        pair_id=f"p{number}",
        author="ann",
        author_split="test",
        domain="letters",
        prompt="",
        exemplars=tuple(exemplars),
        exemplar_ids=tuple(f"e{i}" for i in range(len(exemplars))),
        chosen=chosen,
        chosen_id=f"c{number}",
        rejected=rejected,
        rejected_id=f"r{number}",
        rejected_author="bob",
        negative_type="other_author",
        order="AB",
        writer="human",
        seed=0,
    )


def words(rng: np.random.Generator, vocabulary: list[str], count: int) -> list[str]:
    return [str(word) for word in rng.choice(vocabulary, count)]


def dashed(text: list[str]) -> str:
    """Sentences of five words, the halves joined by a dash."""
    return " ".join(f"{a} {b} - {c} {d} {e}!" for a, b, c, d, e in zip(*[iter(text)] * 5))  # noqa: B905


def plain(text: list[str]) -> str:
    return " ".join(f"{a} {b}, {c} {d} {e}." for a, b, c, d, e in zip(*[iter(text)] * 5))  # noqa: B905


def accuracy(name: str, pairs: list[Pair], fit_texts: list[str]) -> float:
    predictions = baseline_predictions(name, pairs, fit_texts, "2")
    return summarize(predictions, pairs, num_resamples=10).mean


def test_only_punctuation_differs() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(30):
        # Candidates of the same words; exemplars of others.
        shared = words(rng, SHIP + FARM, 20)
        exemplars = [dashed(words(rng, SHIP + FARM, 20)) for _ in range(2)]
        pairs.append(make_pair(i, exemplars, dashed(shared), plain(shared)))
    fit_texts = [style(words(rng, SHIP + FARM, 20)) for style in (dashed, plain) for _ in range(20)]
    assert accuracy("stylometry", pairs, fit_texts) == 1.0
    assert accuracy("char_ngrams", pairs, fit_texts) > 0.9
    assert accuracy("topic_words", pairs, fit_texts) == 0.5
    assert accuracy("chance", pairs, fit_texts) == 0.5


def test_only_topic_differs() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for i in range(30):
        exemplars = [plain(words(rng, SHIP, 20)) for _ in range(2)]
        pairs.append(
            make_pair(i, exemplars, plain(words(rng, SHIP, 20)), plain(words(rng, FARM, 20)))
        )
    fit_texts = [plain(words(rng, topic, 20)) for topic in (SHIP, FARM) for _ in range(20)]
    assert accuracy("topic_words", pairs, fit_texts) == 1.0
    assert accuracy("length", pairs, fit_texts) == 0.5
    # Word lengths tell the two vocabularies apart a little, punctuation not at all.
    assert accuracy("stylometry", pairs, fit_texts) < 0.95


def test_function_words_are_style_and_not_topic() -> None:
    ours, theirs = "the of which upon".split(), "a in that on".split()
    rng = np.random.default_rng(2)
    pairs = []
    for i in range(20):
        exemplars = [plain(words(rng, ours + SHIP, 40)) for _ in range(2)]
        chosen, rejected = (plain(words(rng, w, 40)) for w in (ours + SHIP, theirs + SHIP))
        pairs.append(make_pair(i, exemplars, chosen, rejected))
    fit_texts = [plain(words(rng, w + SHIP, 40)) for w in (ours, theirs) for _ in range(20)]
    assert accuracy("stylometry", pairs, fit_texts) > 0.9
    assert accuracy("topic_words", pairs, fit_texts) < 0.85


def test_only_length_differs() -> None:
    pair = make_pair(0, ["one two three four", "one two three four"], "a b c d e", "a b c d " * 4)
    right, _ = baseline_predictions("length", [pair], ["text"], "2")
    assert right.score_a == pytest.approx(10 * 4 / 5)  # 10 exp(-|log 5 - log 4|)
    assert right.score_b == pytest.approx(10 * 4 / 16)
    assert right.verdict == "A"


def test_length_compares_ratios_not_differences() -> None:
    pair = make_pair(0, ["w " * 10], "w " * 18, "w " * 4)  # 1.8 times beside 2.5 times
    assert accuracy("length", [pair], ["text"]) == 1.0


def test_cosine_of_character_ngrams_by_hand() -> None:
    """Texts of one or two trigrams, each in half the fit texts, so that all IDF weights agree."""
    fit_texts = ["abc", "abc", "xyz", "xyz"]
    pair = make_pair(0, ["abc"], "abc", "xyz")
    row, _ = baseline_predictions("char_ngrams", [pair], fit_texts, "1")
    assert (row.score_a, row.score_b) == pytest.approx((10.0, 5.0))
    pair = make_pair(
        0, ["abc", "xyz"], "abc", "ABC"
    )  # the centroid lies at 45 degrees; case counts
    row, _ = baseline_predictions("char_ngrams", [pair], fit_texts, "2")
    assert (row.score_a, row.score_b) == pytest.approx((5 * (1 + np.sqrt(0.5)), 5.0))


@pytest.mark.parametrize("name", sorted(BASELINES))
def test_orders_agree_and_scores_fit_the_grammar(name: str) -> None:
    rng = np.random.default_rng(3)
    pairs = [
        make_pair(i, [plain(words(rng, SHIP, 20))], *(plain(words(rng, SHIP, 20)) for _ in "cr"))
        for i in range(8)
    ]
    fit_texts = [plain(words(rng, SHIP, 20)) for _ in range(10)]
    rows = baseline_predictions(name, pairs, fit_texts, "wrong_author")
    assert [(r.pair_id, r.order) for r in rows] == [
        (p.pair_id, o) for p in pairs for o in ("AB", "BA")
    ]
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert (first.score_a, first.score_b) == (second.score_b, second.score_a)
        assert (first.verdict, second.verdict) in {("A", "B"), ("B", "A"), ("tie", "tie")}
    for r in rows:
        assert r.parsed and r.tokens == 0 and r.completion == ""
        assert (r.model, r.condition) == (name, "wrong_author")
        assert 0 <= min(r.score_a, r.score_b) <= max(r.score_a, r.score_b) <= 10


@pytest.mark.parametrize("name", sorted(BASELINES))
@pytest.mark.parametrize(
    "fit_texts", [["of the and"], ["", "  "], ["no"], ["Short text one.", "?"]]
)
def test_tiny_and_empty_texts_warn_of_nothing(name: str, fit_texts: list[str]) -> None:
    pairs = [
        make_pair(0, ["A short text."], "Another short text.", ""),
        make_pair(1, [""], "", "!"),
        make_pair(2, [], "Short text one.", "Nothing alike"),
    ]
    rows = baseline_predictions(name, pairs, fit_texts, "1")
    assert all(np.isfinite([r.score_a, r.score_b]).all() for r in rows)
    if name not in WITHOUT_EXEMPLARS:
        assert rows[4].verdict == rows[5].verdict == "tie"  # without exemplars nothing can be told
    assert baseline_predictions(name, [], fit_texts, "1") == []


def test_the_longer_and_the_shorter_text_win_whoever_wrote_them() -> None:
    pair = make_pair(0, ["one"], "two words", "a text of six words here")
    for exemplars in (("one",), ("a person who writes at length",)):
        shown = replace(pair, exemplars=exemplars)
        assert accuracy("longer", [shown], ["x"]) == 0.0
        assert accuracy("shorter", [shown], ["x"]) == 1.0
    rows = baseline_predictions("longer", [pair], ["x"], "1")
    assert (rows[0].score_a, rows[0].score_b) == (2.5, 7.5)
    assert accuracy("longer", [make_pair(0, [], "two words", "words two")], ["x"]) == 0.5


def test_terms_in_one_text_serve_where_none_is_in_two() -> None:
    pair = make_pair(0, ["harbour"], "harbour", "tractor")
    assert accuracy("topic_words", [pair], ["harbour mast", "tractor barley"]) == 1.0
    # A shared term leaves the rest out.
    assert accuracy("topic_words", [pair], ["harbour soil", "tractor soil"]) == 0.5


def test_style_features_by_hand() -> None:
    text = 'The CARGO of 1996, the captain said.\n\n"Go!" he said. (Of course.)'
    features = style_features(text)
    rates = dict(zip([*FUNCTION_WORDS, *PUNCTUATION], features, strict=False))
    num_words, num_chars = 11, len(text)
    assert rates["the"] == rates["of"] == 2 / num_words
    assert rates["he"] == 1 / num_words
    assert rates["."] == 3 / num_chars and rates['"'] == 2 / num_chars
    shape = features[len(FUNCTION_WORDS) + len(PUNCTUATION) :]
    lengths = [3, 5, 2, 3, 7, 4, 2, 2, 4, 2, 6]
    expected = [np.mean(lengths), np.std(lengths)]
    expected += [np.mean([6, 1, 2, 2]), np.std([6, 1, 2, 2])]  # words in a sentence
    expected += [np.mean([6, 5]), np.std([6, 5])]  # words in a paragraph
    expected += [8 / 11, 4 / num_chars, 8 / num_chars, 1 / 11, 1 / 11]
    assert shape == pytest.approx(expected)


def test_features_are_all_different() -> None:
    assert len(FUNCTION_WORDS) == len(set(FUNCTION_WORDS)) == 200
    assert len(PUNCTUATION) == len(set(PUNCTUATION))


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="unknown baseline 'bert'; there are char_ngrams"):
        baseline_predictions("bert", [], ["text"], "4")
    with pytest.raises(ValueError, match="at least one text"):
        baseline_predictions("length", [], [], "4")
