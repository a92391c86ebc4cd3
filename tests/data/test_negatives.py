"""Written negatives: asked for, verified, asked for again, kept; pairs go on after a kill."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import persrm_jax.data.pair_files
from persrm_jax.data.answers import Answer, Answers
from persrm_jax.data.corpus import Corpus
from persrm_jax.data.minor import minor_fault, write_minor
from persrm_jax.data.negatives import Negatives, NegativesConfig, fit_length, negative_messages
from persrm_jax.data.pair_files import write_pairs
from persrm_jax.data.pairs import BLOCK, PairMaker
from persrm_jax.data.splits import PairConfig, split_sets
from persrm_jax.data.verify import VerifyConfig
from persrm_jax.data.writers import NamedWriter, Request, Written
from persrm_jax.jsonl import read_records, write_records
from persrm_jax.types import Document, NegativeType, Pair

KINDS: tuple[NegativeType, ...] = ("minor", "mimic", "other_author_same_topic")
WORDS = (
    "famous doctor began explain difficult angry friend cold dark evening large crowd afraid "
    "danger finally found enough courage answer foreign enemies company agreed quick boy brave "
    "often cried garden river hill stone tree road wall door window table chair paper letter"
).split()


def _documents(num_authors: int = 8, texts: int = 10) -> list[Document]:
    rng = random.Random(0)
    return [
        Document(
            author=f"author-{a}",
            doc_id=f"{a}/{i}",
            domain="d",
            split="train" if i % 2 else "test",
            text=" ".join(rng.choice(WORDS) for _ in range(40)) + ".",
            prompt=f"What of {a}, {i}?",
        )
        for a in range(num_authors)
        for i in range(texts)
    ]


def _maker(kinds: tuple[NegativeType, ...] = KINDS, num_train: int = 60) -> PairMaker:
    corpus = Corpus.of(_documents())
    cfg = PairConfig(
        num_exemplars=1, negatives=kinds, num_train=num_train, num_dev=6, num_test=6, num_seen=6
    )
    return PairMaker(corpus, split_sets(corpus, cfg, 0), cfg, 0)


class Scripted:
    """A writer of other words. What it first gives is a fault, as its script has it."""

    def __init__(self, faults: int = 0) -> None:
        self.asked: list[Request] = []
        self.faults = faults

    def __call__(self, requests: Iterable[Request]) -> Iterator[Written]:
        for request in requests:
            self.asked.append(request)
            words = range(len(request.text.split()))
            good = " ".join(f"word{i}x{request.seed % 97}" for i in words)
            given = ["Sure, here is the text: " + good, request.text, None]
            if request.attempt < self.faults:
                text = given[request.attempt % 3]
                yield Written(text, "" if text else "timeout: 3 s", 5, 2)
            else:
                yield Written(good + ".", "", 5, 2)


def _writers(mimic: Scripted) -> dict[NegativeType, NamedWriter]:
    return {"minor": NamedWriter("rules", write_minor), "mimic": NamedWriter("local:m", mimic)}


def _make(tmp_path: Path, mimic: Scripted, cfg: NegativesConfig | None = None) -> list[Pair]:
    answers = Answers(tmp_path / "answers.jsonl")
    try:
        fill = Negatives(_writers(mimic), answers, cfg or NegativesConfig())
        write_pairs(tmp_path / "pairs.jsonl", _maker(), ["train", "dev"], fill=fill)
    finally:
        answers.close()
    return read_records(tmp_path / "pairs.jsonl", Pair)


def test_every_kind_is_written_and_verified(tmp_path: Path) -> None:
    mimic = Scripted()
    pairs = _make(tmp_path, mimic)
    assert Counter(p.negative_type for p in pairs) == {kind: 22 for kind in KINDS}
    for pair in pairs:
        if pair.negative_type == "minor":
            assert minor_fault(pair.chosen, pair.rejected) is None
            assert (pair.writer, pair.rejected_author) == ("rules", "")
        elif pair.negative_type == "mimic":
            assert pair.rejected.startswith("word0x") and pair.writer == "local:m"
            assert pair.rejected_id == f"{pair.chosen_id}/mimic"
        else:
            assert pair.rejected and pair.writer == "human" and pair.rejected_author
    ids = [p.pair_id for p in pairs]
    assert ids == sorted(ids, key=lambda i: (i.startswith("dev"), i))
    assert len(mimic.asked) == 22 and {r.attempt for r in mimic.asked} == {0}


def test_what_is_wrong_is_asked_for_again_and_counted(tmp_path: Path) -> None:
    mimic = Scripted(faults=3)
    pairs = _make(tmp_path, mimic)
    assert sum(p.negative_type == "mimic" for p in pairs) == 22
    assert Counter(r.attempt for r in mimic.asked) == {i: 22 for i in range(4)}
    given = read_records(tmp_path / "answers.jsonl", Answer)
    mimics = [a for a in given if a.kind == "mimic"]
    assert Counter(a.fault.split(":")[0] for a in mimics) == {
        "preamble": 22,
        "copy": 22,
        "timeout": 22,
        "": 22,
    }
    answers = Answers(tmp_path / "answers.jsonl")
    Negatives(_writers(mimic), answers, NegativesConfig())
    answers.close()
    assert answers.counts["mimic", "copy"] == answers.counts["mimic", ""] == 22
    assert answers.tokens["local:m", "prompt"] == 5 * 88
    assert answers.tokens["local:m", "completion"] == 2 * 88


def test_what_stays_wrong_is_left_out(tmp_path: Path) -> None:
    pairs = _make(tmp_path, Scripted(faults=3), NegativesConfig(tries=3))
    assert Counter(p.negative_type for p in pairs) == {"minor": 22, "other_author_same_topic": 22}


def test_answers_are_not_asked_for_again(tmp_path: Path) -> None:
    first = _make(tmp_path, Scripted(faults=1))
    (tmp_path / "pairs.jsonl").unlink()
    mimic = Scripted(faults=1)
    assert _make(tmp_path, mimic) == first and not mimic.asked
    # A line that was cut off, and all after it, are asked for again.
    path = tmp_path / "answers.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-5]) + lines[-5][:20])
    (tmp_path / "pairs.jsonl").unlink()
    assert _make(tmp_path, mimic) == first and len(mimic.asked) <= 5
    assert path.read_bytes() == b"".join(lines)


def test_other_demands_are_other_questions(tmp_path: Path) -> None:
    first = _make(tmp_path, Scripted())
    (tmp_path / "pairs.jsonl").unlink()
    mimic = Scripted()
    strict = NegativesConfig(verify=VerifyConfig(min_words=1000), tries=1)
    assert len(_make(tmp_path, mimic, strict)) == len(first) - 22 and len(mimic.asked) == 22
    answers = Answers(tmp_path / "answers.jsonl")
    answers.settings("nothing")
    assert not answers.counts, "only what this run asked counts"


class Down(Scripted):
    """Nobody answers, from some request on."""

    def __init__(self, since: int, until: int = 10**9) -> None:
        super().__init__()
        self.since, self.until = since, until

    def __call__(self, requests: Iterable[Request]) -> Iterator[Written]:
        for number, written in enumerate(super().__call__(requests)):
            down = self.since <= number < self.until
            yield Written(None, "APITimeoutError: 3 s", is_lost=True) if down else written


def test_an_outage_ends_the_run_and_is_not_remembered(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"10 requests in a row .*APITimeoutError.*answers.jsonl"):
        _make(tmp_path, Down(5))
    mimic = Scripted()
    pairs = _make(tmp_path, mimic)
    assert len(pairs) == 66 and len(mimic.asked) == 22 - 5
    # A few that are lost are asked again in the next try.
    for path in tmp_path.iterdir():
        path.unlink()
    assert len(_make(tmp_path, Down(5, 9))) == 66


def test_sides_are_balanced_whatever_was_left_out(tmp_path: Path) -> None:
    def some(pairs: list[Pair]) -> list[Pair]:
        return [p for p in pairs if int(p.pair_id[-1]) % 3]

    kinds: tuple[NegativeType, ...] = ("other_author", "other_author_same_topic")
    maker = _maker(kinds, num_train=1200)
    write_pairs(tmp_path / "pairs.jsonl", maker, ["train"], fill=some)
    pairs = read_records(tmp_path / "pairs.jsonl", Pair)
    assert 700 < len(pairs) < 800
    sides = Counter((p.negative_type, p.order) for p in pairs)
    for kind in kinds:
        assert abs(sides[kind, "AB"] - sides[kind, "BA"]) <= 2
    assert abs(sum(1 if p.order == "AB" else -1 for p in pairs)) <= 2


def test_another_writer_is_another_question(tmp_path: Path) -> None:
    _make(tmp_path, Scripted())
    (tmp_path / "pairs.jsonl").unlink()
    answers, mimic = Answers(tmp_path / "answers.jsonl"), Scripted()
    other = {**_writers(mimic), "mimic": NamedWriter("openai:m", mimic)}
    fill = Negatives(other, answers, NegativesConfig())
    write_pairs(tmp_path / "pairs.jsonl", _maker(), ["train"], fill=fill)
    answers.close()
    assert len(mimic.asked) == 20


def test_answers_of_another_kind_of_file(tmp_path: Path) -> None:
    write_records(tmp_path / "a.jsonl", [Answer("k", 0, "mimic", "w", "x", "")])
    answers = Answers(tmp_path / "a.jsonl")
    assert answers.find("k", 0) == Answer("k", 0, "mimic", "w", "x", "")
    assert answers.find("k", 1) is None
    answers.close()
    (tmp_path / "a.jsonl").write_text(json.dumps({"key": "k"}) + "\n")
    with pytest.raises(ValueError, match="a.jsonl, line 1: no field 'attempt'"):
        Answers(tmp_path / "a.jsonl")


@pytest.mark.parametrize("kinds", [KINDS, ("other_author",)])
def test_a_file_that_was_cut_off_anywhere_ends_the_same(
    tmp_path: Path, kinds: tuple[NegativeType, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persrm_jax.data.pairs, "BLOCK", 16)
    monkeypatch.setattr(persrm_jax.data.pair_files, "BLOCK", 16)
    path, names = tmp_path / "pairs.jsonl", ["train", "dev", "seen"]

    def make() -> list[int]:
        answers, done = Answers(tmp_path / "answers.jsonl"), []
        fill = Negatives(_writers(Scripted(1)), answers, NegativesConfig())
        write_pairs(path, _maker(kinds), names, fill=fill, advance=done.append)
        answers.close()
        return done

    assert sum(make()) == 72
    whole = path.read_bytes()
    rng = random.Random(1)
    for cut in [0, 1, len(whole) - 1, len(whole), *(rng.randrange(len(whole)) for _ in range(8))]:
        path.write_bytes(whole[:cut])
        done = make()
        assert path.read_bytes() == whole, cut
        assert sum(done) == 72 and done[0] <= 72 * (cut + 1) / len(whole) + 16


def test_any_number_of_processes_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persrm_jax.data.pair_files, "_WORTHWHILE", 2)
    corpus_path = tmp_path / "documents.jsonl"
    write_records(corpus_path, _documents())
    corpus = Corpus.open(corpus_path)
    cfg = PairConfig(
        num_exemplars=2,
        negatives=("other_author_same_topic", "other_author"),
        num_train=3 * BLOCK + 7,
        num_dev=6,
    )
    maker = PairMaker(corpus, split_sets(corpus, cfg, 0), cfg, 0)
    for processes in (1, 2):
        write_pairs(tmp_path / f"{processes}.jsonl", maker, ["train", "dev"], processes=processes)
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert len(read_records(tmp_path / "1.jsonl", Pair)) == 3 * BLOCK + 13
    in_memory = PairMaker(Corpus.of(_documents()), split_sets(corpus, cfg, 0), cfg, 0)
    assert read_records(tmp_path / "1.jsonl", Pair) == in_memory.all("train", "dev")


def test_a_corpus_in_a_file(tmp_path: Path) -> None:
    documents = _documents(3)
    write_records(tmp_path / "d.jsonl", documents)
    corpus = Corpus.open(tmp_path / "d.jsonl")
    assert [corpus[i] for i in (5, 0, 29)] == [documents[i] for i in (5, 0, 29)]
    assert corpus.names == ["author-0", "author-1", "author-2"]
    assert [corpus.names[a] for a in corpus.author] == [d.author for d in documents]
    assert corpus.is_exemplar.tolist() == [d.split == "train" for d in documents]
    assert corpus.exemplars.of(1).tolist() == [11, 13, 15, 17, 19]
    write_records(tmp_path / "d.jsonl", [*documents, documents[4]])
    with pytest.raises(ValueError, match="d.jsonl, line 31: '0/4' is line 5's id"):
        Corpus.open(tmp_path / "d.jsonl")


def test_lengths_are_cut_at_a_sentence() -> None:
    text = "one two three four five six seven eight nine ten"
    assert fit_length("A b c. D e f g. H i j k l.", text) == "A b c. D e f g."
    assert fit_length(" A b c. D e f g.\n\nH i. ", text) == "A b c. D e f g.\n\nH i."


@pytest.mark.parametrize("kind", ["mimic", "random", "minor"])
@pytest.mark.parametrize("prompt", ["", "Where were {you}?"])
def test_what_writers_are_asked(kind: NegativeType, prompt: str) -> None:
    text = "I {was} there. " * 10
    messages = negative_messages(kind, text, prompt)
    asked = messages[-1]["content"]
    assert [m["role"] for m in messages] == ["system", "user"]
    assert (text in asked) == (kind != "random")
    assert (prompt in asked) or kind == "minor"
    assert ("30 words" in asked) == (kind != "minor")


def test_a_bad_config_names_its_flag() -> None:
    with pytest.raises(ValueError, match="--written.tries 0"):
        NegativesConfig(tries=0)
    with pytest.raises(ValueError, match="--written.verify.max-length-ratio"):
        replace(VerifyConfig(), max_length_ratio=0.5)
