from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_corpus import CFG, WORDS, random_corpus

import persrm_jax.data.pairs
from persrm_jax.data.corpus import Corpus
from persrm_jax.data.pairs import (
    PairMaker,
    make_elsewhere_pairs,
    make_pairs,
    make_test_pairs,
    with_wrong_author,
)
from persrm_jax.data.splits import PairConfig, split_sets
from persrm_jax.types import Document, NegativeType, Pair


def _is_copy(first: str, second: str) -> bool:
    """5-gram Jaccard >= 0.3, on the words themselves."""
    grams = []
    for text in (first, second):
        words = text.lower().split()
        grams.append({" ".join(words[i : i + 5]) for i in range(len(words) - 4)})
    union = grams[0] | grams[1]
    return bool(union) and len(grams[0] & grams[1]) / len(union) >= 0.3


def _check(documents: Sequence[Document], pair: Pair, num_exemplars: int) -> None:
    """What holds of every pair."""
    by_id = {d.doc_id: d for d in documents}
    chosen, rejected = by_id[pair.chosen_id], by_id[pair.rejected_id]
    exemplars = [by_id[i] for i in pair.exemplar_ids]
    assert (pair.chosen, pair.rejected) == (chosen.text, rejected.text)
    assert pair.exemplars == tuple(d.text for d in exemplars)
    assert len(set(pair.exemplar_ids)) == len(exemplars) == num_exemplars
    assert {chosen.author, *(d.author for d in exemplars)} == {pair.author}
    assert rejected.author == pair.rejected_author != pair.author
    assert {d.split for d in exemplars} == {"train"}
    assert (chosen.split, rejected.split) == ("test", "test")
    assert (pair.domain, pair.prompt) == (chosen.domain, "")
    assert not any(_is_copy(text, pair.chosen) for text in pair.exemplars)


def _authors(pairs: Sequence[Pair]) -> dict[str, set[str]]:
    found = defaultdict(set)
    for pair in pairs:
        found[pair.author_split] |= {pair.author, pair.rejected_author}
    return found


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_authors=st.integers(6, 14),
    k=st.integers(1, 3),
    texts=st.integers(6, 10),
    kind=st.sampled_from(["other_author", "other_author_same_topic"]),
)
def test_properties_of_anyrandom_corpus(
    seed: int, num_authors: int, k: int, texts: int, kind: str
) -> None:
    documents = random_corpus(seed, num_authors, texts)
    cfg = replace(CFG, num_exemplars=k, negatives=(kind,))
    sets = make_pairs(documents, cfg, seed)

    counts = Counter(pair.author_split for pair in sets.main)
    assert counts == {"train": 31, "dev": 10, "test": 20}
    assert len(sets.seen) == 11 and {p.author_split for p in sets.seen} == {"train"}
    for pair in [*sets.main, *sets.seen]:
        _check(documents, pair, k)
        assert pair.negative_type == kind
    everyone = [*sets.main, *sets.seen]
    assert len({p.pair_id for p in everyone}) == len(everyone)
    exemplars = {i for p in everyone for i in p.exemplar_ids}
    assert not exemplars & {i for p in everyone for i in (p.chosen_id, p.rejected_id)}

    splits = _authors(sets.main)
    assert not splits["train"] & splits["dev"]
    assert not splits["train"] & splits["test"]
    assert not splits["dev"] & splits["test"]
    assert _authors(sets.seen)["train"] <= splits["train"]
    trained = [p for p in sets.main if p.author_split == "train"]
    candidates = {i for p in trained for i in (p.chosen_id, p.rejected_id)}
    assert not candidates & {i for p in sets.seen for i in (p.chosen_id, p.rejected_id)}

    for split in ("train", "dev", "test"):
        sides = Counter(p.order for p in sets.main if p.author_split == split)
        assert abs(sides["AB"] - sides["BA"]) <= 1
        turns = Counter(p.author for p in sets.main if p.author_split == split)
        assert max(turns.values()) - min(turns.values()) <= 1
    assert abs(sum(1 if p.order == "AB" else -1 for p in sets.seen)) <= 1

    assert make_pairs(documents, cfg, seed) == sets
    if seed < 2**32 - 1:
        assert make_pairs(documents, cfg, seed + 1) != sets


def test_sides_do_not_follow_the_position() -> None:
    pairs = make_pairs(random_corpus(0), replace(CFG, num_train=200), 0).main
    orders = [p.order for p in pairs if p.author_split == "train"]
    alternating = sum(a != b for a, b in zip(orders, orders[1:], strict=False))
    assert 60 < alternating < 140


