"""Documents -> contrastive pairs: a person's exemplars, a text of theirs, and somebody else's."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

from persrm_jax.types import Document, NegativeType, Order, Pair, Split

NEAR_COPY = 0.3
SPLITS: tuple[Split, ...] = ("train", "dev", "test")


@dataclass(frozen=True)
class PairConfig:
    """How many pairs, of which kinds."""

    num_exemplars: int = 4
    """Texts that show the person (k)."""
    negatives: tuple[NegativeType, ...] = ("other_author_same_topic",)
    """Kinds of rejected text, in equal parts."""
    num_train: int = 2000
    """Pairs of training authors."""
    num_dev: int = 100
    """Pairs of dev authors: for every selection."""
    num_test: int = 300
    """Pairs of test authors, whom training never sees."""
    num_seen: int = 100
    """Pairs of training authors with texts that training never sees."""
    dev_share: float = 0.15
    """Share of authors held out for selection."""
    test_share: float = 0.3
    """Share of authors held out for the result."""
    topic_pool: int = 200
    """Random texts by others among which the one nearest in topic is taken."""

    def __post_init__(self) -> None:
        if self.num_exemplars < 1:
            raise ValueError(f"--pairs.num-exemplars {self.num_exemplars}: must be at least 1")
        if not self.negatives:
            raise ValueError("--pairs.negatives: name at least one kind")
        known = ("other_author", "other_author_same_topic")
        for kind in self.negatives:
            if kind not in known:
                raise ValueError(f"--pairs.negatives {kind}: expected one of {', '.join(known)}")


@dataclass(frozen=True)
class PairSets:
    """`main` holds train, dev and test authors; `seen` training authors' unseen texts."""

    main: list[Pair]
    seen: list[Pair]


