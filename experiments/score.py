"""Scores of your own candidates, by a trained judge.

    python -m experiments.score --run RUN --exemplars LETTERS/ --candidates DRAFTS.jsonl
    python -m experiments.score --run RUN --exemplars LETTERS/ --candidates DRAFTS.jsonl --best

Exemplars: a folder of .txt and .md files, one text each, or JSON Lines with `text`. Candidates:
JSON Lines with `id` and `text`, and with `prompt` where what the text answers is known; candidates
with the same prompt are compared with each other.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from persrm_jax import cli
from persrm_jax.evaluation.reward_model import Judge, Request, Score, rank
from persrm_jax.evaluation.trained import use_config
from persrm_jax.jsonl import read_rows, write_records
from persrm_jax.sharding import MeshShape, make_mesh

TEXT_FILES = (".txt", ".md")


@dataclass(frozen=True)
class Candidate:
    """A row of the candidates' file."""

    id: str
    text: str
    prompt: str = ""


@dataclass(frozen=True)
class ScoredCandidate:
    """A row of the output, in the candidates' order."""

    id: str
    rank: int
    score: float | None
    spread: float | None
    samples: tuple[float | None, ...]
    parsed: int
    asked: int
    tokens: int
    reasoning: tuple[str, ...]


@dataclass(frozen=True)
class ScoreConfig:
    """What to score."""

    run: Path
    """Folder of a run, or of a saved or Hugging Face model."""
    exemplars: Path
    """What the person wrote: a folder of .txt and .md files, or JSON Lines with `text`."""
    candidates: Path
    """JSON Lines with `id`, `text` and, if known, `prompt`."""
    n: int = 1
    """Answers to each question, whose scores are averaged: 1 is greedy, more are drawn."""
    stage: str | None = None
    """Whose model of the run; that of RFT, or of SFT where there is no other."""
    out: Path | None = None
    """File for the scores, as JSON Lines."""
    best: bool = False
    """Print the text of the best candidate and nothing else."""
    mesh: cli.Mesh = MeshShape(1, 1)
    """Devices along data x model."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"--n {self.n}: must be at least 1")


def read_exemplars(path: Path) -> tuple[str, ...]:
    """The texts of a folder, by file name, or of a JSON Lines file.

    Raises:
        ValueError: no texts there, or one that is empty or not UTF-8; it names the file and row.
    """
    if not path.is_dir():
        rows = [(f"{path}, line {number}", row) for number, row in read_rows(path)]
        texts = [_text(place, row) for place, row in rows]
    else:
        texts = []
        for file in sorted(path.iterdir()):
            if file.suffix in TEXT_FILES and file.is_file():
                try:
                    texts.append(_text(str(file), {"text": file.read_text(encoding="utf-8")}))
                except (OSError, UnicodeDecodeError):
                    raise ValueError(f"{file}: not readable UTF-8 text") from None
    if not texts:
        expected = f"a folder with {' or '.join(TEXT_FILES)} files, or JSON Lines with 'text'"
        raise ValueError(f"--exemplars {path}: holds no texts; expected {expected}")
    return tuple(texts)


def read_candidates(path: Path) -> list[Candidate]:
    """The rows of a candidates' file.

    Raises:
        ValueError: no rows, or one without an id or a text of its own; it names the line.
    """
    found: dict[str, Candidate] = {}
    for number, row in read_rows(path):
        place = f"{path}, line {number}"
        name, prompt = row.get("id"), row.get("prompt") or ""
        if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
            raise ValueError(f"{place}: no 'id'; every candidate needs one, a text or a number")
        if not isinstance(prompt, str):
            raise ValueError(f"{place}: 'prompt' is no text")
        if str(name) in found:
            raise ValueError(f"{place}: the id {name!r} is given twice")
        found[str(name)] = Candidate(str(name), _text(place, row), prompt)
    if not found:
        raise ValueError(f"--candidates {path}: holds no candidates")
    return list(found.values())


def _text(place: str, row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{place}: no 'text', or an empty one")
    return text


def score_candidates(
    judge: Judge, exemplars: Sequence[str], candidates: Sequence[Candidate], n: int
) -> list[Score]:
    """Scores in the order of the candidates; those of one prompt are one request."""
    groups: dict[str, list[int]] = defaultdict(list)
    for i, candidate in enumerate(candidates):
        groups[candidate.prompt].append(i)
    requests = [
        Request(
            tuple(exemplars),
            tuple(candidates[i].text for i in members),
            prompt,
            n,
            name="of the candidates " + ", ".join(candidates[i].id for i in members[:4]),
        )
        for prompt, members in groups.items()
    ]
    found: dict[int, Score] = {}
    asked = judge.fitted(requests).score_many(requests)
    for members, scores in zip(groups.values(), asked, strict=True):
        found |= zip(members, scores, strict=True)
    return [found[i] for i in range(len(candidates))]


def score_table(candidates: Sequence[Candidate], scores: Sequence[Score]) -> Table:
    """Candidates by score."""
    table = Table("rank", "id", "score", "spread", "read", "tokens", "text")
    for place, i in enumerate(rank(scores), start=1):
        found, text = scores[i], " ".join(candidates[i].text.split())
        table.add_row(
            str(place),
            candidates[i].id,
            "none" if found.score is None else f"{found.score:.2f}",
            "" if found.spread is None else f"{found.spread:.2f}",
            f"{found.parsed} of {found.asked}",
            str(found.tokens),
            text if len(text) <= 40 else f"{text[:39]}…",
        )
    return table


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(ScoreConfig, "python -m experiments.score", args)
    exemplars, candidates = read_exemplars(cfg.exemplars), read_candidates(cfg.candidates)
    use = use_config(cfg.run)
    judge = Judge.load(cfg.run, mesh=make_mesh(cfg.mesh), stage=cfg.stage, cfg=use)
    scores = score_candidates(judge, exemplars, candidates, cfg.n)
    order = rank(scores)
    if cfg.out is not None:
        write_records(
            cfg.out,
            [
                ScoredCandidate(id=candidate.id, rank=order.index(i) + 1, **vars(scores[i]))
                for i, candidate in enumerate(candidates)
            ],
        )
    if not cfg.best:
        Console().print(score_table(candidates, scores), markup=False)
    elif scores[order[0]].score is None:
        raise ValueError("none of the model's answers could be read: no candidate is the best")
    else:
        print(candidates[order[0]].text)


if __name__ == "__main__":
    cli.run_main(main)