def test_kinds_come_in_equal_parts() -> None:
    cfg = replace(CFG, negatives=("other_author", "other_author_same_topic"))
    kinds = Counter(p.negative_type for p in make_pairs(random_corpus(0), cfg, 0).main)
    assert abs(kinds["other_author"] - kinds["other_author_same_topic"]) <= 3


def _plant(documents: list[Document], source: Document, author: str) -> list[Document]:
    """`author`'s exemplars, but for two, become copies of `source` with a word changed."""
    own = [d for d in documents if d.author == author and d.split == "train"]
    copy = " ".join(["changed", *source.text.split()[1:]])
    planted = {d.doc_id for d in own[2:]}
    return [replace(d, text=copy) if d.doc_id in planted else d for d in documents]


@pytest.mark.parametrize("shared_by", [1, 30])
def test_near_copies_of_a_candidate_are_no_exemplars(shared_by: int) -> None:
    documents = random_corpus(1, num_authors=6, texts=12)
    for author in sorted({d.author for d in documents}):
        source = next(d for d in documents if d.author == author and d.split == "test")
        documents = _plant(documents, source, author)
    cfg = replace(CFG, num_test=60, exemplars_shared_by=shared_by)
    pairs = make_test_pairs(documents, cfg, 0)
    sources = {f"{a}/0" for a in range(6)}
    assert {p.chosen_id for p in pairs} & sources
    used: dict[bool, set[str]] = {True: set(), False: set()}
    for pair in pairs:
        _check(documents, pair, 2)
        used[pair.chosen_id in sources] |= set(pair.exemplar_ids)
    planted = {d.doc_id for d in documents if d.text.startswith("changed")}
    assert used[False] & planted, "elsewhere the copies are ordinary exemplars"
    assert not used[True] & planted


def test_pairs_of_an_author_share_exemplars_in_a_row() -> None:
    cfg = replace(CFG, exemplars_shared_by=3, num_train=40)
    pairs = [p for p in make_pairs(random_corpus(1), cfg, seed=4).main if p.author_split == "train"]
    shown: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    for pair in pairs:
        shown[pair.author].append(pair.exemplar_ids)
    assert len(pairs) == 40
    for sets in shown.values():
        assert len(sets) >= 6
        for start in range(0, len(sets), 3):
            assert len(set(sets[start : start + 3])) == 1
        assert len(set(sets)) > 1
    other_seed = make_pairs(random_corpus(1), cfg, seed=5).main
    assert {p.exemplar_ids for p in pairs} != {p.exemplar_ids for p in other_seed}


def test_near_copies_of_the_rejected_text_are_no_exemplars() -> None:
    documents = random_corpus(2, num_authors=2, texts=12)
    source = next(d for d in documents if d.author == "author-1" and d.split == "test")
    # Two people, and the second has one candidate: it is the first's rejected text always.
    documents = [
        d
        for d in documents
        if d.author == "author-0" or d.split == "train" or d.doc_id == source.doc_id
    ]
    documents = _plant(documents, source, "author-0")
    pairs = make_test_pairs(documents, replace(CFG, num_test=20), 0)
    rejected = [p for p in pairs if p.author == "author-0"]
    assert rejected and {p.rejected_id for p in rejected} == {source.doc_id}
    for pair in rejected:
        assert not any(_is_copy(text, pair.rejected) for text in pair.exemplars)


def test_a_rejected_text_is_no_near_copy_of_the_chosen_one() -> None:
    documents = random_corpus(3, num_authors=6)
    source = next(d for d in documents if d.author == "author-0" and d.split == "test")
    documents = [
        replace(d, text=source.text + " and more")
        if d.author == "author-1" and d.split == "test" and d.doc_id != "1/0"
        else d
        for d in documents
    ]
    # Every text by others is looked at, and the copies are the nearest in topic.
    cfg = replace(CFG, num_test=40, topic_pool=1000)
    pairs = [p for p in make_test_pairs(documents, cfg, 0) if p.chosen_id == source.doc_id]
    assert pairs
    assert not any(_is_copy(p.chosen, p.rejected) for p in pairs)


