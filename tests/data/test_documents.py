"""Texts become documents: reading, checks, cutting, repeats, pools."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persrm_jax.data.cleaning import (
    clean_text,
    cut_passages,
    english_share,
    strip_boilerplate,
    whole_sentences,
)
from persrm_jax.data.documents import CorpusConfig, Counts, long_passages, make_documents
from persrm_jax.data.sources import SourceConfig, Text, read_texts
from persrm_jax.types import Document

SMALL = CorpusConfig(max_words=6, min_words=2, prompt_words=0)


def _load(path: Path, cfg: CorpusConfig, counts: Counts | None = None) -> list[Document]:
    return [*make_documents(read_texts(str(path), SourceConfig()), cfg, counts or Counts())]


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
    before = ["", *(" ".join(p.split()[-cfg.prompt_words :]) for p in passages)]
    long = long_passages(text, "", cfg)
    paired = zip(before, passages, strict=False)
    assert long == [(b, p) for b, p in paired if len(p.split()) >= cfg.min_words]


def test_defaults(tmp_path: Path) -> None:
    texts = [f"Text number {name}." for name in ("a", "b", "c", "d")]
    path = _write(tmp_path / "notes.jsonl", [_row("Ann", text) for text in texts])
    documents = _load(path, SMALL)
    assert [d.text for d in documents] == texts
    assert [d.doc_id for d in documents] == ["Ann-1", "Ann-2", "Ann-3", "Ann-4"]
    assert [d.split for d in documents] == ["train", "test", "train", "test"]
    assert {(d.author, d.domain, d.prompt) for d in documents} == {("Ann", "notes", "")}


def test_default_splits_take_turns_among_the_texts_without_one(tmp_path: Path) -> None:
    rows = [
        _row("Ann", "Text number a."),
        _row("Ann", "Text number b.", split="test"),
        _row("Bob", "Text number c."),
        _row("Ann", "Short."),
        _row("Ann", "Text number d."),
    ]
    documents = _load(_write(tmp_path / "a.jsonl", rows), SMALL)
    assert [(d.doc_id, d.split) for d in documents] == [
        ("Ann-1", "train"),
        ("Ann-2", "test"),
        ("Bob-1", "train"),
        ("Ann-4", "test"),
    ]


def test_given_fields_and_gzip(tmp_path: Path) -> None:
    rows = [
        _row("Ann", "One two.", doc_id="x", domain="mail", split="test", prompt="Why?", extra=1),
        _row("Ann", "Three four.", split="train"),
    ]
    path = tmp_path / "notes.jsonl.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    first, second = _load(path, SMALL)
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
        documents = _load(path, replace(SMALL, passages=passages))
        assert [d.doc_id for d in documents] == ids
        assert {d.split for d in documents if d.doc_id.startswith("x")} == {"test"}


def test_repeats_and_short_texts_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [
        _row("Ann", "One two three. Four five six."),
        _row("Ann", "Seven eight."),
        _row("Bob", "One two  three.\nFour five six."),  # the same text
        _row("Bob", "One two three. Four five six. More of it."),  # the same beginning
        _row("Bob", "Nine ten.", license="CC0"),
        _row("Cid", "Oh!"),
        _row("Cid", "Ah!"),
    ]
    counts = Counts()
    documents = _load(_write(tmp_path / "a.jsonl", rows), SMALL, counts)
    assert [(d.doc_id, d.text) for d in documents] == [
        ("Ann-1", "One two three. Four five six."),
        ("Ann-2", "Seven eight."),
        ("Bob-2", "More of it."),
        ("Bob-3", "Nine ten."),
    ]
    assert [d.split for d in documents] == ["train", "test", "train", "test"]
    assert (counts.texts, counts.documents, counts.near_copies) == (7, 4, 0)
    assert counts.characters == sum(len(str(row["text"])) for row in rows)
    assert counts.dropped == {"too short": 2, "repeated": 1}
    assert counts.licenses == {"CC0": 1}


def test_near_copies_are_dropped_and_counted() -> None:
    words = [f"word{i}" for i in range(60)]
    texts = [
        " ".join(words),
        " ".join([*words[:-1], "other"]),  # one word of sixty
        " ".join(reversed(words)),
    ]
    made = [Text("Ann", str(i), "d", None, text) for i, text in enumerate(texts)]
    counts = Counts()
    cfg = CorpusConfig(max_words=64, min_words=2)
    assert [d.doc_id for d in make_documents(made, cfg, counts)] == ["0", "2"]
    assert (counts.near_copies, counts.dropped) == (1, {"repeated": 1})
    kept = make_documents(made, replace(cfg, near_copies=False), Counts())
    assert [d.doc_id for d in kept] == ["0", "1", "2"]


def test_passages_continue_what_was_before() -> None:
    text = Text("Ann", "x", "d", None, "A b c d. E f g h. I j k l. M n. O p q r s.", "Why so?")
    cfg = replace(SMALL, max_words=4, passages=0, prompt_words=3)
    assert [(d.prompt, d.text) for d in make_documents([text], cfg, Counts())] == [
        ("Why so?", "A b c d."),
        ("b c d.", "E f g h."),
        ("f g h.", "I j k l."),
        ("j k l.", "M n."),
        ("M n.", "O p q r"),
    ]
    own = make_documents([text], replace(cfg, prompt_words=0), Counts())
    assert {d.prompt for d in own} == {"Why so?"}


def test_languages() -> None:
    english = "It was not that he had no wish to go, but there was nothing for him to do there."
    german = "Es war nicht so, dass er nicht gehen wollte, aber es gab dort nichts zu tun."
    assert english_share(english) > 0.5 and english_share(german) < 0.15
    texts = [Text("Ann", str(i), "d", None, text) for i, text in enumerate((english, german))]
    counts = Counts()
    cfg = CorpusConfig(max_words=30, min_words=2, language="en")
    assert [d.doc_id for d in make_documents(texts, cfg, counts)] == ["0"]
    assert counts.dropped == {"not English": 1}
    assert len([*make_documents(texts, replace(cfg, language="any"), Counts())]) == 2


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("I went there.\n\nBest regards,\nAnn Hill\nHill Ltd.", "I went there."),
        ("I went there.\n-- \nAnn\nwww.hill.com", "I went there."),
        ("I went there.\nSent from my phone", "I went there."),
        ("From: Ann\nTo: Bob\nSubject: Hi\n\nI went there.", "I went there."),
        ("I went.\n> You did?\nOn Monday, Bob wrote:\nYes.", "I went. Yes."),
        ("I went.\nCopyright 2020 Hill Ltd. All rights reserved.", "I went."),
        ("I send my best regards,\nand I mean it.", "I send my best regards, and I mean it."),
        ("From: here on I went alone.\r\nYes.", "From: here on I went alone. Yes."),
        ("The copyright was hers. > 3 is more.", "The copyright was hers. > 3 is more."),
        ("Thanks for it all.\n\nI am well, and you?", "Thanks for it all. I am well, and you?"),
        ("Copyright law is my field.", "Copyright law is my field."),
        (
            "I asked them to unsubscribe me, " + "and they did not, " * 12 + "ever.\nSo it went.",
            "I asked them to unsubscribe me, " + "and they did not, " * 12 + "ever. So it went.",
        ),
        ("A poem\nLove\n" + "is all and all is love and so are you too\n" * 8, None),
    ],
)
def test_what_its_author_did_not_write_is_stripped(raw: str, clean: str | None) -> None:
    assert " ".join(strip_boilerplate(raw).split()) == (clean or " ".join(raw.split()))


@pytest.mark.parametrize(
    "text",
    [
        "Dear you,\nThanks,\n" + "x" * 100_000,
        "Love\n" * 50_000,
        "From: a\n" * 50_000,
        ">" * 500_000,
    ],
    ids=["long", "love", "headers", "quotes"],
)
def test_hostile_texts_are_cleaned_in_no_time(text: str) -> None:
    """They would take hours, if a pattern tried all ways to part them."""
    strip_boilerplate(text)
    clean_text(text)


def test_a_text_that_was_cut_off() -> None:
    assert whole_sentences('He went. "Why?" she said. And th') == 'He went. "Why?" she said.'
    assert whole_sentences("He went and th") == ""


def test_what_is_no_utf8_is_replaced() -> None:
    assert clean_text("a \ud800 b") == "a ? b"


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
        _load(path, SMALL)


def test_no_documents(tmp_path: Path) -> None:
    path = tmp_path / "none.jsonl"
    path.write_text("\n", encoding="utf-8")
    with pytest.raises(ValueError, match="none.jsonl: holds no texts"):
        _load(path, SMALL)


def test_bad_limits() -> None:
    with pytest.raises(ValueError, match="min_words is 50 and max_words 40"):
        CorpusConfig(max_words=40, min_words=50)
    with pytest.raises(ValueError, match="passages is -1"):
        CorpusConfig(passages=-1)
