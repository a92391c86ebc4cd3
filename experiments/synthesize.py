"""Texts -> documents -> pairs -> traces (and, for a model from scratch, its tokenizer).

    python -m experiments.synthesize [PRESET] [--data TEXTS] [--out DIR]
    python -m experiments.synthesize smollm2 --negatives minor,mimic,other_author_same_topic \\
        --writer minor=rules,mimic=local --max-pairs 200

Writes `documents.jsonl`, `pairs.jsonl` (train, dev and test authors), `pairs_seen.jsonl` (unseen
texts of training authors), `pairs_elsewhere.jsonl` (domains that training never sees, if some are
kept from it), `traces.jsonl`, what writers gave in `answers.jsonl`, and a data card into the run
folder. A run that was cut off goes on where it was, and writes the same.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from rich.progress import Progress, track

from experiments.presets import FREE_FIELDS, PRESETS, RunConfig, parse_run
from experiments.writers import Writers
from persrm_jax import cli
from persrm_jax.data.answers import Answers
from persrm_jax.data.batches import encode_pairs
from persrm_jax.data.card import Card, yields
from persrm_jax.data.corpus import Corpus
from persrm_jax.data.documents import Counts, make_documents
from persrm_jax.data.embedded import load_embedded
from persrm_jax.data.negatives import Negatives
from persrm_jax.data.pair_files import write_pairs
from persrm_jax.data.pairs import PairMaker, make_elsewhere_pairs
from persrm_jax.data.personas import make_personas
from persrm_jax.data.sources import read_texts
from persrm_jax.data.splits import eligible, split_sets
from persrm_jax.data.taught import taught_traces
from persrm_jax.data.traces import fit_teacher, make_traces
from persrm_jax.distributed import initialize, on_main
from persrm_jax.jsonl import iter_records, read_records, record_line, write_records
from persrm_jax.models.load import FROM_SCRATCH, load_tokenizer, model_folder
from persrm_jax.runs import RunFolder
from persrm_jax.sharding import make_mesh
from persrm_jax.tokenizer import Tokenizer, train_tokenizer
from persrm_jax.types import Document, Pair, Trace

TINY_VOCABULARY = 640
_TOKENIZED = 20_000
"""Traces on which a tokenizer is trained, where there are more."""
_MEASURED = 5000
"""Documents that the stylometric teacher is fitted to, where there are more."""
_CHECKED = 512
PAIR_FILES = {"pairs.jsonl": ("train", "dev", "test"), "pairs_seen.jsonl": ("seen",)}
UNSEEN = "documents_elsewhere.jsonl"
"""Texts of domains that are kept from training."""
UNFINISHED = ".partial"


def read_documents(cfg: RunConfig, counts: Counts) -> Iterable[Document]:
    """The corpus that `--data` names.

    Raises:
        ValueError: no such data, or rows that are no texts.
    """
    if cfg.data == "personas":
        return make_personas(cfg.personas, cfg.seed)
    if cfg.data == "embedded":
        return load_embedded(cfg.corpus)
    return make_documents(read_texts(cfg.data, cfg.source), cfg.corpus, counts)


def synthesize(cfg: RunConfig, run: RunFolder, mesh: Mesh) -> None:
    """Makes every data file. They get their names when all are whole.

    Raises:
        ValueError: texts or settings of which no data set can be made.
    """
    with run.stage("data"), jax.set_mesh(mesh):
        writers = Writers(cfg, mesh)
        if jax.process_count() > 1 and "local" in writers.names:
            raise ValueError("--writer local: make the data with one process; any number read it")
        on_main(lambda: _synthesize(cfg, run.path, writers))


def _synthesize(cfg: RunConfig, folder: Path, writers: Writers) -> None:
    writers.check()
    card = Card(cfg.data, cfg.seed)
    answers = Answers(folder / "answers.jsonl")
    try:
        corpus = _make_documents(cfg, folder, card)
        maker = PairMaker(corpus, split_sets(corpus, cfg.pairs, cfg.seed), cfg.pairs, cfg.seed)
        _make_pairs(cfg, folder, maker, writers, answers, card)
        _make_elsewhere(cfg, folder, maker, card)
        _make_traces(cfg, folder, maker, writers, answers, card)
        tokenizer = _tokenizer(cfg, iter_records(_unfinished(folder, "traces.jsonl"), Trace))
        for path in sorted(folder.glob(f"pairs*{UNFINISHED}")):
            _check_lengths(iter_records(path, Pair), tokenizer, cfg)
    except ValueError:
        for path in folder.glob(f"*{UNFINISHED}"):  # of no use; answers are
            path.unlink()
        raise
    finally:
        answers.close()
    card.of_answers(answers, writers.cost(answers))
    card.write(folder)
    if cfg.model == FROM_SCRATCH:
        tokenizer.save(folder / "tokenizer")
    for path in sorted(folder.glob(f"*{UNFINISHED}")):
        os.replace(path, path.with_suffix(""))


def _unfinished(folder: Path, name: str) -> Path:
    return folder / f"{name}{UNFINISHED}"


def _make_documents(cfg: RunConfig, folder: Path, card: Card) -> Corpus:
    path = _unfinished(folder, "documents.jsonl")
    new = path.with_name(f"new-{path.name}")
    read = read_documents(cfg, card.counts)
    if cfg.unseen_domains:
        read = _without_unseen(read, _unfinished(folder, UNSEEN), cfg.unseen_domains)
    write_records(new, card.of_documents(read))
    if _digest(path) != _digest(new):  # other texts under the same name: no pair of theirs stays
        for name in PAIR_FILES:
            _unfinished(folder, name).unlink(missing_ok=True)
    os.replace(new, path)
    corpus = Corpus.open(path)
    card.of_corpus(corpus, len(eligible(corpus, cfg.pairs)))
    print(f"documents: {card.documents_line()}")
    return corpus


def _without_unseen(
    documents: Iterable[Document], away: Path, domains: Sequence[str]
) -> Iterator[Document]:
    """The documents to train on; those of unseen domains go to the file `away`."""
    found, trained = set(), set()
    with away.open("wb") as file:
        for document in documents:
            if document.domain in domains:
                found.add(document.domain)
                file.write(record_line(document).encode())
            else:
                trained.add(document.domain)
                yield document
    if missing := [domain for domain in domains if domain not in found]:
        raise ValueError(
            f"--pairs.unseen-domains {missing[0]}: no text is of this domain; "
            f"there are {', '.join(sorted(found | trained))}"
        )


def _make_elsewhere(cfg: RunConfig, folder: Path, maker: PairMaker, card: Card) -> None:
    """Pairs of unseen domains, by authors who are neither trained on nor selected by."""
    if not cfg.unseen_domains:
        return
    known = {maker.corpus.names[a] for name in ("train", "dev") for a in maker.sets[name].people}
    corpus = Corpus.open(_unfinished(folder, UNSEEN))
    pairs = make_elsewhere_pairs(corpus, cfg.pairs, known, cfg.seed)
    noted = card.of_pairs("pairs_elsewhere.jsonl", cfg.pairs.elsewhere_count, pairs)
    write_records(_unfinished(folder, "pairs_elsewhere.jsonl"), noted)
    print(f"pairs: {len(pairs):,} of {', '.join(cfg.unseen_domains)}, kept from training")


def _digest(path: Path) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _make_pairs(
    cfg: RunConfig,
    folder: Path,
    maker: PairMaker,
    writers: Writers,
    answers: Answers,
    card: Card,
) -> None:
    processes = cfg.processes or os.cpu_count() or 1
    with Progress() as bar:
        written = bar.add_task("answers of writers", total=None, visible=bool(writers.kinds))
        told = partial(bar.advance, written)
        negatives = Negatives(writers.of_kinds(), answers, cfg.written, told)
        for name, sets in PAIR_FILES.items():
            path = _unfinished(folder, name)
            asked = sum(block.count for block in maker.blocks(*sets))
            advance = partial(bar.advance, bar.add_task(name, total=asked))
            write_pairs(path, maker, sets, fill=negatives, processes=processes, advance=advance)
            _exhaust(card.of_pairs(name, asked, iter_records(path, Pair)))
    print(f"pairs: {card.pairs_line()}")
    if kept := yields(answers):
        print(f"written: {kept}")


def _make_traces(
    cfg: RunConfig,
    folder: Path,
    maker: PairMaker,
    writers: Writers,
    answers: Answers,
    card: Card,
) -> None:
    source = _unfinished(folder, "pairs.jsonl")
    count = sum(p.author_split == "train" for p in iter_records(source, Pair))
    train = (p for p in iter_records(source, Pair) if p.author_split == "train")
    pairs = track(train, "pairs that are judged", total=count)
    teacher = cfg.teacher
    evidence = ""
    if teacher.by == "stylometric":
        known = _known_documents(maker, cfg.seed)
        fitted = fit_teacher(known, teacher)
        traces = make_traces(pairs, fitted, cfg.prompt, both_orders=teacher.both_orders)
        if fitted.num_words:
            evidence += "; words in common"
        if facts := ", ".join(fitted.yardstick.names):
            evidence += f"; facts: {facts}"
    else:
        traces = taught_traces(
            pairs,
            writers.by_name(teacher.writer),
            answers,
            cfg.prompt,
            samples=teacher.first_pass,
            second_pass=teacher.has_second_pass,
        )
    is_twice = teacher.judges_both_orders or cfg.prompt.answer == "score"
    asked = count * (2 if is_twice else 1)
    path = _unfinished(folder, "traces.jsonl")
    write_records(path, card.of_traces(asked, traces))
    print(f"traces: {card.traces_line()}{evidence}")
    if not card.num_traces:
        raise ValueError(
            f"the {teacher.by} teacher judged none of {count} training pairs rightly: bring longer "
            "texts (--corpus.max-words), more evidence (--teacher.num-facts, --teacher.num-words) "
            "or a better teacher (--teacher.by)"
        )


def _known_documents(maker: PairMaker, seed: int) -> list[Document]:
    """The training authors' exemplars, or a sample of them."""
    corpus = maker.corpus
    is_known = corpus.is_exemplar & np.isin(corpus.author, maker.sets["train"].people)
    numbers = np.flatnonzero(is_known)
    if len(numbers) > _MEASURED:
        rng = np.random.default_rng([seed, 8])
        numbers = np.sort(rng.choice(numbers, _MEASURED, replace=False))
    return [corpus[i] for i in numbers.tolist()]