def test_same_topic_takes_the_nearest_in_content_words() -> None:
    topics = {
        "ann": ("tractor barn harvest wheat", "the and of ship"),
        "bob": ("violin sonata quartet cello", "the and of tractor barn harvest"),
        "cat": ("sailing harbour anchor ship", "the and of violin sonata"),
        "dan": ("pastry oven flour butter", "the and of pastry"),
    }
    documents = []
    for author, (own, other) in topics.items():
        documents += [
            Document(author, f"{author}-own", "d", "test", f"{own} today"),
            Document(author, f"{author}-other", "d", "test", f"{other} today"),
            Document(author, f"{author}-shown", "d", "train", "the and of it today"),
        ]
    cfg = PairConfig(
        num_exemplars=1, num_test=60, topic_pool=100, negatives=("other_author_same_topic",)
    )
    pairs = make_test_pairs(documents, cfg, 0)
    nearest = {"ann-own": "bob-other", "bob-own": "cat-other", "cat-own": "ann-other"}
    assert nearest.keys() <= {p.chosen_id for p in pairs}
    for pair in pairs:
        assert pair.rejected_id == nearest.get(pair.chosen_id, pair.rejected_id)
    assert {p.rejected_id for p in pairs if p.chosen_id == "bob-other"} == {"ann-own"}

    random = make_test_pairs(documents, replace(cfg, negatives=("other_author",)), 0)
    found = defaultdict(set)
    for pair in random:
        found[pair.chosen_id].add(pair.rejected_id)
    assert max(len(ids) for ids in found.values()) > 2


def test_a_test_set_pairs_all_authors_alike() -> None:
    documents = random_corpus(4, num_authors=5)
    pairs = make_test_pairs(documents, CFG, 0)
    assert len(pairs) == 20 and {p.author_split for p in pairs} == {"test"}
    assert Counter(p.author for p in pairs) == {f"author-{a}": 4 for a in range(5)}
    for pair in pairs:
        _check(documents, pair, 2)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_the_wrong_author_is_neither_of_the_two(seed: int) -> None:
    documents = random_corpus(seed)
    author_of = {d.doc_id: d.author for d in documents}
    domain_of = {d.author: d.domain for d in documents}
    pairs = make_test_pairs(documents, CFG, seed)
    swapped = with_wrong_author(pairs, seed)
    for pair, wrong in zip(pairs, swapped, strict=True):
        (shown,) = {author_of[i] for i in wrong.exemplar_ids}
        assert shown not in (pair.author, pair.rejected_author)
        assert domain_of[shown] == pair.domain
        assert wrong.exemplars != pair.exemplars and len(wrong.exemplars) == len(pair.exemplars)
        assert replace(wrong, exemplars=pair.exemplars, exemplar_ids=pair.exemplar_ids) == pair
    assert with_wrong_author(pairs, seed) == swapped


def test_the_wrong_author_comes_from_elsewhere_where_the_domain_has_no_third() -> None:
    documents = [
        replace(d, domain="rare" if d.author in ("author-0", "author-1") else "common")
        for d in random_corpus(5)
    ]
    pairs = make_test_pairs(documents, replace(CFG, num_test=80, topic_pool=1), 0)
    rare = [
        i for i, p in enumerate(pairs) if {p.author, p.rejected_author} == {"author-0", "author-1"}
    ]
    assert rare
    swapped = with_wrong_author(pairs, 0)
    for i in rare:
        assert not {e.split("/")[0] for e in swapped[i].exemplar_ids} & {"0", "1"}
    two = [p for p in pairs if {p.author, p.rejected_author} == {"author-0", "author-1"}]
    with pytest.raises(ValueError, match="at least three authors"):
        with_wrong_author(two, 0)


def test_texts_whose_exemplars_are_all_copies_are_left_out() -> None:
    documents = random_corpus(0, num_authors=6)
    source = next(d for d in documents if d.doc_id == "2/0")
    documents = [
        replace(d, text=source.text) if d.author == "author-2" and d.split == "train" else d
        for d in documents
    ]
    pairs = make_test_pairs(documents, replace(CFG, num_test=60), 0)
    found = Counter(p.author for p in pairs)
    assert "2/0" not in {p.chosen_id for p in pairs}
    assert 0 < found.pop("author-2") < 10 and set(found.values()) == {10}


def test_a_prompt_is_shown_if_both_texts_answer_it() -> None:
    documents = [replace(d, prompt="Who are you?") for d in random_corpus(0)]
    assert {p.prompt for p in make_pairs(documents, CFG, 0).main} == {"Who are you?"}


