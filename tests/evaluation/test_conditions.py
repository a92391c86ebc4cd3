"""What judges are shown: more of the person's own texts, none, or a third author's."""

from dataclasses import replace

import pytest

from persrm_jax.data.pairs import make_test_pairs
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.data.splits import PairConfig
from persrm_jax.evaluation.conditions import make_conditions, with_exemplars
from persrm_jax.types import Document, Pair

DOCUMENTS = make_personas(PersonaConfig(num_personas=8, texts=24, clauses=6), 3)
PAIRS = make_test_pairs(DOCUMENTS, PairConfig(num_exemplars=2, num_test=20), 3)


def test_smaller_numbers_show_the_first_of_larger_ones() -> None:
    conditions = make_conditions(PAIRS, DOCUMENTS, (0, 1, 4, 8), 3)
    assert list(conditions) == ["0", "1", "2", "4", "8", "wrong_author"]
    own = {d.doc_id: d for d in DOCUMENTS if d.split == "train"}
    for i, pair in enumerate(PAIRS):
        longest = conditions["8"][i]
        assert len(set(longest.exemplar_ids)) == 8
        assert {own[doc_id].author for doc_id in longest.exemplar_ids} == {pair.author}
        assert [own[doc_id].text for doc_id in longest.exemplar_ids] == list(longest.exemplars)
        for k in (0, 1, 2, 4):
            shown = conditions[str(k)][i]
            assert shown.exemplars == longest.exemplars[:k]
            assert replace(shown, exemplars=(), exemplar_ids=()) == replace(
                pair, exemplars=(), exemplar_ids=()
            )
        assert conditions["2"][i] == pair
        assert not set(conditions["wrong_author"][i].exemplar_ids) & set(longest.exemplar_ids)


def test_a_pair_keeps_its_exemplars_whatever_others_there_are() -> None:
    alone = make_conditions(PAIRS[4:9], DOCUMENTS, (6,), 3)["6"]
    assert alone == make_conditions(PAIRS, DOCUMENTS, (6,), 3)["6"][4:9]
    assert alone != make_conditions(PAIRS[4:9], DOCUMENTS, (6,), 4)["6"]


def test_near_copies_of_a_candidate_are_not_shown() -> None:
    def text(doc_id: str, words: str) -> Document:
        return Document("ann", doc_id, "d", "train", words)

    pair = replace(PAIRS[0], author="ann", chosen="one two three four five six seven eight nine")
    pair = replace(pair, exemplars=("mine",), exemplar_ids=("0",))
    documents = [
        text("copy", "one two three four five six seven eight ten"),
        text("other", "a text that says something else altogether and at length"),
        replace(text("candidate", "never shown since it is a candidate"), split="test"),
    ]
    (found,) = with_exemplars([pair], documents, 2, 0)
    assert found.exemplar_ids == ("0", "other")
    assert with_exemplars([pair], documents, 3, 0) == []
    with pytest.raises(ValueError, match="--eval.exemplars 3: no pair's author has that many"):
        make_conditions([pair, *PAIRS[1:1]], documents, (3,), 0)


def test_without_other_numbers_there_are_the_pairs_and_the_control() -> None:
    found: dict[str, list[Pair]] = make_conditions(PAIRS, [], (), 3)
    assert list(found) == ["2", "wrong_author"] and found["2"] == PAIRS
