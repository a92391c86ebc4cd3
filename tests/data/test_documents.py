"""Texts become documents: reading, checks, cutting, repeats, pools."""

import gzip
import json
import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persrm_jax.data.documents import (
    CorpusConfig,
    clean_text,
    cut_passages,
    load_documents,
    long_passages,
    summarize,
)

SMALL = CorpusConfig(max_words=6, min_words=2)


def _write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _row(author: str, text: str, **fields: object) -> dict[str, object]:
    return {"author": author, "text": text, **fields}


def test_clean_text_keeps_paragraphs() -> None:
    assert (
        clean_text(" One  two\r\nthree.\r\n \r\n\tFour\xa0five. \n")
        == "One two three.\n\nFour five."
    )


def test_cut_passages_by_hand() -> None:
    text = 'One two. "Three four!" Five six seven.\n\nEight nine.'
    assert cut_passages(text, 4) == [
        'One two. "Three four!"',
        "Five six seven.",
        "Eight nine.",
    ]
    assert cut_passages(text, 5) == [
        'One two. "Three four!"',
        "Five six seven.\n\nEight nine.",
    ]
    assert cut_passages(text, 99) == [clean_text(text)]
    assert cut_passages(" \n\n ", 4) == []


def test_a_long_sentence_is_cut_at_a_word() -> None:
    assert cut_passages("A b. C d e f g h. I j.", 4) == ["A b.", "C d e f", "g h. I j."]


def test_titles_and_initials_end_no_sentence() -> None:
    assert cut_passages("He met Mr. Smith. She met J. Doe. they met e.g. us.", 4) == [
        "He met Mr. Smith.",
        "She met J. Doe.",  # cut inside the next sentence by length, not at its lower-case start
        "they met e.g. us.",
    ]


@given(st.text(alphabet="aB.?!\"' \n", max_size=200), st.integers(1, 9), st.integers(1, 9))
def test_passages_hold_the_words_in_order(text: str, a: int, b: int) -> None:
    cfg = CorpusConfig(max_words=max(a, b), min_words=min(a, b))
    passages = cut_passages(text, cfg.max_words)
    assert all(1 <= len(p.split()) <= cfg.max_words for p in passages)
    assert [word for p in passages for word in p.split()] == text.split()
    long = long_passages(text, cfg)
    assert long == [p for p in passages if len(p.split()) >= cfg.min_words]


def test_defaults(tmp_path: Path) -> None:
    texts = [f"Text number {name}." for name in ("a", "b", "c", "d")]
    path = _write(tmp_path / "notes.jsonl", [_row("Ann", text) for text in texts])
    documents = load_documents(path, SMALL)
    assert [d.text for d in documents] == texts
    assert [d.doc_id for d in documents] == ["Ann-1", "Ann-2", "Ann-3", "Ann-4"]
    assert [d.split for d in documents] == ["train", "test", "train", "test"]
    assert {(d.author, d.domain, d.prompt) for d in documents} == {("Ann", "notes", "")}


def test_default_splits_follow_the_sorted_ids(tmp_path: Path) -> None:
    rows = [_row("Ann", f"Text number {n}.", doc_id=n) for n in (10, 9, 2)]
    documents = load_documents(_write(tmp_path / "a.jsonl", rows), SMALL)
    assert [(d.doc_id, d.split) for d in documents] == [
        ("10", "train"),
        ("9", "test"),
        ("2", "train"),
    ]


def test_given_fields_and_gzip(tmp_path: Path) -> None:
    rows = [
        _row("Ann", "One two.", doc_id="x", domain="mail", split="test", prompt="Why?", extra=1),
        _row("Ann", "Three four.", split="train"),
    ]
    path = tmp_path / "notes.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    first, second = load_documents(path, SMALL)
    assert (first.doc_id, first.domain, first.split, first.prompt) == ("x", "mail", "test", "Why?")
    assert (second.doc_id, second.domain, second.split) == ("Ann-2", "notes", "train")


def test_passages_share_the_split(tmp_path: Path) -> None:
    rows = [
        _row("Ann", "A b c d. E f g h. I j k l. No.", doc_id="x", split="test"),
        _row("Ann", "Q r s t.", doc_id="y", split="train"),
    ]
    path = _write(tmp_path / "a.jsonl", rows)
    expected = {0: ["x", "x#2", "x#3", "y"], 1: ["x", "y"], 2: ["x", "x#2", "y"]}
    for passages, ids in expected.items():
        documents = load_documents(path, CorpusConfig(max_words=6, min_words=2, passages=passages))
        assert [d.doc_id for d in documents] == ids
        assert {d.split for d in documents if d.doc_id.startswith("x")} == {"test"}


