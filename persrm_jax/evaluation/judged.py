"""Evaluation folders, one a run -> predictions by judge and condition, and rows of tables.

A folder holds `pairs.jsonl`, `JUDGE.CONDITION.jsonl`, and where judgements were sampled several
times each, `samples/JUDGE.CONDITION.jsonl`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from persrm_jax.evaluation.conditions import WRONG_AUTHOR
from persrm_jax.evaluation.report import Row
from persrm_jax.evaluation.statistics import summarize
from persrm_jax.jsonl import read_records
from persrm_jax.types import Pair, Prediction

JUDGES = (
    "chance",
    "longer",
    "shorter",
    "length",
    "char_ngrams",
    "stylometry",
    "topic_words",
    "likelihood",
    "likelihood_gain",
    "bt",
    "remote",
    "base",
    "init",
    "sft",
    "sft_continued",
    "sft_rejection",
    "rft",
)
"""Rows of a table, in order; others come after them."""
Key = tuple[str, str]
"""Judge and condition."""


@dataclass(frozen=True)
class Judged:
    """Predictions of several runs, and the pairs they are about."""

    pairs: list[Pair]
    predictions: Mapping[Key, list[Prediction]]
    samples: Mapping[Key, list[Prediction]]
    """Several of each judgement, where there are."""

    def rows(self) -> list[Row]:
        """A row for each judge and condition."""
        keys = sorted((key for key, some in self.predictions.items() if some), key=rank)
        return [Row(*key, summarize(self.predictions[key], self.pairs)) for key in keys]

    def of_kind(self, kind: str) -> "Judged":
        """What is about pairs of one kind of rejected text."""
        pairs = [pair for pair in self.pairs if pair.negative_type == kind]
        ids = {pair.pair_id for pair in pairs}

        def those(found: Mapping[Key, list[Prediction]]) -> dict[Key, list[Prediction]]:
            return {key: [p for p in some if p.pair_id in ids] for key, some in found.items()}

        return Judged(pairs, those(self.predictions), those(self.samples))

    @property
    def own_condition(self) -> str:
        """The number of exemplars that the pairs themselves have."""
        return str(len(self.pairs[0].exemplars))

    @property
    def kinds(self) -> list[str]:
        """Of rejected texts."""
        return sorted({pair.negative_type for pair in self.pairs})


def rank(key: Key) -> tuple[int, str, bool, int]:
    """Where a judge and condition stand in a table: numbers of exemplars, then the control."""
    judge, condition = key
    place = JUDGES.index(judge) if judge in JUDGES else len(JUDGES)
    is_word = not condition.isdigit()
    return (place, judge, is_word, 0 if is_word else int(condition))


def read_judged(folders: Sequence[Path]) -> Judged:
    """Reads evaluation folders. Pairs of different runs are kept apart; so are made-up personas,
    who are other people under each seed."""
    pairs: list[Pair] = []
    found: dict[str, dict[Key, list[Prediction]]] = {"": {}, "samples": {}}
    for number, folder in enumerate(folders):
        for pair in read_records(folder / "pairs.jsonl", Pair):
            person = f"{number}/" if pair.domain.startswith("personas") else ""
            pairs.append(
                replace(
                    pair,
                    pair_id=f"{number}/{pair.pair_id}",
                    author=person + pair.author,
                    rejected_author=person + pair.rejected_author,
                )
            )
        for where, predictions in found.items():
            for path in sorted((folder / where).glob("*.*.jsonl")):
                judge, condition = path.name.removesuffix(".jsonl").rsplit(".", 1)
                predictions.setdefault((judge, condition), []).extend(
                    replace(p, pair_id=f"{number}/{p.pair_id}")
                    for p in read_records(path, Prediction)
                )
    return Judged(pairs, found[""], found["samples"])


def in_main_table(row: Row, own: str) -> bool:
    """Whether the row belongs in the main table: the pairs' own exemplars, and the control."""
    return row.condition in (own, WRONG_AUTHOR)
