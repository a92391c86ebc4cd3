"""How fast and in how much memory texts become documents and pairs.

    python -m benchmarks.data [--documents 1000000] [--out results/data.json]

Texts are generated: words drawn by Zipf's law, authors with 20 texts each. Three measurements: all
`--documents` short texts stream through reading, splitting and pairing, with the main process's
memory after every 100,000, and the peaks of it and of its largest child; texts as long as CCAT50's
(485 words) are paired, model-free kinds in equal parts, near copies looked for; and each step's
share of one process's time is profiled.
"""

import cProfile
import gzip
import json
import os
import pstats
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persrm_jax import cli
from persrm_jax.data.corpus import Corpus
from persrm_jax.data.documents import CorpusConfig, Counts, make_documents
from persrm_jax.data.pair_files import write_pairs
from persrm_jax.data.pairs import PairMaker
from persrm_jax.data.sources import SourceConfig, read_texts
from persrm_jax.data.splits import PairConfig, split_sets
from persrm_jax.jsonl import write_records, write_text
from persrm_jax.runs import provenance
from persrm_jax.types import Document, NegativeType

AUTHOR_TEXTS = 20
CCAT50_WORDS = 485
SHORT_WORDS = 50
KINDS: tuple[NegativeType, ...] = ("other_author", "other_author_same_topic")
MIB = 2**20


@dataclass(frozen=True)
class DataConfig:
    """How much."""

    documents: int = 1_000_000
    """Short texts that stream through."""
    pairs: int = 20_000
    """Pairs of them, and of the long texts."""
    long_documents: int = 20_000
    """Texts of CCAT50's length."""
    processes: int = 2
    out: Path | None = None
    """File for the numbers."""


def write_texts(path: Path, count: int, num_words: int) -> None:
    """Generated texts: words by Zipf's law, each text about one of 500 topics."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnoprstuvw"))
    words = ["".join(rng.choice(letters, rng.integers(2, 10))) for _ in range(20_000)]
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        for start in range(0, count, 1000):
            size = min(1000, count - start)
            ranks = np.minimum(rng.zipf(1.3, (size, num_words)) - 1, 19_999)
            about = rng.integers(0, 500, size)[:, None] * 37 + rng.integers(0, 37, ranks.shape)
            ranks = np.where(rng.random(ranks.shape) < 0.2, about % 20_000, ranks)
            for i in range(size):
                number = start + i
                said = [words[k] for k in ranks[i]]
                for stop in range(11, num_words, 12):
                    said[stop] += "."
                row = {
                    "author": f"author-{number // AUTHOR_TEXTS}",
                    "doc_id": str(number),
                    "text": " ".join(said) + ".",
                }
                file.write(json.dumps(row) + "\n")


def memory_mib() -> float:
    """Resident now, this process alone."""
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def peaks_mib() -> dict[str, float]:
    """The most that this process and the largest of its children have had."""
    own, child = (
        resource.getrusage(who).ru_maxrss / 1024
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return {"main": round(own), "largest_child": round(child)}


def read(path: Path, out: Path, num_words: int, marks: list[float] | None = None) -> Counts:
    """Texts -> documents.jsonl; notes the memory after each tenth."""
    cfg = CorpusConfig(max_words=num_words, min_words=20)
    counts = Counts()

    def noted(documents: Iterator[Document]) -> Iterator[Document]:
        for number, document in enumerate(documents):
            if marks is not None and number % 100_000 == 0:
                marks.append(round(memory_mib()))
            yield document

    write_records(out, noted(make_documents(read_texts(str(path), SourceConfig()), cfg, counts)))
    return counts


def pair(documents: Path, out: Path, cfg: DataConfig, processes: int) -> dict[str, Any]:
    """documents.jsonl -> pairs.jsonl; seconds of each part."""
    begin = time.perf_counter()
    corpus = Corpus.open(documents)
    opened = time.perf_counter()
    pairs = PairConfig(num_exemplars=4, negatives=KINDS, num_train=cfg.pairs, num_dev=0, num_test=0)
    maker = PairMaker(corpus, split_sets(corpus, pairs, 0), pairs, 0)
    write_pairs(out, maker, ["train"], processes=processes)
    done = time.perf_counter()
    with out.open("rb") as file:
        made = sum(1 for _ in file)
    return {
        "documents": len(corpus),
        "index_s": round(opened - begin, 2),
        "index_mb_per_s": round(documents.stat().st_size / 1e6 / (opened - begin), 1),
        "pairs": made,
        "pairs_s": round(done - opened, 2),
        "pairs_per_s": round(made / (done - opened)),
        "written_mb": round(out.stat().st_size / 1e6, 1),
    }


def profile(action: Any, names: dict[str, str]) -> dict[str, float]:
    """Shares of an action's time that named functions took, all they call included."""
    profiler = cProfile.Profile()
    profiler.runcall(action)
    stats = pstats.Stats(profiler)
    whole = stats.total_tt  # type: ignore[attr-defined]
    found: dict[str, float] = {}
    for (_, _, function), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        if function in names:
            found[names[function]] = round(found.get(names[function], 0) + cumulative / whole, 3)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