def test_blocks_are_made_in_any_order() -> None:
    """By one maker or several."""
    cfg = replace(
        CFG, num_train=1300, negatives=("other_author", "other_author_same_topic", "minor")
    )
    corpus = Corpus.of(random_corpus(0))
    makers = [PairMaker(corpus, split_sets(corpus, cfg, 3), cfg, 3) for _ in range(2)]
    blocks = makers[0].blocks("train", "dev", "seen")
    assert [(b.name, b.start, b.count) for b in blocks] == [
        ("train", 0, 512),
        ("train", 512, 512),
        ("train", 1024, 276),
        ("dev", 0, 10),
        ("seen", 0, 11),
    ]
    made = [makers[0].make(block) for block in blocks]
    assert [makers[1].make(block) for block in blocks[::-1]] == made[::-1]
    assert made[0] != made[1]
    found = Counter(p.author for part in made[:3] for p in part)
    assert max(found.values()) - min(found.values()) <= 1, "turns go on from block to block"
    kinds = Counter(p.negative_type for p in made[0])
    assert set(kinds) == set(cfg.negatives) and min(kinds.values()) >= 170


def test_a_written_text_is_left_to_its_writer() -> None:
    pairs = make_pairs(random_corpus(0), replace(CFG, negatives=("minor",)), 0).main
    assert {(p.rejected, p.rejected_author, p.writer) for p in pairs} == {("", "", "")}
    for pair in pairs:
        assert pair.prompt == "prompt " + pair.chosen_id
        assert pair.rejected_id == f"{pair.chosen_id}/minor"


def test_passages_of_a_text_stay_on_one_side_of_what_is_unseen() -> None:
    """One may be in another's prompt."""
    documents = [
        replace(d, doc_id=f"{d.doc_id}-{part}{n}")
        for d in random_corpus(0, texts=2)
        for part in range(5)  # 15 passages, so that half of them is no whole number of texts
        for n in ("", "#2", "#3")
    ]
    rng = np.random.default_rng(1)
    documents = [replace(d, text=" ".join(rng.choice(WORDS, 30))) for d in documents]
    sets = make_pairs(documents, replace(CFG, num_train=200, num_seen=60), 0)
    train = {p.chosen_id.split("#")[0] for p in sets.main if p.author_split == "train"}
    seen = {p.chosen_id.split("#")[0] for p in sets.seen}
    assert train and seen and not train & seen


@pytest.mark.parametrize("kind", ["other_author", "other_author_same_topic"])
def test_other_texts_are_paired_without_a_writer(kind: NegativeType) -> None:
    kinds = ("minor", kind) if kind == "other_author" else ("minor", "mimic")
    pairs = make_test_pairs(random_corpus(0), replace(CFG, negatives=kinds), 0)
    assert {p.negative_type for p in pairs} == {kind} and all(p.rejected for p in pairs)


def test_a_large_set_looks_for_topics_in_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(persrm_jax.data.pairs, "_WHOLE", 11)
    monkeypatch.setattr(persrm_jax.data.pairs, "_POOL", 12)
    documents, cfg = random_corpus(0), replace(CFG, num_train=200, topic_pool=20)
    sets = make_pairs(documents, cfg, 0)
    for pair in sets.main:
        _check(documents, pair, 2)
    first = [p for p in sets.main if p.author_split == "train"]
    assert len({p.rejected_id for p in first}) <= 12
    assert make_pairs(documents, cfg, 0) == sets


def test_kinds_of_pairs_that_are_not_trained_on_may_differ() -> None:
    kinds: tuple[NegativeType, ...] = ("other_author", "other_author_same_topic")
    cfg = replace(CFG, negatives=("other_author",), test_negatives=kinds)
    made = make_pairs(random_corpus(0), cfg, 0)
    found: dict[str, set[str]] = defaultdict(set)
    for pair in made.main:
        found[pair.author_split].add(pair.negative_type)
    assert found == {"train": {"other_author"}, "dev": {*kinds}, "test": {*kinds}}
    assert {pair.negative_type for pair in made.seen} == {*kinds}
    assert [p for p in made.main if p.author_split == "train"] == [
        p
        for p in make_pairs(random_corpus(0), replace(CFG, negatives=("other_author",)), 0).main
        if p.author_split == "train"
    ]


def test_pairs_of_unseen_domains_are_by_people_who_are_not_trained_on() -> None:
    known = {"author-0", "author-3", "author-5"}
    made = make_elsewhere_pairs(
        Corpus.of(random_corpus(1)), replace(CFG, num_elsewhere=24), known, 0
    )
    assert len(made) == 24
    people = {pair.author for pair in made}
    assert people == {f"author-{a}" for a in range(9)} - known
    for pair in made:
        _check(random_corpus(1), pair, CFG.num_exemplars)
        assert pair.rejected_author in people and pair.author_split == "test"
    everyone = {f"author-{a}" for a in range(8)}
    with pytest.raises(ValueError, match="1 of 9 authors have enough texts there"):
        make_elsewhere_pairs(Corpus.of(random_corpus(1)), CFG, everyone, 0)
