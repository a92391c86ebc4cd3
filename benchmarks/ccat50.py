"""The scorers without a language model on CCAT50's two lists of pairs, beside their reference.

    python -m benchmarks.ccat50 --data ../shared/data/ccat50 --out results/baselines-ccat50.json

CCAT50 is 4,000 newswire stories by 40 Reuters reporters; the folder also holds two lists of 2,000
pairs by document id, each with four exemplars, of which the first is that of k = 1. Scorers are
fitted to the `train` stories of these authors. The reference was computed apart from this code, and
is stated in the data's own README; an accuracy that is off by more than .02 ends with an error.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from persrm_jax import cli
from persrm_jax.evaluation.baselines import baseline_predictions
from persrm_jax.evaluation.statistics import summarize
from persrm_jax.jsonl import parse_record, read_rows, write_text
from persrm_jax.runs import provenance
from persrm_jax.types import NegativeType, Pair

LISTS: dict[str, NegativeType] = {"random": "other_author", "topic": "other_author_same_topic"}
REFERENCE = {
    "char_ngrams": {"random": {1: 0.839, 4: 0.884}, "topic": {1: 0.656, 4: 0.688}},
    "stylometry": {"random": {1: 0.716, 4: 0.827}, "topic": {1: 0.630, 4: 0.696}},
    "topic_words": {"random": {1: 0.884, 4: 0.932}, "topic": {1: 0.681, 4: 0.745}},
    "length": {"random": {1: 0.574, 4: 0.579}, "topic": {1: 0.536, 4: 0.568}},
}
"""Accuracy by scorer, list and number of exemplars."""
TOLERANCE = 0.02


@dataclass(frozen=True)
class Ccat50Config:
    """Where the stories are."""

    data: Path = Path("../shared/data/ccat50")
    """Folder of ccat50.jsonl.gz, pairs_random.jsonl and pairs_topic.jsonl."""
    out: Path | None = None
    """File for the numbers."""


@dataclass(frozen=True)
class Listed:
    """A line of a list: a pair by document ids."""

    author: str
    exemplar_ids: tuple[str, ...]
    chosen_id: str
    rejected_id: str
    rejected_author: str


def read_stories(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Texts by document id, and those of the `train` stories."""
    rows = [row for _, row in read_rows(folder / "ccat50.jsonl.gz")]
    texts = {row["doc_id"]: row["text"] for row in rows}
    return texts, [row["text"] for row in rows if row["split"] == "train"]


def read_pairs(path: Path, kind: NegativeType, texts: dict[str, str], k: int) -> list[Pair]:
    """The listed pairs with the first k of their exemplars."""
    pairs = []
    for number, row in read_rows(path):
        one = parse_record(f"{path}, line {number}", row, Listed)
        ids = one.exemplar_ids[:k]
        pairs.append(
            Pair(
                pair_id=str(number),
                author=one.author,
                author_split="test",
                domain="ccat50",
                prompt="",
                exemplars=tuple(texts[i] for i in ids),
                exemplar_ids=ids,
                chosen=texts[one.chosen_id],
                chosen_id=one.chosen_id,
                rejected=texts[one.rejected_id],
                rejected_id=one.rejected_id,
                rejected_author=one.rejected_author,
                negative_type=kind,
                order="AB",
                writer="human",
                seed=0,
            )
        )
    return pairs


def compare(folder: Path) -> list[dict[str, Any]]:
    """A row for each scorer, list and k."""
    texts, fit_texts = read_stories(folder)
    rows = []
    for name, kind in LISTS.items():
        for k in (1, 4):
            pairs = read_pairs(folder / f"pairs_{name}.jsonl", kind, texts, k)
            for scorer, reference in REFERENCE.items():
                found = summarize(baseline_predictions(scorer, pairs, fit_texts, str(k)), pairs)
                rows.append(
                    {
                        "scorer": scorer,
                        "pairs": name,
                        "k": k,
                        "accuracy": found.mean,
                        "low": round(found.low, 4),
                        "high": round(found.high, 4),
                        "reference": reference[name][k],
                        "difference": round(found.mean - reference[name][k], 4),
                        "num_pairs": found.num_pairs,
                        "num_authors": found.num_authors,
                    }
                )
    return rows


def show(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows for a terminal."""
    table = Table("scorer", "pairs", "k", "accuracy [95 % interval]", "reference", "difference")
    for row in rows:
        interval = f"{row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
        reference, difference = f"{row['reference']:.3f}", f"{row['difference']:+.4f}"
        table.add_row(row["scorer"], row["pairs"], str(row["k"]), interval, reference, difference)
    return table


def main(args: Sequence[str]) -> None:
    """The command line.

    Raises:
        ValueError: an accuracy that is not the reference's.
    """
    cfg = cli.parse_flags(Ccat50Config, "python -m benchmarks.ccat50", args)
    rows = compare(cfg.data)
    Console().print(show(rows))
    if cfg.out is not None:
        result = {"provenance": provenance(), "tolerance": TOLERANCE, "rows": rows}
        write_text(cfg.out, json.dumps(result, indent=2) + "\n")
    if off := [row for row in rows if abs(row["difference"]) > TOLERANCE]:
        named = "; ".join(
            f"{row['scorer']} on {row['pairs']} pairs, k = {row['k']}: {row['difference']:+.3f}"
            for row in off
        )
        raise ValueError(f"off by more than {TOLERANCE} from the reference: {named}")


if __name__ == "__main__":
    cli.run_main(main)