READING = {
    "strip_boilerplate": "stripping boilerplate",
    "cut_passages": "cutting passages",
    "is_copy": "near copies",
    "words_of": "hashing words",
    "read_rows": "parsing JSON",
    "record_line": "writing JSON",
    "_text": "checking rows",
}
PAIRING = {
    "_nearest": "topics (the words of the pool included)",
    "five_grams": "five-grams",
    "is_near_copy": "comparing five-grams",
    "words_of": "hashing words",
    "record_line": "writing JSON",
    "__getitem__": "reading documents",
    "topic_weights": "weighing words",
}


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(DataConfig, "python -m benchmarks.data", args)
    result: dict[str, Any] = {"provenance": provenance(), "cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_texts(folder / "short.jsonl", cfg.documents, SHORT_WORDS)
        marks: list[float] = []
        begin = time.perf_counter()
        counts = read(folder / "short.jsonl", folder / "documents.jsonl", SHORT_WORDS, marks)
        seconds = time.perf_counter() - begin
        size = (folder / "short.jsonl").stat().st_size / 1e6
        result["streaming"] = {
            "texts": counts.texts,
            "documents": counts.documents,
            "read_s": round(seconds, 1),
            "texts_per_s": round(counts.texts / seconds),
            "input_mb_per_s": round(size / seconds, 2),
            "memory_mib_every_100000": marks,
            **pair(folder / "documents.jsonl", folder / "pairs.jsonl", cfg, cfg.processes),
            "peak_mib": peaks_mib(),
        }
        print(json.dumps(result["streaming"]))
        write_texts(folder / "long.jsonl", cfg.long_documents, CCAT50_WORDS)
        begin = time.perf_counter()
        counts = read(folder / "long.jsonl", folder / "long_documents.jsonl", CCAT50_WORDS)
        seconds = time.perf_counter() - begin
        size = (folder / "long.jsonl").stat().st_size / 1e6
        result["ccat50_length"] = {
            "texts_per_s": round(counts.texts / seconds),
            "input_mb_per_s": round(size / seconds, 2),
            **{
                f"{n}_processes": pair(
                    folder / "long_documents.jsonl", folder / f"long_pairs_{n}.jsonl", cfg, n
                )
                for n in sorted({1, cfg.processes})
            },
        }
        print(json.dumps(result["ccat50_length"]))
        some = DataConfig(pairs=2000)
        write_texts(folder / "some.jsonl", 2000, CCAT50_WORDS)
        result["shares_of_reading"] = profile(
            lambda: read(folder / "some.jsonl", folder / "some_documents.jsonl", CCAT50_WORDS),
            READING,
        )
        result["shares_of_pairing"] = profile(
            lambda: pair(folder / "long_documents.jsonl", folder / "some_pairs.jsonl", some, 1),
            PAIRING,
        )
        print(json.dumps({k: v for k, v in result.items() if k.startswith("shares")}))
    if cfg.out is not None:
        write_text(cfg.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
