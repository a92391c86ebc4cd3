"""The data card: what a data set was made of, what was left out and why. Counts, no texts."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from persrm_jax.data.answers import Answers
from persrm_jax.data.corpus import Corpus
from persrm_jax.data.documents import Counts
from persrm_jax.jsonl import write_text
from persrm_jax.types import WRITTEN, Document, Pair, Trace


@dataclass
class Card:
    """Filled as records pass through."""

    data: str
    seed: int
    counts: Counts = field(default_factory=Counts)
    """Of the texts that were read."""
    _words: list[int] = field(default_factory=list)
    _domains: Counter[str] = field(default_factory=Counter)
    _corpus: dict[str, Any] = field(default_factory=dict)
    _pairs: dict[str, dict[str, Any]] = field(default_factory=dict)
    _written: dict[str, Any] = field(default_factory=dict)
    _traces: dict[str, Any] = field(default_factory=dict)

    def of_documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents, noted."""
        for document in documents:
            self._words.append(len(document.text.split()))
            self._domains[document.domain] += 1
            yield document

    def of_corpus(self, corpus: Corpus, num_eligible: int) -> None:
        """Notes authors, and how many of them have the texts that pairs take."""
        self._corpus = {
            "authors": len(corpus.names),
            "authors_with_too_few_texts": len(corpus.names) - num_eligible,
            "documents": len(corpus),
            "exemplar_pool": int(corpus.is_exemplar.sum()),
            "candidate_pool": int((~corpus.is_exemplar).sum()),
            "words": _quantiles(self._words),
            "domains": dict(self._domains.most_common()),
        }

    def of_pairs(self, name: str, asked: int, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """The pairs of a file, noted."""
        kinds: Counter[str] = Counter()
        splits: Counter[str] = Counter()
        ratios: dict[str, list[float]] = {}
        num_ab = 0
        for pair in pairs:
            kinds[pair.negative_type] += 1
            splits[pair.author_split] += 1
            num_ab += pair.order == "AB"
            ratio = len(pair.rejected.split()) / max(len(pair.chosen.split()), 1)
            ratios.setdefault(pair.negative_type, []).append(ratio)
            yield pair
        self._pairs[name] = {
            "asked": asked,
            "made": sum(kinds.values()),
            "chosen_is_A": num_ab,
            "splits": dict(splits),
            "kinds": dict(sorted(kinds.items())),
            "rejected_to_chosen_words": {k: _quantiles(r) for k, r in sorted(ratios.items())},
        }

    def of_traces(self, asked: int, traces: Iterable[Trace]) -> Iterator[Trace]:
        """The traces, noted; `asked` counts the questions."""
        words: list[int] = []
        teachers: Counter[str] = Counter()
        for trace in traces:
            words.append(len(trace.response.split()))
            teachers[trace.teacher] += 1
            yield trace
        self._traces = {
            "asked": asked,
            "kept": len(words),
            "teachers": dict(teachers),
            "words": _quantiles(words),
        }

    def of_answers(self, answers: Answers, cost: float | None) -> None:
        """Notes what writers gave."""
        by_kind: dict[str, dict[str, int]] = {}
        for (kind, fault), count in sorted(answers.counts.items()):
            by_kind.setdefault(kind, {})[fault or "kept"] = count
        tokens: dict[str, dict[str, int]] = {}
        for (writer, what), count in sorted(answers.tokens.items()):
            tokens.setdefault(writer, {})[what] = count
        self._written = {"answers": by_kind, "tokens": tokens}
        if cost is not None:
            self._written["cost"] = round(cost, 6)

    def as_dict(self) -> dict[str, Any]:
        """All of it."""
        counts = self.counts
        read = {
            "texts": counts.texts,
            "characters": counts.characters,
            "dropped": dict(counts.dropped),
            "near_copies_of_passages": counts.near_copies,
            "licenses": dict(counts.licenses),
        }
        return {
            "data": Path(self.data).name,
            "seed": self.seed,
            **({"read": read} if counts.texts else {}),
            "corpus": self._corpus,
            "pairs": self._pairs,
            **({"writers": self._written} if self._written.get("answers") else {}),
            "traces": self._traces,
        }

    def documents_line(self) -> str:
        c = self._corpus
        return (
            f"{c['authors']:,} authors, {c['documents']:,} documents "
            f"({c['exemplar_pool']:,} exemplar pool, {c['candidate_pool']:,} candidate pool), "
            f"median {c['words']['median']:g} words, domains: {', '.join(sorted(self._domains))}"
        )

    def pairs_line(self) -> str:
        """Numbers of pairs; of written kinds also how many of those asked for were kept."""
        main, seen = self._pairs["pairs.jsonl"], self._pairs["pairs_seen.jsonl"]
        listed = ", ".join(f"{n:,} {split}" for split, n in main["splits"].items())
        line = f"{listed}, {seen['made']:,} of training authors' unseen texts"
        missing = main["asked"] + seen["asked"] - main["made"] - seen["made"]
        return line + (f"; {missing:,} could not be made" if missing else "")

    @property
    def num_traces(self) -> int:
        return self._traces["kept"]

    def traces_line(self) -> str:
        """Kept of those asked for."""
        return f"{self.num_traces:,} of {self._traces['asked']:,} kept"

    def write(self, folder: Path) -> None:
        """Writes `card.json`, and `card.md` for the eye."""
        card = self.as_dict()
        write_text(folder / "card.json", json.dumps(card, indent=2, ensure_ascii=False) + "\n")
        lines = [f"# Data card: {card['data']}, seed {self.seed}", ""]
        for title in ("read", "corpus", "pairs", "writers", "traces"):
            if card.get(title):
                lines += [f"## {title.capitalize()}", "", *_rows(card[title]), ""]
        write_text(folder / "card.md", "\n".join(lines))


def yields(answers: Answers) -> str:
    """Of each written kind, texts kept of answers given."""
    found = []
    for kind in WRITTEN:
        given = {f: n for (k, f), n in answers.counts.items() if k == kind}
        if given:
            why = ", ".join(f"{n:,} {f}" for f, n in sorted(given.items()) if f)
            line = f"{kind} {given.get('', 0):,} of {sum(given.values()):,}"
            found.append(f"{line} ({why})" if why else line)
    return "; ".join(found)


def _quantiles(values: Iterable[int | float]) -> dict[str, float]:
    found = np.fromiter(values, np.float64)
    if not len(found):
        return {}
    names = {"least": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "most": 1.0}
    return {name: round(float(np.quantile(found, q)), 3) for name, q in names.items()}


def _rows(values: dict[str, Any], depth: int = 0) -> list[str]:
    """Nested counts as a list."""
    lines = []
    for name, value in values.items():
        head = f"{'  ' * depth}- {str(name).replace('_', ' ')}"
        if isinstance(value, dict) and any(isinstance(v, dict) for v in value.values()):
            lines += [head, *_rows(value, depth + 1)]
        elif isinstance(value, dict):
            listed = ", ".join(f"{k} {v:,}" for k, v in value.items())
            lines.append(f"{head}: {listed or 'none'}")
        else:
            lines.append(
                f"{head}: {value:,}" if isinstance(value, int | float) else f"{head}: {value}"
            )
    return lines
