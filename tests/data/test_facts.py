import numpy as np
import pytest

from persrm_jax.data.facts import FACTS, LEVELS, Yardstick, fit_yardstick, measure

# Three sentences, two paragraphs, 18 words, 99 characters.
TEXT = (
    "Well, I'm not sure - maybe it's \"fine\"! Is John's cat in the house (of 12)?\n\n"
    "we think; however: no."
)
HAND = {
    "sentence length": 18 / 3,
    "exclamation marks": 1 / 3,
    "question marks": 1 / 3,
    "commas": 1 / 3,
    "semicolons and dashes": 2 / 3 + 1,
    "quotation marks": 2 / 3,
    "parentheses": 1 / 3,
    "capital letters": 2 / 3,
    "contractions": 100 * 2 / 18,  # I'm, it's; John's is a possessive
    "hedges": 100 * 2 / 18,  # maybe, think
    "first person": 100 * 2 / 18,  # I'm, we
    "connectives": 100 * 1 / 18,  # however
    "articles": 100 * 1 / 18,  # the
    "prepositions": 100 * 2 / 18,  # in, of
    "auxiliary verbs": 100 * 1 / 18,  # Is
    "digits": 100 * 2 / 99,
    "paragraph length": 18 / 2,
    "word variety": 1.0,
}


def test_hand_measured_facts() -> None:
    words = "well i'm not sure maybe it's fine is john's cat in the house of we think however no"
    assert len(words.split()) == 18 and len(TEXT) == 99
    for name, value in HAND.items():
        assert FACTS[name](TEXT) == pytest.approx(value), name
    assert FACTS["word length"](TEXT) == pytest.approx(len(words.replace(" ", "")) / 18)


def test_every_fact_has_a_hand_value_and_a_column() -> None:
    assert HAND.keys() | {"word length", "emphasis"} == FACTS.keys()
    measured = measure(TEXT)
    for column, name in enumerate(FACTS):
        assert measured[column] == FACTS[name](TEXT)


def test_repeated_words_and_curly_quotes() -> None:
    assert FACTS["word variety"]("a a a b") == 0.5
    assert FACTS["contractions"]("I’m here, it’s Ann’s.") == pytest.approx(50.0)
    assert FACTS["quotation marks"]("“Yes” he said.") == 2.0
    assert FACTS["emphasis"]("This is really good.") == pytest.approx(25.0)
    assert FACTS["emphasis"](TEXT) == 0
    assert FACTS["sentence length"]("Pay 3.50 now... or never") == 2.0  # "3.50" ends none


@pytest.mark.parametrize("text", ["", "   ", "...", "12 34", "\n\n\n", "ж"])
def test_any_text_has_finite_facts(text: str) -> None:
    assert np.isfinite(measure(text)).all()


def _people(values: dict[str, list[int]]) -> tuple[list[str], list[str]]:
    """Texts of eight words in which only the commas (and, as noise, the articles) differ."""
    rng = np.random.default_rng(0)
    texts, authors = [], []
    for author, counts in values.items():
        for count in counts:
            words = ["word"] * 8
            for i in rng.choice(8, int(rng.integers(0, 5)), replace=False):
                words[i] = "the"
            marked = [w + "," if i < count else w for i, w in enumerate(words)]
            texts.append(" ".join(marked) + ".")
            authors.append(author)
    return texts, authors


def test_the_yardstick_ranks_a_planted_fact_first() -> None:
    texts, authors = _people({"a": [0, 0, 1], "b": [3, 3, 4], "c": [7, 7, 6], "d": [2, 1, 2]})
    yardstick = fit_yardstick(texts, authors, 3)
    assert yardstick.names[0] == "commas"
    assert len(yardstick.names) == 3
    assert [list(FACTS)[c] for c in yardstick.columns] == list(yardstick.names)
    counts = [0, 0, 1, 3, 3, 4, 7, 7, 6, 2, 1, 2]
    np.testing.assert_allclose(yardstick.terciles[0], np.quantile(counts, [1 / 3, 2 / 3]))


def test_the_yardstick_orders_by_the_f_ratio() -> None:
    texts, authors = _people({"a": [0, 2, 1], "b": [3, 5, 4], "c": [7, 4, 6]})
    yardstick = fit_yardstick(texts, authors, len(FACTS))
    values = np.array([measure(text) for text in texts])
    ratios = []
    for column in yardstick.columns:
        groups = [
            [v[column] for v, a in zip(values, authors, strict=True) if a == p] for p in "abc"
        ]
        means = [sum(g) / len(g) for g in groups]
        between = np.var(means)
        within = np.mean([np.var(g) for g in groups])
        ratios.append(between / max(within, 1e-12) if between > 0 else 0.0)
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[0] > 1


def test_levels_by_hand() -> None:
    column = list(FACTS).index("commas")
    yardstick = Yardstick(("commas",), np.array([column]), np.array([[1.0, 3.0]]))
    facts = np.zeros(len(FACTS))
    levels = []
    for value in (0, 1, 1.5, 3, 3.1):
        facts[column] = value
        levels.append(LEVELS[int(yardstick.levels(facts)[0])])
    assert levels == ["low", "low", "medium", "medium", "high"]


def test_a_fact_that_most_texts_lack_still_has_levels() -> None:
    texts, authors = _people({"a": [0, 0, 0, 0], "b": [0, 0, 0, 0], "c": [0, 0, 6, 6]})
    yardstick = fit_yardstick(texts, authors, 1)
    assert yardstick.names == ("commas",)
    found = {c: int(yardstick.levels(measure(f"{'x,' * c} y."))[0]) for c in (0, 6)}
    assert found[0] < found[6]


def test_one_author_is_no_corpus() -> None:
    with pytest.raises(ValueError, match="two authors, got 1"):
        fit_yardstick(["a.", "b."], ["x", "x"], 2)
