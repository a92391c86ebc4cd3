"""What a judge is shown beside the two candidates: so many of the person's texts, or another's."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from persrm_jax.data.copies import five_grams, is_near_copy
from persrm_jax.data.corpus import Corpus
from persrm_jax.data.pairs import with_wrong_author
from persrm_jax.data.words import words_of
from persrm_jax.types import Document, Pair

WRONG_AUTHOR = "wrong_author"


def make_conditions(
    pairs: Sequence[Pair], documents: Sequence[Document], counts: Sequence[int], seed: int
) -> dict[str, list[Pair]]:
    """Pairs by condition: as they are, with a third author's exemplars, and with other numbers of
    exemplars. A smaller number shows the first of a larger one's.

    Args:
        counts: numbers of exemplars beside the pairs' own. With the largest, pairs whose author has
            too few that are no near copies of a candidate are left out, for all of `counts`.

    Raises:
        ValueError: fewer than three authors, or no author with enough exemplars.
    """
    own = len(pairs[0].exemplars)
    conditions = {str(own): list(pairs)}
    if others := sorted({*counts} - {own}):
        longest = with_exemplars(pairs, documents, max(*others, own), seed)
        if not longest:
            raise ValueError(
                f"--eval.exemplars {max(others)}: no pair's author has that many texts to show"
            )
        conditions |= {str(k): [first_exemplars(pair, k) for pair in longest] for k in others}
    conditions = {k: conditions[k] for k in sorted(conditions, key=int)}
    return {**conditions, WRONG_AUTHOR: with_wrong_author(pairs, seed)}


def first_exemplars(pair: Pair, k: int) -> Pair:
    """The pair with its first k exemplars."""
    return replace(pair, exemplars=pair.exemplars[:k], exemplar_ids=pair.exemplar_ids[:k])


def with_exemplars(
    pairs: Sequence[Pair], documents: Sequence[Document], k: int, seed: int
) -> list[Pair]:
    """Pairs with k exemplars: their own, then others of the author's exemplar pool, in an order of
    the seed's; near copies of a candidate are passed over, and so are pairs with too few."""
    if k <= len(pairs[0].exemplars):
        return list(pairs)
    corpus = Corpus.of(documents)
    numbers = {name: number for number, name in enumerate(corpus.names)}
    grams = cache(lambda text: five_grams(words_of(text)))
    found = []
    for pair in pairs:
        rng = np.random.default_rng([seed, 10, *pair.pair_id.encode()])
        shown = dict(zip(pair.exemplar_ids, pair.exemplars, strict=True))
        for i in rng.permutation(corpus.exemplars.of(numbers[pair.author])).tolist():
            text = corpus[i].text
            candidates = (pair.chosen, pair.rejected)
            if not any(is_near_copy(grams(text), grams(other)) for other in candidates):
                shown.setdefault(corpus[i].doc_id, text)
            if len(shown) == k:
                found.append(
                    replace(pair, exemplars=tuple(shown.values()), exemplar_ids=tuple(shown))
                )
                break
    return found
