"""Texts -> documents -> pairs -> traces (and, for a model from scratch, its tokenizer).

    python -m experiments.synthesize [PRESET] [--data FILE.jsonl.gz] [--out DIR]

Writes `documents.jsonl`, `pairs.jsonl` (train, dev and test authors), `pairs_seen.jsonl` (unseen
texts of training authors) and `traces.jsonl` into the run folder.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from experiments.presets import FREE_FIELDS, PRESETS, RunConfig, parse_run
from persrm_jax import cli
from persrm_jax.data.batches import encode_pairs
from persrm_jax.data.documents import load_documents, summarize
from persrm_jax.data.embedded import load_embedded
from persrm_jax.data.pairs import make_pairs
from persrm_jax.data.personas import make_personas
from persrm_jax.data.traces import fit_teacher, make_traces
from persrm_jax.distributed import initialize, on_main
from persrm_jax.jsonl import read_records, write_records
from persrm_jax.models.load import FROM_SCRATCH, load_tokenizer, model_folder
from persrm_jax.runs import RunFolder
from persrm_jax.tokenizer import Tokenizer, train_tokenizer
from persrm_jax.types import Document, Pair, Trace

TINY_VOCABULARY = 640


def read_documents(cfg: RunConfig) -> list[Document]:
    """The corpus that `--data` names.

    Raises:
        ValueError: no such file, or rows that are no documents.
    """
    if cfg.data == "personas":
        return make_personas(cfg.personas, cfg.seed)
    if cfg.data == "embedded":
        return load_embedded(cfg.corpus)
    return load_documents(Path(cfg.data), cfg.corpus)


def synthesize(cfg: RunConfig, run: RunFolder) -> None:
    """Makes every data file. Bad input is found before the first is written.

    Raises:
        ValueError: texts or settings of which no data set can be made.
    """
    with run.stage("data"):
        on_main(lambda: _synthesize(cfg, run))


def _synthesize(cfg: RunConfig, run: RunFolder) -> None:
    documents = read_documents(cfg)
    print(f"documents: {summarize(documents)}")
    sets = make_pairs(documents, cfg.pairs, cfg.seed)
    counts = Counter(pair.author_split for pair in sets.main)
    listed = ", ".join(f"{n:,} {split}" for split, n in counts.items())
    print(f"pairs: {listed}, {len(sets.seen):,} of training authors' unseen texts")
    pairs = [pair for pair in sets.main if pair.author_split == "train"]
    yardstick = fit_teacher(documents, {pair.author for pair in pairs}, cfg.teacher)
    traces = make_traces(pairs, yardstick, cfg.prompt)
    if not traces:
        raise ValueError(
            f"the stylometric teacher judged none of {len(pairs)} training pairs rightly: "
            "bring longer texts (--corpus.max-words) or more facts (--teacher.num-facts)"
        )
    print(
        f"traces: {len(traces):,} of {len(pairs):,} kept (right verdict); "
        f"facts: {', '.join(yardstick.names)}"
    )
    tokenizer = _tokenizer(cfg, traces)
    for group in (sets.main, sets.seen):
        encode_pairs(group, [pair.order for pair in group], tokenizer, cfg.prompt)
    write_records(run.path / "documents.jsonl", documents)
    write_records(run.path / "pairs_seen.jsonl", sets.seen)
    write_records(run.path / "pairs.jsonl", sets.main)
    write_records(run.path / "traces.jsonl", traces)
    if cfg.model == FROM_SCRATCH:
        tokenizer.save(run.path / "tokenizer")


def _tokenizer(cfg: RunConfig, traces: Sequence[Trace]) -> Tokenizer:
    """The model's own, or one trained on the training prompts and traces."""
    if cfg.init is not None:
        return load_tokenizer(str(model_folder(cfg.init)))
    if cfg.model != FROM_SCRATCH:
        return load_tokenizer(cfg.model)
    texts = [message["content"] for trace in traces for message in trace.messages]
    texts += [trace.response for trace in traces]
    return train_tokenizer(texts, TINY_VOCABULARY)


def load_pairs(folder: Path, split: str) -> list[Pair]:
    """The run's pairs of train, dev or test authors."""
    return [p for p in read_records(folder / "pairs.jsonl", Pair) if p.author_split == split]


def load_traces(folder: Path) -> list[Trace]:
    """The run's reasoning traces."""
    return read_records(folder / "traces.jsonl", Trace)


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = parse_run(PRESETS, "python -m experiments.synthesize", args)
    initialize(cfg.cluster, cfg.mesh.num_devices)
    run = RunFolder(cfg.folder, cfg, free=FREE_FIELDS)
    if not run.is_done("data"):
        synthesize(cfg, run)
    print(f"data: in {run.path}")


if __name__ == "__main__":
    cli.run_main(main)
