"""The data command, end to end: every writer, killed anywhere, its card, what others read."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import jax
import pytest
from datasets import load_dataset
from endpoint import serving

import experiments.synthesize
from experiments.presets import PRESETS, parse_run
from persrm_jax.data.minor import minor_fault
from persrm_jax.data.openai_writer import KEY
from persrm_jax.data.prompts import Judgement, PromptConfig, format_response
from persrm_jax.data.synonyms import SYNONYMS
from persrm_jax.jsonl import read_records
from persrm_jax.models.load import new_model, save_model
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.tokenizer import byte_tokenizer
from persrm_jax.types import Document, Pair, Trace

FILES = ("documents.jsonl", "pairs.jsonl", "pairs_seen.jsonl", "traces.jsonl")
SMALL = [
    *("--pairs.num-train", "60", "--pairs.num-dev", "6", "--pairs.num-test", "6"),
    *("--pairs.num-seen", "6", "--pairs.num-exemplars", "1", "--prompt.max-tokens", "4000"),
    *("--corpus.max-words", "60", "--corpus.min-words", "20"),
]
WORDS = (*sorted(SYNONYMS)[::3], "stone", "river", "hill", "tree", "road", "wall", "the", "and")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("texts") / "letters.jsonl"
    with path.open("w") as file:
        for author in range(9):
            mark = rng.choice("!?.")
            for _ in range(12):
                said = " ".join(rng.choices(WORDS, k=rng.randrange(30, 50)))
                file.write(json.dumps({"author": f"Ann {author}", "text": said + mark}) + "\n")
        file.write(json.dumps({"author": "Lonely Bob", "text": " ".join(WORDS[:40])}) + "\n")
        file.write(json.dumps({"author": "Lonely Bob", "text": "Short."}) + "\n")
    return path


def run(out: Path, texts: Path, *args: str) -> dict[str, bytes]:
    experiments.synthesize.main([*SMALL, "--data", str(texts), "--out", str(out), *args])
    return {name: (out / name).read_bytes() for name in FILES}


def test_rules_write_minor_replacements(tmp_path: Path, texts: Path) -> None:
    kinds = "minor,other_author,other_author_same_topic"
    run(tmp_path / "run", texts, "--negatives", kinds)
    pairs = read_records(tmp_path / "run" / "pairs.jsonl", Pair)
    assert Counter(p.negative_type for p in pairs) == {kind: 24 for kind in kinds.split(",")}
    for pair in pairs:
        if pair.negative_type == "minor":
            assert minor_fault(pair.chosen, pair.rejected) is None
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["read"]["texts"] == 110 and card["read"]["dropped"] == {"too short": 1}
    assert card["corpus"]["authors_with_too_few_texts"] == 1
    assert card["pairs"]["pairs.jsonl"]["made"] == 72
    assert card["writers"]["answers"]["minor"]["kept"] == 26
    assert card["traces"]["asked"] == 60 and 0 < card["traces"]["kept"] <= 60
    assert "Data card: letters.jsonl" in (tmp_path / "run" / "card.md").read_text()
    assert not [*(tmp_path / "run").glob("*.partial")]
    for name in FILES:
        rows = load_dataset("json", data_files=str(tmp_path / "run" / name), split="train")
        assert len(rows) == len((tmp_path / "run" / name).read_bytes().splitlines())


def test_an_endpoint_writes_negatives_and_traces(
    tmp_path: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With time-outs, refusals and cut connections on the way."""
    monkeypatch.setenv(KEY, "secret")
    rng = random.Random(1)
    for_a, for_b = (
        format_response("One is nearer.", judgement, PromptConfig())
        for judgement in (Judgement("A", 8.0, 2.0), Judgement("B", 2.0, 8.0))
    )

    def write(asked: str) -> str:
        if "[Candidate A]" in asked or "The right answer is" in asked:
            return for_b if "candidate B fits" in asked else for_a
        assert "secret" not in asked
        said = ("moon", "glass", "song", "ash", "lamp", "tide", "bell", "rain")
        return " ".join("So " + " ".join(rng.choices(said, k=3)) + "." for _ in range(10))

    with serving() as endpoint:
        endpoint.write = write
        args = [
            *("--negatives", "mimic,random", "--writer", "openai", "--base-url", endpoint.url),
            *("--openai.model", "m", "--teacher.by", "openai", "--prompt.template", "full"),
            *("--openai.price-in", "1000", "--max-pairs", "26"),
        ]
        files = run(tmp_path / "run", texts, *args)
        asked = len(endpoint.seen)
    pairs = read_records(tmp_path / "run" / "pairs.jsonl", Pair)
    assert Counter(p.negative_type for p in pairs) == {"mimic": 12, "random": 12}
    assert {p.writer for p in pairs} == {"openai:m"}
    traces = read_records(tmp_path / "run" / "traces.jsonl", Trace)
    assert len(traces) == 40 and {t.order for t in traces} == {"AB", "BA"}
    assert all(t.verdict == ("A" if t.order == "AB" else "B") for t in traces)
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["writers"]["answers"]["trace"] == {"kept": 40, "wrong": 20}
    assert card["traces"]["asked"] == card["traces"]["kept"] == 40
    prompt_tokens = card["writers"]["tokens"]["openai:m"]["prompt"]
    assert card["writers"]["cost"] == pytest.approx(prompt_tokens / 1000) and prompt_tokens > 0
    assert asked > sum(sum(kind.values()) for kind in card["writers"]["answers"].values())
    assert b"secret" not in b"".join(p.read_bytes() for p in (tmp_path / "run").glob("*.json*"))
    assert files["pairs.jsonl"]


