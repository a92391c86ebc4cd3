"""Documents -> contrastive pairs: a person's exemplars, a text of theirs, and another text.

Pairs are made in blocks. What is in a block depends on the documents, the configuration, the seed
and the block's place alone, so that blocks can be made by any number of processes, in any order,
and again after a run was cut off.
"""

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import sparse

from persrm_jax.data.copies import five_grams, is_near_copy
from persrm_jax.data.corpus import Corpus
from persrm_jax.data.splits import (
    PairConfig,
    PairSet,
    elsewhere_set,
    held_out_set,
    split_sets,
)
from persrm_jax.data.topics import fit_topics, topic_vectors
from persrm_jax.data.words import words_of
from persrm_jax.types import WRITTEN, Document, NegativeType, Order, Pair

BLOCK = 512
"""Pairs that are made together."""
_WHOLE, _POOL = 2048, 1024
"""Up to so many texts of a set are all looked through for a topic; of more, so many drawn for each
block."""
_SAMPLE = 10_000
"""Texts by which words are weighed, where there are more."""
_TRIES = 100
"""Draws of another author's text before a pair is given up."""
_CACHED = 8192


@dataclass(frozen=True)
class Block:
    """`count` pairs of a set, from number `start` on."""

    name: str
    start: int
    count: int


@dataclass(frozen=True)
class PairSets:
    """`main` holds train, dev and test authors; `seen` training authors' unseen texts."""

    main: list[Pair]
    seen: list[Pair]


def make_pairs(documents: Sequence[Document], cfg: PairConfig, seed: int) -> PairSets:
    """Every set, in memory. The same documents, config and seed give the same pairs.

    Raises:
        ValueError: too few authors.
    """
    corpus = Corpus.of(documents)
    maker = PairMaker(corpus, split_sets(corpus, cfg, seed), cfg, seed)
    return PairSets(maker.all("train", "dev", "test"), maker.all("seen"))


def make_test_pairs(documents: Sequence[Document], cfg: PairConfig, seed: int) -> list[Pair]:
    """`num_test` pairs of all authors alike: for texts that no training has seen. Kinds that have
    to be written are left out; where there is no other, pairs are of the same topic."""
    cfg = _found_kinds(cfg)
    corpus = Corpus.of(documents)
    return PairMaker(corpus, [held_out_set(corpus, cfg)], cfg, seed).all("test")


def make_elsewhere_pairs(
    corpus: Corpus, cfg: PairConfig, known: Container[str], seed: int
) -> list[Pair]:
    """Pairs of texts of unseen domains, by authors who are not `known` from training.

    Raises:
        ValueError: as `elsewhere_set`.
    """
    cfg = _found_kinds(cfg)
    return PairMaker(corpus, [elsewhere_set(corpus, cfg, known)], cfg, seed).all("elsewhere")


def _found_kinds(cfg: PairConfig) -> PairConfig:
    """Without the kinds that have to be written."""
    kinds = tuple(kind for kind in cfg.kinds_of("test") if kind not in WRITTEN)
    return replace(cfg, test_negatives=kinds or ("other_author_same_topic",))


