"""Does a judge mean what it says: the words that it quotes as shared with the person, how it counts
them, and the verdict that it draws.

    python -m benchmarks.quotes --run RUN --judge rft --out results/quotes.json

Of a run whose traces quote words in common (`--teacher.num-words`, template `full`), by its
predictions in RUN/evaluation. A quote is true if the word is in that candidate and in an exemplar;
found are those of the words that the offline teacher would have quoted.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.presets import RunConfig
from persrm_jax import cli
from persrm_jax.data.diction import fit_diction, shared_words, words_in
from persrm_jax.jsonl import iter_records, read_records, write_text
from persrm_jax.runs import provenance, read_config_file
from persrm_jax.types import Document, Pair, Prediction, right_verdict

_QUOTES = re.compile(r"shared with the person: A (.*) \((\d+)\); B (.*) \((\d+)\); nearer: (A|B)")


@dataclass(frozen=True)
class QuotesConfig:
    """What to look at."""

    run: Path
    """Folder of a run."""
    judge: str = "rft"
    """Whose judgements, as the tables name it."""
    set: str = "test"
    """Whose pairs: test, seen, dev."""
    condition: str = "4"
    """Number of exemplars that it was shown."""
    out: Path | None = None
    """File for the numbers."""


def measure(
    pairs: Sequence[Pair], predictions: Sequence[Prediction], texts: Sequence[str], most: int
) -> dict[str, float]:
    """Shares, and the number of judgements that quote words.

    Args:
        texts: by which the teacher knows which words are common.
        most: words that it quotes of a candidate.

    Raises:
        ValueError: no judgement does.
    """
    diction, by_id = fit_diction(texts), {pair.pair_id: pair for pair in pairs}
    n: Counter[str] = Counter()
    for one in predictions:
        said, pair = _QUOTES.search(one.completion), by_id[one.pair_id]
        if said is None:
            continue
        candidates = (pair.chosen, pair.rejected)
        if one.order == "BA":
            candidates = candidates[::-1]
        known = words_in(" ".join(pair.exemplars))
        counts = [int(said[2]), int(said[4])]
        for text, quoted, count in zip(candidates, (said[1], said[3]), counts, strict=True):
            words = [] if quoted == "none" else quoted.split(", ")
            own = {word for quote in words for word in words_in(quote)}
            telling = {
                word
                for quote in shared_words(diction, pair.exemplars, text, most)
                for word in words_in(quote)
            }
            n["quoted"] += len(own)
            n["in_candidate"] += len(own & words_in(text))
            n["true"] += len(own & words_in(text) & known)
            n["telling"] += len(telling)
            n["found"] += len(own & telling)
            n["counted"] += len(words) == count
        n["judgements"] += 1
        n["nearer_right"] += said[5] == right_verdict(one.order)
        n["scores_follow"] += one.verdict == said[5]
        n["says_a"] += one.verdict == "A"
        if counts[0] != counts[1]:
            n["unequal"] += 1
            n["follows"] += said[5] == ("A" if counts[0] > counts[1] else "B")
    if not n["judgements"]:
        raise ValueError("no judgement quotes words in common, as template `full` has them")
    return {
        "judgements": n["judgements"],
        "quotes in the candidate": n["in_candidate"] / n["quoted"],
        "quotes in the candidate and the exemplars": n["true"] / n["quoted"],
        "telling words quoted": n["found"] / n["telling"],
        "counts right": n["counted"] / (2 * n["judgements"]),
        "counts unequal": n["unequal"] / n["judgements"],
        "verdict follows unequal counts": n["follows"] / max(n["unequal"], 1),
        "scores follow the verdict": n["scores_follow"] / n["judgements"],
        "verdict right": n["nearer_right"] / n["judgements"],
        "scores prefer A": n["says_a"] / n["judgements"],
    }


def main(args: Sequence[str]) -> None:
    """The command line."""
    asked = cli.parse_flags(QuotesConfig, "python -m benchmarks.quotes", args)
    folder = asked.run / "evaluation" / asked.set
    path = folder / f"{asked.judge}.{asked.condition}.jsonl"
    if not path.is_file():
        raise ValueError(f"{path}: no such predictions; `experiments.evaluate` makes them")
    documents = iter_records(asked.run / "documents.jsonl", Document)
    found = measure(
        read_records(folder / "pairs.jsonl", Pair),
        read_records(path, Prediction),
        [document.text for document in documents if document.split == "train"],
        read_config_file(asked.run / "config.json", RunConfig).teacher.num_words,
    )
    for words, value in found.items():
        print(f"{words:45} {value:.3f}" if isinstance(value, float) else f"{words:45} {value}")
    if asked.out is not None:
        text = json.dumps({"predictions": str(path), **found, "provenance": provenance()}, indent=2)
        write_text(asked.out, text + "\n")


if __name__ == "__main__":
    cli.run_main(main)
