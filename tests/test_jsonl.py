import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persrm_jax.jsonl import read_records, read_rows, write_records, write_text
from persrm_jax.types import Document, Pair, Prediction, Trace

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENT = Document("ann", "ann-1", "mail", "train", "Hi.\n\u2028\x85\r\n\tnaïve \U0001f469")


def _document(**fields: object) -> bytes:
    row = {"author": "a", "doc_id": "1", "domain": "d", "split": "train", "text": "t", **fields}
    return json.dumps(row).encode() + b"\n"


@given(TEXT, TEXT, st.floats(0, 10), st.none() | st.floats(0, 10))
def test_records_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, text: str, name: str, score: float, gap: float | None
) -> None:
    path = tmp_path_factory.mktemp("records") / "records.jsonl"
    predictions = [
        Prediction(name, "AB", "4", "m", 1, 0, score, gap, None, False, 3, text),
        Prediction(text, "BA", "wrong_author", "m", 1, 2, None, None, "tie", True, 0, ""),
    ]
    write_records(path, predictions)

    assert read_records(path, Prediction) == predictions
    lines = path.read_bytes().split(b"\n")
    assert len(lines) == 3 and lines[2] == b""
    assert json.loads(lines[0])["completion"] == text


def test_tuples_and_messages_come_back(tmp_path: Path) -> None:
    pair = Pair(
        "p", "a", "test", "d", "", ("x\n", ""), ("1", "2"), "c", "3", "r", "4", "b", "other_author",
        "BA", "human", 7,
    )  # fmt: skip
    trace = Trace("p", "AB", ({"role": "user", "content": "ü"},), "<think>", "t", "A")
    write_records(tmp_path / "pairs.jsonl", [pair])
    write_records(tmp_path / "traces.jsonl", [trace])
    assert read_records(tmp_path / "pairs.jsonl", Pair) == [pair]
    assert read_records(tmp_path / "traces.jsonl", Trace) == [trace]


def test_a_gzipped_file_reads_like_a_plain_one(tmp_path: Path) -> None:
    write_records(tmp_path / "plain.jsonl", [DOCUMENT])
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "plain.jsonl").read_bytes()))
    assert read_records(packed, Document) == [DOCUMENT]


def test_blank_lines_count_but_hold_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\n{"a": 1}\n  \n\n{"a": 2}')
    assert list(read_rows(path)) == [(2, {"a": 1}), (5, {"a": 2})]


def test_defaults_fill_missing_fields_only(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_bytes(_document())
    assert read_records(path, Document) == [Document("a", "1", "d", "train", "t", prompt="")]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"author": \n', "line 3: not JSON"),
        (b'{"author": "a"} {}\n', "line 3: not JSON"),
        (b"[1, 2]\n", "line 3: expected a JSON object"),
        (b'"text"\n', "line 3: expected a JSON object"),
        (b"null\n", "line 3: expected a JSON object"),
        (b'{"author": "a"}\n', "line 3: no field 'doc_id'"),
        (_document(txt="x"), "line 3: unknown field 'txt'"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "documents.jsonl"
    path.write_bytes(_document() + b"\n" + line + _document())
    with pytest.raises(ValueError) as error:
        read_records(path, Document)
    assert str(error.value).startswith(f"{path}, {words}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", [b'{"text": ' + b"9" * 5000 + b"}\n", b'{"text": ' + b"[" * 200_000 + b"\n"]
)
def test_json_that_python_refuses_is_named_too(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" + line)
    with pytest.raises(ValueError) as error:
        list(read_rows(path))
    assert str(error.value).startswith(f"{path}, line 2: ")


@pytest.mark.parametrize("line", [b"\xff\xfe\n", b'{"text": "caf\xe9"}\n', b'{"text": "\xed\xa0'])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_text_that_is_not_utf8_is_named(tmp_path: Path, line: bytes, suffix: str) -> None:
    path = tmp_path / f"rows.jsonl{suffix}"
    content = _document() + _document() + line
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(ValueError) as error:
        list(read_rows(path))
    assert str(error.value) == f"{path}, line 3: not UTF-8 text"


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(_document() * 500, mtime=0)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    broken = {
        "plain": b'{"author": "a"}\n',
        "cut": whole[: len(whole) // 2],
        "wrong sum": whole[:-8] + b"\0" * 8,
        "flipped": bytes(flipped),
        "bad block": whole[:10] + b"\xff" * 50,
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            list(read_rows(path))
        assert str(path) in str(error.value), name


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ValueError, match="no such file") as error:
            list(read_rows(path))
        assert str(path) in str(error.value)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "documents.jsonl"
    write_records(path, [DOCUMENT])

    def cut_off() -> Iterator[Document]:
        yield Document("b", "b-1", "d", "test", "new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(path, cut_off())
    assert read_records(path, Document) == [DOCUMENT]


def test_a_write_is_one_rename_of_a_whole_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "deep" / "folder" / "text.txt"
    write_text(path, "old")
    seen = []
    rename = os.replace

    def spy(source: Path, target: Path) -> None:
        seen.append((Path(source).read_text(encoding="utf-8"), path.read_text(encoding="utf-8")))
        assert Path(source).parent == path.parent and Path(target) == path
        rename(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_text(path, "new ü")
    assert seen == [("new ü", "old")]
    assert path.read_text(encoding="utf-8") == "new ü"
    assert [p.name for p in path.parent.iterdir()] == ["text.txt"]