def _exhaust(records: Iterator[Pair]) -> None:
    for _ in records:
        pass


def _check_lengths(pairs: Iterator[Pair], tokenizer: Tokenizer, cfg: RunConfig) -> None:
    while some := list(islice(pairs, _CHECKED)):
        encode_pairs(some, [pair.order for pair in some], tokenizer, cfg.prompt)


def _tokenizer(cfg: RunConfig, traces: Iterator[Trace]) -> Tokenizer:
    """The model's own, or one trained on the training prompts and traces."""
    if cfg.init is not None:
        return load_tokenizer(str(model_folder(cfg.init)))
    if cfg.model != FROM_SCRATCH:
        return load_tokenizer(cfg.model)
    texts: list[str] = []
    responses: list[str] = []
    for trace in islice(traces, _TOKENIZED):
        texts += [message["content"] for message in trace.messages]
        responses.append(trace.response)
    return train_tokenizer(texts + responses, TINY_VOCABULARY)


def load_pairs(folder: Path, split: str) -> list[Pair]:
    """The run's pairs of train, dev or test authors."""
    return [p for p in iter_records(folder / "pairs.jsonl", Pair) if p.author_split == split]


def load_traces(folder: Path) -> list[Trace]:
    """The run's reasoning traces."""
    return read_records(folder / "traces.jsonl", Trace)


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = parse_run(PRESETS, "python -m experiments.synthesize", args)
    initialize(cfg.cluster, cfg.mesh.num_devices)
    run = RunFolder(cfg.folder, cfg, free=FREE_FIELDS)
    if not run.is_done("data"):
        synthesize(cfg, run, make_mesh(cfg.mesh))
    print(f"data: in {run.path}")


if __name__ == "__main__":
    cli.run_main(main)