def _start(out: Path, args: list[str]) -> subprocess.Popen[str]:
    """The command in a process of its own, once it has made the documents."""
    command = [sys.executable, "-u", "-m", "experiments.synthesize", *args, "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = out.with_suffix(".log").open("w+")
    process = subprocess.Popen(command, stdout=said, env=environment, text=True)
    said.close()
    while process.poll() is None and "documents:" not in out.with_suffix(".log").read_text():
        time.sleep(0.01)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("writer", ["rules", "local"])
def test_killed_at_random_moments_it_ends_the_same(
    tmp_path: Path, texts: Path, writer: str
) -> None:
    args = [*SMALL, "--data", str(texts)]
    if writer == "rules":
        args += ["--negatives", "minor,other_author_same_topic", "--pairs.num-train", "10000"]
    else:  # noise by a model of random weights, of which next to nothing is refused
        mesh = make_mesh(MeshShape(1, 1))
        save_model(
            tmp_path / "model", new_model(byte_tokenizer(), jax.random.key(0), mesh, "float32")
        )
        args += ["--negatives", "random,other_author", "--writer", "local", "--written.tries", "2"]
        args += ["--model", str(tmp_path / "model"), "--local.sampling.max-new-tokens", "24"]
        args += ["--local.sampling.stop", "a", "e", "--local.batch-size", "2"]
        args += ["--written.verify.max-length-ratio", "1000", "--written.verify.min-words", "1"]
        args += [
            "--pairs.num-train",
            "100",
            "--prompt.max-tokens",
            "1000",
            "--corpus.max-words",
            "40",
        ]
        args += ["--rft.sampling.max-new-tokens", "24", "--eval.sampling.max-new-tokens", "24"]
    process = _start(tmp_path / "whole", args)
    begin = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - begin
    rng, killed = random.Random(2), 0
    for _ in range(10):
        process = _start(tmp_path / "killed", args)
        time.sleep(rng.uniform(0.0, 0.4) * seconds)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed >= 5, "most kills found it at work"
    assert _start(tmp_path / "killed", args).wait() == 0
    for name in (*FILES, "card.json", "answers.jsonl"):
        whole, killed = ((tmp_path / f / name).read_bytes() for f in ("whole", "killed"))
        assert whole == killed, name


def test_other_settings_do_not_go_on_with_what_was_cut_off(tmp_path: Path, texts: Path) -> None:
    args = [*SMALL, "--data", str(texts), "--out", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.synthesize, "make_traces", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiments.synthesize.main(args)
    assert (tmp_path / "run" / "pairs.jsonl.partial").is_file()
    with pytest.raises(ValueError, match="other settings"):
        experiments.synthesize.main([*args, "--seed", "1"])
    experiments.synthesize.main(args)
    assert (tmp_path / "run" / "pairs.jsonl").is_file()


def test_other_texts_under_the_same_name_start_anew(tmp_path: Path, texts: Path) -> None:
    mine = tmp_path / "letters.jsonl"
    mine.write_bytes(texts.read_bytes())
    args = [*SMALL, "--data", str(mine), "--out", str(tmp_path / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiments.synthesize, "make_traces", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            experiments.synthesize.main(args)
    lines = mine.read_text().splitlines()
    mine.write_text("\n".join(lines[12:]))  # one author fewer
    experiments.synthesize.main(args)
    pairs = read_records(tmp_path / "run" / "pairs.jsonl", Pair)
    assert len(pairs) == 72 and "Ann 0" not in {p.author for p in pairs}
    experiments.synthesize.main([*args[:-1], str(tmp_path / "new")])
    for name in FILES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_model_names_its_preset() -> None:
    def parsed(*args: str) -> str:
        return parse_run(PRESETS, "prog", args).preset

    assert parsed("--model", "smollm2") == parsed("--model=smollm2") == "smollm2"
    assert parsed("tiny", "--model", "smollm2") == parsed("--model", "elsewhere") == "tiny"


def test_short_flags() -> None:
    args = ["--negatives", "minor,other_author", "--max-pairs", "7", "--base-url=http://x"]
    cfg = parse_run(PRESETS, "prog", args)
    assert cfg.pairs.negatives == ("minor", "other_author")
    assert (cfg.pairs.max_pairs, cfg.openai.base_url) == (7, "http://x")
    assert sum(cfg.pairs.counts.values()) == 7
    spaced = parse_run(PRESETS, "prog", ["--pairs.negatives", "minor", "other_author"])
    assert spaced.pairs.negatives == cfg.pairs.negatives


def test_domains_that_are_kept_from_training(tmp_path: Path) -> None:
    source = tmp_path / "texts.jsonl"
    rng = random.Random(1)
    with source.open("w") as file:
        for author in range(9):
            for i in range(18):
                said = " ".join(rng.choices(WORDS, k=rng.randrange(30, 50)))
                row = {
                    "author": f"Ann {author}",
                    "domain": "mail" if i % 3 else "blog",
                    "text": said,
                }
                file.write(json.dumps(row) + "\n")
    unseen = ("--pairs.unseen-domains", "blog", "--pairs.num-elsewhere", "8")
    run(tmp_path / "run", source, *unseen)
    trained = read_records(tmp_path / "run" / "documents.jsonl", Document)
    assert {d.domain for d in trained} == {"mail"} and len(trained) == 9 * 12
    away = {
        d.doc_id for d in read_records(tmp_path / "run" / "documents_elsewhere.jsonl", Document)
    }
    assert len(away) == 9 * 6
    main = read_records(tmp_path / "run" / "pairs.jsonl", Pair)
    known = {pair.author for pair in main if pair.author_split != "test"}
    pairs = read_records(tmp_path / "run" / "pairs_elsewhere.jsonl", Pair)
    assert len(pairs) == 8 and not known & {
        p for pair in pairs for p in (pair.author, pair.rejected_author)
    }
    assert {i for p in pairs for i in (p.chosen_id, p.rejected_id, *p.exemplar_ids)} <= away
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    assert card["pairs"]["pairs_elsewhere.jsonl"]["made"] == 8
    with pytest.raises(
        ValueError, match="unseen-domains post: no text is of this domain; there are blog, mail"
    ):
        run(tmp_path / "other", source, "--pairs.unseen-domains", "post")
    assert not (tmp_path / "other").exists()