def test_repeats_and_short_texts_are_dropped_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        _row("Ann", "One two three. Four five six."),
        _row("Ann", "Seven eight."),
        _row("Bob", "One two  three.\nFour five six."),  # the same text
        _row("Bob", "One two three. Four five six. More of it."),  # the same beginning
        _row("Bob", "Nine ten."),
        _row("Cid", "Oh!"),
        _row("Cid", "Ah!"),
    ]
    with caplog.at_level(logging.INFO):
        documents = load_documents(_write(tmp_path / "a.jsonl", rows), SMALL)
    assert [(d.doc_id, d.text) for d in documents] == [
        ("Ann-1", "One two three. Four five six."),
        ("Ann-2", "Seven eight."),
        ("Bob-2", "More of it."),
        ("Bob-3", "Nine ten."),
    ]
    assert [d.split for d in documents] == ["train", "test", "train", "test"]
    (record,) = caplog.records
    assert "2 texts shorter than 2 words, 1 repeated texts, 1 authors" in record.getMessage()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "One two."}, "line 2: no field 'author'"),
        ({"author": "Ann"}, "line 2: no field 'text'"),
        (_row("", "One two."), "line 2: empty 'author'"),
        (_row("Ann", ""), "line 2: empty 'text'"),
        (_row("Ann", " \n"), "line 2: empty 'text'"),
        ({"author": 3, "text": "One two."}, "line 2: bad 'author'; it must be a string"),
        ({"author": "Ann", "text": None}, "line 2: bad 'text'; it must be a string"),
        (_row("Ann", "One.", split="dev"), "line 2: split is 'dev'; it must be 'train' or 'test'"),
        (_row("Ann", "One.", split=["test"]), r"line 2: split is \['test'\]; it must be"),
        (_row("Ann", "One.", domain=1), "line 2: bad 'domain'; it must be a string"),
        (_row("Ann", "One.", prompt=None), "line 2: bad 'prompt'; it must be a string"),
        (_row("Ann", "One.", doc_id=1.5), "line 2: bad 'doc_id'; it must be"),
        (_row("Ann", "One.", doc_id=""), "line 2: bad 'doc_id'; it must be"),
        (_row("Bob", "One.", doc_id="x"), "line 2: doc_id 'x' is taken by line 1; give each"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, object], message: str) -> None:
    path = _write(tmp_path / "bad.jsonl", [_row("Ann", "Three four.", doc_id="x"), row])
    with pytest.raises(ValueError, match=f"bad.jsonl, {message}"):
        load_documents(path, SMALL)


def test_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="none.jsonl: holds no documents"):
        load_documents(path, SMALL)


def test_an_author_with_one_text(tmp_path: Path) -> None:
    rows = [_row("Ann", "One two."), _row("Ann", "Three four."), _row("Bob", "Five six.")]
    with pytest.raises(ValueError, match=r"a.jsonl: author 'Bob' has one document; each author"):
        load_documents(_write(tmp_path / "a.jsonl", rows), SMALL)


@pytest.mark.parametrize(
    "rows",
    [
        [_row("Ann", "One two.", split="train"), _row("Ann", "Three four.", split="train")],
        [_row("Ann", "One."), _row("Ann", "Two.")],
        [_row("Ann", "One two."), _row("Ann", "One two.")],
    ],
    ids=["one pool", "all too short", "all the same"],
)
def test_no_author_in_both_pools(tmp_path: Path, rows: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match=r"a.jsonl: no author has a train and a test document"):
        load_documents(_write(tmp_path / "a.jsonl", rows), SMALL)


def test_bad_limits() -> None:
    with pytest.raises(ValueError, match="min_words is 50 and max_words 40"):
        CorpusConfig(max_words=40, min_words=50)
    with pytest.raises(ValueError, match="passages is -1"):
        CorpusConfig(passages=-1)


def test_summarize(tmp_path: Path) -> None:
    rows = [
        _row("Ann", "One two.", domain="mail"),
        _row("Ann", "Three four five."),
        _row("Ann", "Six seven eight nine."),
    ]
    documents = load_documents(_write(tmp_path / "notes.jsonl", rows), SMALL)
    assert summarize(documents) == (
        "1 authors, 3 documents (2 exemplar pool, 1 candidate pool), median 3 words,"
        " domains: mail, notes"
    )
