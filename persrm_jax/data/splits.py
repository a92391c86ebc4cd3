"""Which authors and texts are to train on, which to select by, and which to test on."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from persrm_jax.data.corpus import Corpus, Grouped
from persrm_jax.types import NegativeType, Split

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


_LEAST = {
    "num_exemplars": 1,
    "exemplars_shared_by": 1,
    "topic_pool": 1,
    "num_train": 0,
    "num_dev": 0,
    "num_test": 0,
    "num_seen": 0,
    "num_elsewhere": 0,
    "max_pairs": 0,
}


@dataclass(frozen=True)
class PairConfig:
    """How many pairs, of which kinds."""

    num_exemplars: int = 4
    """Texts that show the person (k)."""
    exemplars_shared_by: int = 1
    """Pairs of an author, one after another, that show the same exemplars (others only in place of
    near copies): evaluation reads them once, and SFT with --sft.group-size."""
    negatives: tuple[NegativeType, ...] = ("other_author_same_topic",)
    """Kinds of rejected text, in equal parts."""
    test_negatives: tuple[NegativeType, ...] = ()
    """Kinds in the pairs that are not trained on, where they differ."""
    num_train: int = 2000
    """Pairs of training authors."""
    num_dev: int = 100
    """Pairs of dev authors: for every selection."""
    num_test: int = 300
    """Pairs of test authors, whom training never sees."""
    num_seen: int = 100
    """Pairs of training authors with texts that training never sees."""
    unseen_domains: tuple[str, ...] = ()
    """Domains whose texts are kept from training, to test on."""
    num_elsewhere: int = 100
    """Pairs of those texts, by authors whom training never sees."""
    dev_share: float = 0.15
    """Share of authors held out for selection."""
    test_share: float = 0.3
    """Share of authors held out for the result."""
    max_pairs: int = 0
    """Pairs in all sets together, which then shrink alike (0: as many as they say)."""
    topic_pool: int = 200
    """Random texts by others among which the one nearest in topic is taken."""

    def __post_init__(self) -> None:
        if not self.negatives:
            raise ValueError("--pairs.negatives: name at least one kind")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--pairs.{flag} {getattr(self, name)}: must be at least {least}")

    def kinds_of(self, name: str) -> tuple[NegativeType, ...]:
        """Kinds of rejected text in a set."""
        return self.negatives if name == "train" else self.test_negatives or self.negatives

    @property
    def all_kinds(self) -> tuple[NegativeType, ...]:
        """Of any set."""
        return tuple(dict.fromkeys((*self.negatives, *self.test_negatives)))

    @property
    def counts(self) -> dict[str, int]:
        """Pairs of each set."""
        asked = {
            "train": self.num_train,
            "dev": self.num_dev,
            "test": self.num_test,
            "seen": self.num_seen,
        }
        whole = sum(asked.values())
        if not self.max_pairs or whole <= self.max_pairs:
            return asked
        ends = [round(end * self.max_pairs / whole) for end in accumulate(asked.values())]
        return {n: b - a for n, a, b in zip(asked, [0, *ends], ends, strict=False)}

    @property
    def elsewhere_count(self) -> int:
        """Pairs of unseen domains, which come beside the others and shrink as they do."""
        whole = self.num_train + self.num_dev + self.num_test + self.num_seen
        if not self.max_pairs or whole <= self.max_pairs:
            return self.num_elsewhere
        return round(self.num_elsewhere * self.max_pairs / whole)


@dataclass(frozen=True)
class PairSet:
    """Whose texts the pairs of a set are made of."""

    name: str
    split: Split
    count: int
    """Pairs that are asked for."""
    people: np.ndarray
    """Authors by number, who take turns."""
    candidates: Grouped
    """Their texts."""
    key: tuple[int, ...]
    """What its draws are seeded with, beside the run's seed."""

    @property
    def texts(self) -> np.ndarray:
        return self.candidates.texts


