"""Every shape of file yields the same texts."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from persrm_jax.data.foreign import read_persrm, read_rm_r1, write_persrm, write_rm_r1
from persrm_jax.data.pairs import make_test_pairs
from persrm_jax.data.personas import PersonaConfig, make_personas
from persrm_jax.data.prompts import PromptConfig, judge_messages
from persrm_jax.data.sources import SourceConfig, Text, _hub, read_texts
from persrm_jax.data.splits import PairConfig
from persrm_jax.jsonl import write_records
from persrm_jax.types import Pair


def _read(path: Path, **fields: Any) -> list[Text]:
    return [*read_texts(str(path), SourceConfig(**fields))]


def _jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def pairs() -> list[Pair]:
    documents = make_personas(PersonaConfig(num_personas=8, texts=8), 0)
    return make_test_pairs(documents, PairConfig(num_exemplars=2, num_test=40), 0)


def test_rows_with_names_of_their_own(tmp_path: Path) -> None:
    rows = [{"user": "Ann", "body": "One.", "id": 7, "asked": "Why?", "licence": "CC0", "text": 3}]
    names = {"author": "user", "text": "body", "doc_id": "id", "prompt": "asked"}
    (text,) = _read(_jsonl(tmp_path / "notes.jsonl", rows), **names, license="licence")
    assert text == Text("Ann", "7", "notes", None, "One.", "Why?", "CC0")


def test_every_kind_of_file(tmp_path: Path) -> None:
    rows = [{"author": "Ann", "text": "One."}, {"author": "Ann", "text": "Two."}]
    found = {}
    found["jsonl"] = _read(_jsonl(tmp_path / "t.jsonl", rows))
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    found["gz"] = _read(tmp_path / "t.jsonl.gz")
    (tmp_path / "t.json").write_text(json.dumps(rows))
    found["json"] = _read(tmp_path / "t.json")
    assert found["jsonl"] == found["gz"] == found["json"]
    (tmp_path / "t.json").write_text(json.dumps([row | {"output": "Other."} for row in rows]))
    assert _read(tmp_path / "t.json") == found["json"], "a row's own text is its text"
    assert [(t.author, t.doc_id, t.domain, t.text) for t in found["json"]] == [
        ("Ann", "Ann-1", "t", "One."),
        ("Ann", "Ann-2", "t", "Two."),
    ]
    (tmp_path / "folder" / "Ann").mkdir(parents=True)
    (tmp_path / "folder" / "Bob").mkdir()
    (tmp_path / "folder" / "Ann" / "b.txt").write_text("Two.")
    (tmp_path / "folder" / "Ann" / "a.txt").write_text("One.")
    (tmp_path / "folder" / "Bob" / "a.txt").write_text("Three.")
    assert [(t.author, t.doc_id, t.domain, t.text) for t in _read(tmp_path / "folder")] == [
        ("Ann", "Ann/a", "folder", "One."),
        ("Ann", "Ann/b", "folder", "Two."),
        ("Bob", "Bob/a", "folder", "Three."),
    ]


def test_a_dataset_streams(tmp_path: Path) -> None:
    """As from the hub, of which a local folder is the only part that can be had here."""
    (tmp_path / "letters").mkdir()
    _jsonl(
        tmp_path / "letters" / "train.jsonl", [{"who": "Ann", "body": f"{i}."} for i in range(3)]
    )
    cfg = SourceConfig(author="who", text="body")
    rows = [*_hub(str(tmp_path / "letters"), cfg)]
    assert [row for _, row in rows] == [{"who": "Ann", "body": f"{i}."} for i in range(3)]
    assert rows[2][0].endswith("letters, train, row 3")
    with pytest.raises(ValueError, match="cannot be read from the hub"):
        [*_hub(str(tmp_path / "letters"), SourceConfig(split="nowhere"))]


def test_the_shapes_of_benchmarks(tmp_path: Path) -> None:
    profile = [{"id": "1", "title": "T", "abstract": "One."}, {"id": "2", "text": "Two."}]
    path = _jsonl(tmp_path / "lamp.jsonl", [{"id": 31, "input": "Write", "profile": profile}])
    assert [(t.author, t.text, t.prompt) for t in _read(path, shape="lamp")] == [
        ("31", "One.", "T"),
        ("31", "Two.", ""),
    ]
    row = {
        "reviewerId": "r1",
        "input": "Write it",
        "output": "Zero.",
        "profile": json.dumps([{"reviewText": "One.", "summary": "S", "overall": 5}]),
    }
    path = _jsonl(tmp_path / "longlamp.jsonl", [row])
    assert [(t.author, t.text, t.prompt) for t in _read(path, shape="longlamp")] == [
        ("r1", "Zero.", "Write it"),
        ("r1", "One.", "S"),
    ]
    path = _jsonl(tmp_path / "p.jsonl", [{"user_id": "u", "user_prompt": "Hi.", "score": 1}])
    assert [(t.author, t.text) for t in _read(path, shape="prism")] == [("u", "Hi.")]
    row = {"persona_id": 4, "user_question_or_message": "Hi.", "topic": "x"}
    path = _jsonl(tmp_path / "m.jsonl", [row])
    assert [(t.author, t.text) for t in _read(path, shape="personamem")] == [("4", "Hi.")]


@pytest.mark.parametrize(
    ("name", "content", "fields", "message"),
    [
        ("t.json", "[1]", {}, "expected a list of objects"),
        ("t.json", "{", {}, "not JSON"),
        ("t.json", '{"Ann": [{"output": " "}]}', {}, "author 'Ann', row 1: empty 'text'"),
        ("t.jsonl", '{"id": 1}', {"shape": "lamp"}, "line 1: no list 'profile'; is --source.shape"),
        ("t.jsonl", "{}", {"shape": "lamp"}, "line 1: no field 'id'"),
        ("t.jsonl", '{"id": 1, "profile": "["}', {"shape": "lamp"}, "'profile' is not JSON"),
        (
            "t.json",
            '{"Ann": [{"doc_id": 1, "output": "x"}], "Bob": [{"doc_id": 1, "output": "x"}]}',
            {},
            "author 'Bob', row 1: doc_id '1' is taken by author 'Ann', row 1",
        ),
        ("t.jsonl", "{}", {"shape": "longlamp"}, "line 1: no field 'name'"),
        ("t.jsonl", "{}", {"shape": "prism"}, "line 1: no field 'user_id'; is --source.shape"),
        ("t.jsonl", '{"a": 1}', {"author": "a"}, "line 1: bad 'author'"),
    ],
)
def test_another_shape_is_named(
    tmp_path: Path, name: str, content: str, fields: dict[str, Any], message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        _read(tmp_path / name, **fields)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--data nothing: no such file or folder; give `personas`"):
        _read(Path("nothing"))
    with pytest.raises(ValueError, match=r"none.jsonl: no such file"):
        _read(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match=r"expected a folder for each author"):
        _read(tmp_path)


def test_persrm_files_come_back(tmp_path: Path, pairs: list[Pair]) -> None:
    path = tmp_path / "mimic.json"
    write_persrm(path, pairs)
    again = read_persrm(path, kind="mimic", split="test", num_exemplars=0, writer="theirs")
    told = sorted((p.author, p.prompt, p.chosen, p.rejected) for p in pairs)
    assert sorted((p.author, p.prompt, p.chosen, p.rejected) for p in again) == told
    write_persrm(tmp_path / "again.json", again)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    texts = _read(path)
    assert {(t.author, t.text) for t in texts} == {(p.author, p.chosen) for p in pairs}


def test_persrm_pairs_show_other_texts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "", "response_A": f"{i} one two {i} three four {i} five", "response_B": "x"}
        for i in range(6)
    ]
    rows[5]["response_A"] = rows[0]["response_A"]
    path = tmp_path / "m.json"
    path.write_text(json.dumps({"Ann": rows, "Bob": rows[:4]}))
    pairs = read_persrm(path, kind="mimic", split="train", num_exemplars=2, writer="theirs")
    assert [(p.author, p.chosen_id, p.exemplar_ids) for p in pairs] == [
        ("Ann", "Ann-4", ("Ann-1", "Ann-2")),
        ("Ann", "Ann-5", ("Ann-1", "Ann-2")),
        ("Ann", "Ann-6", ("Ann-2", "Ann-3")),
        ("Bob", "Bob-3", ("Bob-1", "Bob-2")),
        ("Bob", "Bob-4", ("Bob-1", "Bob-2")),
    ]
    assert {i for p in pairs for i in p.exemplar_ids}.isdisjoint(p.chosen_id for p in pairs)
    assert [p.order for p in pairs] == ["AB", "BA", "AB", "BA", "AB"]
    with pytest.raises(ValueError, match="author 'Ann' has 2 texts to show .* row 6; 3 are"):
        read_persrm(path, kind="mimic", split="train", num_exemplars=3, writer="theirs")
    path.write_text('{"Ann": [{"prompt": "", "response_A": "x"}]}')
    with pytest.raises(ValueError, match="author 'Ann', row 1: no string 'response_B'"):
        read_persrm(path, kind="mimic", split="test", num_exemplars=1, writer="theirs")


def test_rm_r1_files_come_back(tmp_path: Path, pairs: list[Pair]) -> None:
    cfg = PromptConfig()
    orders = [pair.order for pair in pairs]
    write_rm_r1(tmp_path / "r.jsonl", pairs, orders, cfg)
    again = [*read_rm_r1(tmp_path / "r.jsonl")]
    assert [order for _, order in again] == orders
    assert [m for m, _ in again] == [
        judge_messages(p, o, cfg) for p, o in zip(pairs, orders, strict=True)
    ]
    rows = load_dataset("json", data_files=str(tmp_path / "r.jsonl"), split="train")
    assert set(rows["winner"]) == {"model_a", "model_b"}
    (tmp_path / "r.jsonl").write_text('{"context_messages": [], "winner": "a"}')
    with pytest.raises(ValueError, match="line 1: 'winner' must be"):
        [*read_rm_r1(tmp_path / "r.jsonl")]


def test_datasets_reads_what_we_write(tmp_path: Path, pairs: list[Pair]) -> None:
    write_records(tmp_path / "pairs.jsonl", pairs)
    rows = load_dataset("json", data_files=str(tmp_path / "pairs.jsonl"), split="train")
    assert len(rows) == len(pairs)
    again = [
        Pair(**{k: tuple(v) if isinstance(v, list) else v for k, v in r.items()}) for r in rows
    ]
    assert again == pairs
