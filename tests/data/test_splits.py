"""Which authors are trained on, and which settings and corpora cannot be split."""

from collections import Counter
from dataclasses import replace

import pytest
from random_corpus import CFG, random_corpus

from persrm_jax.data.pairs import make_pairs
from persrm_jax.data.splits import PairConfig, split_authors


def test_splits_by_hand() -> None:
    people = [f"p{i}" for i in range(20)]
    cfg = PairConfig(dev_share=0.15, test_share=0.3)
    splits = split_authors(people, cfg, 0)
    assert Counter(splits.values()) == {"train": 11, "dev": 3, "test": 6}
    assert splits.keys() == set(people)
    assert split_authors(people[::-1] * 2, cfg, 0) == splits
    assert split_authors(people, cfg, 1) != splits
    assert Counter(split_authors(people[:6], cfg, 0).values()) == {
        "train": 2,
        "dev": 2,
        "test": 2,
    }


@pytest.mark.parametrize("num_authors", [1, 2, 5])
def test_too_few_authors_are_refused(num_authors: int) -> None:
    with pytest.raises(ValueError, match=f"{num_authors} author.*at least 6 are needed"):
        make_pairs(random_corpus(0, num_authors), CFG, 0)


def test_shares_that_leave_nobody_to_train_on_are_refused() -> None:
    with pytest.raises(ValueError, match="--pairs.dev-share 0.5"):
        make_pairs(random_corpus(0), replace(CFG, dev_share=0.5, test_share=0.5), 0)


def test_authors_with_too_few_exemplars_are_left_out() -> None:
    documents = [d for d in random_corpus(0) if d.doc_id not in ("3/1", "3/3", "3/5")]
    assert "author-3" not in {p.author for p in make_pairs(documents, CFG, 0).main}
    one = replace(CFG, num_exemplars=1)
    assert "author-3" in {p.author for p in make_pairs(documents, one, 0).main}
    with pytest.raises(ValueError, match="0 authors cannot .*--pairs.num-exemplars 9"):
        make_pairs(documents, replace(CFG, num_exemplars=9), 0)


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"num_exemplars": 0}, "--pairs.num-exemplars 0"),
        ({"negatives": ()}, "--pairs.negatives"),
    ],
)
def test_a_bad_config_names_its_flag(fields: dict[str, object], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        PairConfig(**fields)


def test_fewer_pairs_in_all_means_fewer_of_unseen_domains() -> None:
    cfg = replace(CFG, num_elsewhere=36)
    assert cfg.elsewhere_count == 36
    assert replace(cfg, max_pairs=24).elsewhere_count == 12  # of 31 + 10 + 20 + 11
    assert replace(cfg, max_pairs=1000).elsewhere_count == 36