def split_authors(authors: Iterable[str], cfg: PairConfig, seed: int) -> dict[str, Split]:
    """Each author's split, by the seed; dev and test get at least two authors each.

    Raises:
        ValueError: fewer than six authors.
    """
    people = sorted(set(authors))
    if len(people) < 6:
        raise ValueError(
            f"{len(people)} author{'s' * (len(people) != 1)} cannot be split into train, dev and "
            "test with two in each: at least 6 are needed, each with a candidate text and "
            f"--pairs.num-exemplars {cfg.num_exemplars} texts to show"
        )
    order = np.random.default_rng([seed, 2]).permutation(len(people))
    num_dev = max(2, round(cfg.dev_share * len(people)))
    num_test = max(2, round(cfg.test_share * len(people)))
    if num_dev + num_test > len(people) - 2:
        raise ValueError(
            f"--pairs.dev-share {cfg.dev_share} and --pairs.test-share {cfg.test_share} leave "
            f"fewer than two of {len(people)} authors for training"
        )
    counts = {"dev": num_dev, "test": num_test, "train": len(people) - num_dev - num_test}
    splits = [split for split in SPLITS for _ in range(counts[split])]
    return {people[i]: split for i, split in zip(order, splits, strict=True)}


def eligible(corpus: Corpus, cfg: PairConfig) -> np.ndarray:
    """Authors, by number, with a candidate and enough exemplars."""
    enough = corpus.exemplars.counts >= cfg.num_exemplars
    return np.flatnonzero(enough & (corpus.candidates.counts > 0))


def split_sets(corpus: Corpus, cfg: PairConfig, seed: int) -> list[PairSet]:
    """`train`, `dev` and `test`; and `seen`, to which go half of the training authors' candidates.

    Raises:
        ValueError: as `split_authors`.
    """
    authors = eligible(corpus, cfg)
    splits = split_authors((corpus.names[a] for a in authors), cfg, seed)
    split_of = np.full(len(corpus.names), "", "U5")
    split_of[authors] = [splits[corpus.names[a]] for a in authors]
    half = _later_half(corpus, seed)
    in_split = {split: (split_of == split)[corpus.author] for split in SPLITS}
    counts, train = cfg.counts, in_split["train"]
    return [
        _pair_set(corpus, train & ~half, "train", "train", counts["train"], (3, 0)),
        _pair_set(corpus, in_split["dev"], "dev", "dev", counts["dev"], (3, 1)),
        _pair_set(corpus, in_split["test"], "test", "test", counts["test"], (3, 2)),
        _pair_set(corpus, train & half, "seen", "train", counts["seen"], (4,)),
    ]


def held_out_set(corpus: Corpus, cfg: PairConfig) -> PairSet:
    """All authors alike, for texts that no training has seen."""
    chosen = np.isin(corpus.author, eligible(corpus, cfg))
    return _pair_set(corpus, chosen, "test", "test", cfg.num_test, (3, 2))


def elsewhere_set(corpus: Corpus, cfg: PairConfig, known: Container[str]) -> PairSet:
    """The authors of a corpus of unseen domains who are not `known` from training.

    Raises:
        ValueError: fewer than two.
    """
    authors = [int(a) for a in eligible(corpus, cfg) if corpus.names[a] not in known]
    if len(authors) < 2:
        raise ValueError(
            f"domains kept from training: {len(authors)} of {len(corpus.names)} authors have "
            "enough texts there and are not trained on; at least 2 are needed "
            "(--pairs.unseen-domains, --personas.elsewhere)"
        )
    chosen = np.isin(corpus.author, authors)
    return _pair_set(corpus, chosen, "elsewhere", "test", cfg.elsewhere_count, (9,))


def _pair_set(
    corpus: Corpus, chosen: np.ndarray, name: str, split: Split, count: int, key: tuple[int, ...]
) -> PairSet:
    candidates = corpus.by_author(chosen & ~corpus.is_exemplar)
    return PairSet(name, split, count, np.flatnonzero(candidates.counts), candidates, key)


def _later_half(corpus: Corpus, seed: int) -> np.ndarray:
    """[N]: whether a text is in the second half of its author's candidates, in an order of the
    seed's. Passages of one text stay together, since one may be another's prompt; a lone text is in
    the first half."""
    texts, starts = corpus.candidates
    counts = np.diff(starts)
    _, firsts, sources = np.unique(corpus.source[texts], return_index=True, return_inverse=True)
    first = firsts[sources]
    keys = np.random.default_rng([seed, 5]).random(len(texts))[first]
    order = np.lexsort((np.arange(len(texts)), keys, corpus.author[texts]))
    places = np.empty(len(texts), np.int64)
    places[order] = np.arange(len(texts)) - np.repeat(starts[:-1], counts)
    found = np.zeros(len(corpus), np.bool_)
    found[texts] = places[first] >= np.repeat((counts + 1) // 2, counts)
    return found