class PairMaker:
    """Makes the pairs of sets, block by block."""

    def __init__(
        self,
        corpus: Corpus,
        sets: Sequence[PairSet],
        cfg: PairConfig,
        seed: int,
        topic_weights: np.ndarray | None = None,
    ) -> None:
        self.corpus, self.cfg, self.seed = corpus, cfg, seed
        self.sets = {one.name: one for one in sets}
        if topic_weights is not None:
            self.topic_weights = topic_weights
        self._document = lru_cache(_CACHED)(corpus.__getitem__)
        self._words = lru_cache(_CACHED)(lambda i: words_of(self._document(i).text))
        self._grams = lru_cache(_CACHED)(lambda i: five_grams(self._words(i)))
        self._vectors = lru_cache(len(sets))(self._vectors_of_set)

    def share(self) -> dict[str, Any]:
        """What another process makes the same pairs from."""
        topical = "other_author_same_topic" in self.cfg.all_kinds
        return {
            "corpus": self.corpus,
            "sets": list(self.sets.values()),
            "cfg": self.cfg,
            "seed": self.seed,
            "topic_weights": self.topic_weights if topical else None,
        }

    def blocks(self, *names: str) -> list[Block]:
        """All blocks of the sets; none of a set with fewer than two authors."""
        return [
            Block(name, start, min(BLOCK, one.count - start))
            for name in names
            for one in [self.sets[name]]
            if len(one.people) > 1
            for start in range(0, one.count, BLOCK)
        ]

    def all(self, *names: str) -> list[Pair]:
        """The pairs of all blocks of the sets."""
        return [p for block in self.blocks(*names) for p in self.deal(block, self.make(block))]

    def make(self, block: Block) -> list[Pair]:
        """A block's pairs. One is left out if its chosen text leaves no text by others, or too few
        exemplars, that are no near copies. A rejected text that a writer has to write is empty."""
        of, cfg = self.sets[block.name], self.cfg
        rng = np.random.default_rng([self.seed, *of.key, 0, block.start])
        orders: list[Order] = [("AB", "BA")[side] for side in rng.permutation(block.count) % 2]
        numbers = range(block.start, block.start + block.count)
        in_turn = cfg.kinds_of(block.name)
        kinds = [in_turn[number % len(in_turn)] for number in numbers]
        chosen = np.array(
            [rng.choice(of.candidates.of(a)) for a in self._turns(of, block).tolist()]
        )
        topical = [i for i, kind in enumerate(kinds) if kind == "other_author_same_topic"]
        nearest = dict(zip(topical, self._nearest(of, chosen[topical], rng), strict=True))
        pairs = []
        for i, (number, kind) in enumerate(zip(numbers, kinds, strict=True)):
            mine = int(chosen[i])
            others = nearest[i] if i in nearest else self._draws(of, mine, rng)
            own = self._own(of, mine, number, rng)
            found = self._complete(mine, kind, others, own)
            if found is not None:
                pair_id = f"{of.name}-{number:06d}"
                pairs.append(self._pair(pair_id, of, mine, *found, kind, orders[i]))
        return pairs

    def deal(self, block: Block, pairs: Sequence[Pair]) -> list[Pair]:
        """A block's pairs with balanced sides: where some were left out, or kinds are several, they
        are dealt anew, of each kind as many chosen texts to A as to B."""
        kinds = self.cfg.kinds_of(block.name)
        if len(pairs) == block.count and len(kinds) == 1:
            return list(pairs)
        rng = np.random.default_rng([self.seed, *self.sets[block.name].key, 2, block.start])
        orders: dict[str, Order] = {}
        for number, kind in enumerate(kinds):
            ids = [pair.pair_id for pair in pairs if pair.negative_type == kind]
            odd = (block.start // BLOCK + number) * (len(ids) % 2)  # who is one over takes turns
            for pair_id, place in zip(ids, rng.permutation(len(ids)), strict=True):
                orders[pair_id] = "BA" if (place + odd) % 2 else "AB"
        return [replace(pair, order=orders[pair.pair_id]) for pair in pairs]

    def _turns(self, of: PairSet, block: Block) -> np.ndarray:
        """Authors take turns, in a new order each round."""
        size = len(of.people)
        rounds = range(block.start // size, (block.start + block.count - 1) // size + 1)
        mixed = [
            np.random.default_rng([self.seed, *of.key, 1, r]).permutation(size) for r in rounds
        ]
        first = block.start - rounds[0] * size
        return of.people[np.concatenate(mixed)[first : first + block.count]]

    def _draws(self, of: PairSet, mine: int, rng: np.random.Generator) -> Iterator[int]:
        """Texts by others, at random."""
        for _ in range(_TRIES):
            other = int(rng.choice(of.texts))
            if self.corpus.author[other] != self.corpus.author[mine]:
                yield other

    def _nearest(
        self, of: PairSet, chosen: np.ndarray, rng: np.random.Generator
    ) -> list[Sequence[int]]:
        """For each, `topic_pool` random texts by others, the nearest in topic first."""
        if not len(chosen):
            return []
        if len(of.texts) <= _WHOLE:
            pool, vectors = of.texts, self._vectors(of.name)
        else:
            pool = rng.choice(of.texts, _POOL, replace=False)
            vectors = self._vectors_of(pool)
        nearness = (self._vectors_of(chosen) @ vectors.T).toarray()
        found = []
        for near, mine in zip(nearness, chosen, strict=True):
            drawn = rng.permutation(len(pool))
            is_other = self.corpus.author[pool[drawn]] != self.corpus.author[mine]
            drawn = drawn[is_other][: self.cfg.topic_pool]
            found.append(pool[drawn[np.argsort(-near[drawn], kind="stable")]].tolist())
        return found

    def _vectors_of_set(self, name: str) -> sparse.csr_array:
        return self._vectors_of(self.sets[name].texts)

    def _vectors_of(self, numbers: np.ndarray) -> sparse.csr_array:
        return topic_vectors((self._words(int(i)) for i in numbers), self.topic_weights)

    @cached_property
    def topic_weights(self) -> np.ndarray:
        """What words weigh in the corpus's candidates, or in a sample of them."""
        numbers = self.corpus.candidates.texts
        if len(numbers) > _SAMPLE:
            rng = np.random.default_rng([self.seed, 7])
            numbers = np.sort(rng.choice(numbers, _SAMPLE, replace=False))
        return fit_topics(self._words(int(i)) for i in numbers)

    def _complete(
        self, mine: int, kind: NegativeType, others: Iterable[int], own: Iterator[int]
    ) -> tuple[int | None, list[int]] | None:
        """The rejected text, unless it is to be written, and the first k of `own` as exemplars; no
        near copies."""
        shown = [self._grams(mine)]
        rejected = None
        if kind not in WRITTEN:
            fresh = (i for i in others if not is_near_copy(shown[0], self._grams(i)))
            rejected = next(fresh, None)
            if rejected is None:
                return None
            shown.append(self._grams(rejected))
        exemplars: list[int] = []
        for i in own:
            if not any(is_near_copy(grams, self._grams(i)) for grams in shown):
                exemplars.append(i)
            if len(exemplars) == self.cfg.num_exemplars:
                return rejected, exemplars
        return None

    def _own(self, of: PairSet, mine: int, number: int, rng: np.random.Generator) -> Iterator[int]:
        """The author's exemplars in the order in which a pair takes them, which some share."""
        author = int(self.corpus.author[mine])
        if (share := self.cfg.exemplars_shared_by) > 1:
            turn = number // len(of.people)
            rng = np.random.default_rng([self.seed, *of.key, 3, author, turn // share])
        yield from rng.permutation(self.corpus.exemplars.of(author)).tolist()

    def _pair(
        self,
        pair_id: str,
        of: PairSet,
        mine: int,
        other: int | None,
        shown: Sequence[int],
        kind: NegativeType,
        order: Order,
    ) -> Pair:
        chosen, exemplars = self._document(mine), [self._document(i) for i in shown]
        rejected = None if other is None else self._document(other)
        # A prompt that only one of the two texts answers would give the answer away.
        is_shared = rejected is None or rejected.prompt == chosen.prompt
        return Pair(
            pair_id=pair_id,
            author=chosen.author,
            author_split=of.split,
            domain=chosen.domain,
            prompt=chosen.prompt if is_shared else "",
            exemplars=tuple(d.text for d in exemplars),
            exemplar_ids=tuple(d.doc_id for d in exemplars),
            chosen=chosen.text,
            chosen_id=chosen.doc_id,
            rejected=rejected.text if rejected else "",
            rejected_id=rejected.doc_id if rejected else f"{chosen.doc_id}/{kind}",
            rejected_author=rejected.author if rejected else "",
            negative_type=kind,
            order=order,
            writer="human" if rejected else "",
            seed=self.seed,
        )


def with_wrong_author(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """The control: each pair with the exemplars of a third author of the same domain, neither the
    chosen text's nor the rejected text's (whose exemplars would invert the answer).

    Raises:
        ValueError: a pair for which no third author is among `pairs`.
    """
    by_domain: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        by_domain[pair.domain].append(pair)
    rng = np.random.default_rng([seed, 6])
    swapped = []
    for pair in pairs:
        taken = {pair.author, pair.rejected_author}
        others = [p for p in by_domain[pair.domain] if p.author not in taken]
        others = others or [p for p in pairs if p.author not in taken]
        if not others:
            raise ValueError("wrong-author exemplars need pairs of at least three authors")
        donor = others[int(rng.integers(len(others)))]
        values = {**pair.__dict__}
        values.update(exemplars=donor.exemplars, exemplar_ids=donor.exemplar_ids)
        swapped.append(Pair(**values))
    return swapped