def split_authors(authors: Sequence[str], cfg: PairConfig, seed: int) -> dict[str, Split]:
    """Each author's split, by the seed; dev and test get at least two authors each.

    Raises:
        ValueError: fewer than six authors.
    """
    people = sorted(set(authors))
    if len(people) < 6:
        raise ValueError(
            f"{len(people)} author{'s' * (len(people) != 1)} cannot be split into train, dev and "
            "test with two in each: at least 6 are needed"
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


def five_grams(text: str) -> frozenset[int]:
    """Hashes of a text's sequences of five words."""
    words = text.lower().split()
    return frozenset(hash(tuple(words[i : i + 5])) for i in range(len(words) - 4))


def is_near_copy(first: frozenset[int], second: frozenset[int]) -> bool:
    """Whether the Jaccard similarity of two texts' five-grams reaches `NEAR_COPY`."""
    union = len(first | second)
    return union > 0 and len(first & second) >= NEAR_COPY * union


@dataclass
class _Library:
    """Documents by author and pool, with what near-copy and topic search need."""

    exemplars: dict[str, list[Document]] = field(default_factory=lambda: defaultdict(list))
    candidates: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    documents: list[Document] = field(default_factory=list)
    grams: dict[str, frozenset[int]] = field(default_factory=dict)

    def grams_of(self, document: Document) -> frozenset[int]:
        if document.doc_id not in self.grams:
            self.grams[document.doc_id] = five_grams(document.text)
        return self.grams[document.doc_id]


def make_pairs(documents: Sequence[Document], cfg: PairConfig, seed: int) -> PairSets:
    """Builds every set. The same documents, config and seed give the same pairs.

    Raises:
        ValueError: too few authors, or an author with fewer than `num_exemplars` exemplars.
    """
    library, authors = _index(documents, cfg)
    topics = _topic_vectors(library.documents)
    splits = split_authors(authors, cfg, seed)
    halves = _halve(library, [a for a in authors if splits[a] == "train"], seed)
    main: list[Pair] = []
    for number, split in enumerate(SPLITS):
        people = [a for a in authors if splits[a] == split]
        pool = halves[0] if split == "train" else {a: library.candidates[a] for a in people}
        count = (cfg.num_train, cfg.num_dev, cfg.num_test)[number]
        main += _pairs_of(split, split, count, pool, library, topics, cfg, [seed, 3, number])
    seen = _pairs_of("seen", "train", cfg.num_seen, halves[1], library, topics, cfg, [seed, 4])
    return PairSets(main, seen)


def make_test_pairs(documents: Sequence[Document], cfg: PairConfig, seed: int) -> list[Pair]:
    """`num_test` pairs of all authors alike: for texts that no training has seen.

    Raises:
        ValueError: as `make_pairs`.
    """
    library, authors = _index(documents, cfg)
    pool = {a: library.candidates[a] for a in authors}
    topics = _topic_vectors(library.documents)
    return _pairs_of("test", "test", cfg.num_test, pool, library, topics, cfg, [seed, 3, 2])


def _index(documents: Sequence[Document], cfg: PairConfig) -> tuple[_Library, list[str]]:
    """The library, and the authors who have both exemplars and candidates."""
    library = _Library(documents=[d for d in documents if d.split == "test"])
    for document in documents:
        if document.split == "train":
            library.exemplars[document.author].append(document)
    for index, document in enumerate(library.documents):
        library.candidates[document.author].append(index)
    authors = sorted(set(library.exemplars) & set(library.candidates))
    for author in authors:
        if (have := len(library.exemplars[author])) < cfg.num_exemplars:
            raise ValueError(
                f"author {author!r} has {have} exemplar text{'s' * (have != 1)} and "
                f"--pairs.num-exemplars is {cfg.num_exemplars}: bring more texts or ask for fewer"
            )
    return library, authors


def _topic_vectors(documents: Sequence[Document]) -> sparse.spmatrix | sparse.sparray:
    """Content-word TF-IDF, rows normalised."""
    vectorizer = TfidfVectorizer(
        stop_words=sorted(ENGLISH_STOP_WORDS), token_pattern=r"\b[^\W\d_]{3,}\b", dtype=np.float32
    )
    return vectorizer.fit_transform([d.text for d in documents])


def _halve(
    library: _Library, authors: Sequence[str], seed: int
) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """Training authors' candidates: one half to train on, one for `seen`. A lone text trains."""
    rng = np.random.default_rng([seed, 5])
    train, seen = {}, {}
    for author in authors:
        mixed = rng.permutation(library.candidates[author]).tolist()
        cut = (len(mixed) + 1) // 2
        train[author], seen[author] = sorted(mixed[:cut]), sorted(mixed[cut:])
    return train, {a: texts for a, texts in seen.items() if texts}


def _pairs_of(
    name: str,
    split: Split,
    count: int,
    pool: dict[str, list[int]],
    library: _Library,
    topics: sparse.spmatrix | sparse.sparray,
    cfg: PairConfig,
    seed: list[int],
) -> list[Pair]:
    if len(pool) < 2 or count == 0:
        return []
    authors = sorted(pool)
    rng = np.random.default_rng(seed)
    orders: list[Order] = ["AB", "BA"] * (count // 2 + 1)
    sides = rng.permutation(count)
    # Authors take turns, in a new order each round.
    turns = np.concatenate(
        [rng.permutation(len(authors)) for _ in range(-(-count // len(authors)))]
    )
    everything = np.array(sorted(i for texts in pool.values() for i in texts))
    pairs = []
    for number in range(count):
        author = authors[turns[number]]
        kind = cfg.negatives[number % len(cfg.negatives)]
        chosen_index = int(rng.choice(pool[author]))
        chosen = library.documents[chosen_index]
        rejected = _rejected(kind, chosen_index, everything, library, topics, cfg, rng)
        exemplars = _exemplars(chosen, rejected, library, cfg, rng)
        pairs.append(
            Pair(
                pair_id=f"{name}-{number:06d}",
                author=author,
                author_split=split,
                domain=chosen.domain,
                prompt=chosen.prompt,
                exemplars=tuple(d.text for d in exemplars),
                exemplar_ids=tuple(d.doc_id for d in exemplars),
                chosen=chosen.text,
                chosen_id=chosen.doc_id,
                rejected=rejected.text,
                rejected_id=rejected.doc_id,
                rejected_author=rejected.author,
                negative_type=kind,
                order=orders[sides[number]],
                writer="human",
                seed=seed[0],
            )
        )
    return pairs


def _rejected(
    kind: NegativeType,
    chosen: int,
    everything: np.ndarray,
    library: _Library,
    topics: sparse.spmatrix | sparse.sparray,
    cfg: PairConfig,
    rng: np.random.Generator,
) -> Document:
    author = library.documents[chosen].author
    others = np.array([i for i in everything if library.documents[i].author != author])
    copied = library.grams_of(library.documents[chosen])
    size = 1 if kind == "other_author" else min(cfg.topic_pool, len(others))
    drawn = rng.choice(others, size=size, replace=False)
    if kind == "other_author_same_topic":
        nearness = (topics[drawn] @ topics[chosen].T).toarray()[:, 0]
        drawn = drawn[np.argsort(-nearness, kind="stable")]
    for index in drawn:
        if not is_near_copy(copied, library.grams_of(library.documents[index])):
            return library.documents[index]
    return library.documents[int(drawn[0])]


def _exemplars(
    chosen: Document,
    rejected: Document,
    library: _Library,
    cfg: PairConfig,
    rng: np.random.Generator,
) -> list[Document]:
    """k of the author's exemplars, none a near copy of a candidate."""
    own = library.exemplars[chosen.author]
    mixed = [own[i] for i in rng.permutation(len(own))]
    shown = [library.grams_of(chosen), library.grams_of(rejected)]
    fresh = [d for d in mixed if not any(is_near_copy(g, library.grams_of(d)) for g in shown)]
    if len(fresh) < cfg.num_exemplars:
        raise ValueError(
            f"author {chosen.author!r} has only {len(fresh)} exemplars that are no near copies of "
            f"texts {chosen.doc_id!r} or {rejected.doc_id!r}: ask for fewer with "
            "--pairs.num-exemplars"
        )
    return fresh[: cfg.num_exemplars]


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
