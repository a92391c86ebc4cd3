"""The protocol beside the main table: by exemplars, kinds, people, votes and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from persrm_jax.evaluation.audit import audit, can_audit
from persrm_jax.evaluation.calibration import calibrate
from persrm_jax.evaluation.conditions import WRONG_AUTHOR
from persrm_jax.evaluation.judged import Judged, rank
from persrm_jax.evaluation.report import Row, condition_phrase
from persrm_jax.evaluation.statistics import Accuracy, summarize
from persrm_jax.evaluation.votes import mean_score, vote
from persrm_jax.types import Prediction


@dataclass(frozen=True)
class Grid:
    """A table of words and numbers, ready to print."""

    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def markdown(self) -> str:
        lines = [self.header, ("---", *["---:"] * (len(self.header) - 1)), *self.rows]
        bar = "\\|"
        table = "\n".join(
            f"| {' | '.join(cell.replace('|', bar) for cell in row)} |" for row in lines
        )
        return f"{self.note}\n\n{table}\n" if self.note else f"{table}\n"

    def rich(self) -> Table:
        table = Table(
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
            show_edge=False,
            title=self.title,
            title_justify="left",
            caption=self.note or None,
            caption_justify="left",
        )
        for number, column in enumerate(self.header):
            table.add_column(column, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table


def by_exemplars(rows: Sequence[Row]) -> Grid | None:
    """Accuracy by number of exemplars, of judges asked with several; None where there are none."""
    asked: dict[str, set[str]] = {}
    for row in rows:
        asked.setdefault(row.label, set()).add(row.condition)
    rows = [row for row in rows if sum(map(str.isdigit, asked[row.label])) > 1]
    if not rows:
        return None
    conditions = sorted({row.condition for row in rows}, key=lambda c: rank(("", c)))
    columns = {
        condition_phrase(c, short=True): [row for row in rows if row.condition == c]
        for c in conditions
    }
    counts = sorted({row.accuracy.num_pairs for row in rows})
    return across("By number of exemplars", columns, f"On {' or '.join(map(str, counts))} pairs.")


def by_kind(judged: Judged) -> Grid | None:
    """Accuracy by kind of rejected text, with the pairs' own exemplars and with a wrong author's;
    None of one kind."""
    if len(judged.kinds) < 2:
        return None
    rows = {kind: judged.of_kind(kind).rows() for kind in judged.kinds}
    conditions = {"": judged.own_condition, ", wrong author": WRONG_AUTHOR}
    columns = {
        f"{kind}{words}": [row for row in some if row.condition == condition]
        for kind, some in rows.items()
        for words, condition in conditions.items()
    }
    return across("By kind of rejected text", columns)


def against_cheats(judged: Judged) -> Grid | None:
    """The last trained judge, by kind of rejected text, beside what needs no exemplars: chance, the
    judge itself given a wrong author's, and the best cheat of the audit; None where there are too
    few pairs for one."""
    judge = next((j for j in ("rft", "sft") if (j, judged.own_condition) in judged.predictions), "")
    if not judge or (judge, WRONG_AUTHOR) not in judged.predictions:
        return None
    rows: list[tuple[str, ...]] = []
    for kind in judged.kinds:
        some = judged.of_kind(kind)
        if not can_audit(some.pairs):
            continue
        best = max(audit(some.pairs), key=lambda found: found.accuracy)
        own, wrong = (
            summarize(some.predictions[judge, condition], some.pairs)
            for condition in (judged.own_condition, WRONG_AUTHOR)
        )
        is_apart = own.low > max(0.5, wrong.high, best.high)
        rows += [
            (kind, judge, _interval(own.mean, own.low, own.high), "yes" if is_apart else "no"),
            ("", f"{judge}, wrong author", _interval(wrong.mean, wrong.low, wrong.high), ""),
            ("", f"cheat: {best.cheat}", _interval(best.accuracy, best.low, best.high), ""),
        ]
    if not rows:
        return None
    header = ("rejected text", "judge", "accuracy [95 %]", "apart")
    note = "Apart: the judge's interval lies above one half and above both others'."
    return Grid("Against what needs no exemplars", header, rows, note)


def by_people(sets: Mapping[str, Judged]) -> Grid | None:
    """Accuracy by whom and what training had seen; None of one set."""
    if len(sets) < 2:
        return None
    columns = {
        name: [row for row in judged.rows() if row.condition == judged.own_condition]
        for name, judged in sets.items()
    }
    return across("By people and domain", columns)


def across(title: str, columns: Mapping[str, Sequence[Row]], note: str = "") -> Grid:
    """Judges down, `columns` across: accuracy and half of its 95 % interval."""
    labels = {row.label: None for rows in columns.values() for row in rows}
    found = {
        (column, row.label): _short(row.accuracy)
        for column, rows in columns.items()
        for row in rows
    }
    body = [
        (label, *(found.get((column, label), "-") for column in columns))
        for label in sorted(labels, key=lambda label: rank((label, "")))
    ]
    return Grid(title, ("judge", *columns), body, note)


def by_votes(judged: Judged) -> Grid | None:
    """vote@n and mean-score@n for n = 1, 2, 4 and so on, against the tokens they take; None without
    several samples of a judgement."""
    rows = []
    for (judge, condition), samples in sorted(judged.samples.items(), key=lambda x: rank(x[0])):
        most = max(p.sample for p in samples) + 1
        has_scores = any(p.score_a is not None for p in samples)
        for n in (2**i for i in range(most.bit_length())):
            voted = vote(samples, n)
            cells = [_accuracy(judged, voted)]
            cells.append(_accuracy(judged, mean_score(samples, n)) if has_scores else "-")
            tokens = sum(p.tokens for p in voted) / len(voted)
            rows.append((judge, condition, str(n), f"{tokens:.0f}", *cells))
    if not rows:
        return None
    note = "Tokens of all samples together, a judgement; both orders are judgements."
    header = ("judge", "exemplars", "n", "tokens", "vote@n", "mean-score@n")
    return Grid("Votes", header, rows, note)


def by_calibration(judged: Judged) -> Grid | None:
    """ECE and Brier score of each judge's scores, with the pairs' own exemplars; None without
    scores of a model."""
    rows = []
    for judge, condition in sorted(judged.predictions, key=rank):
        predictions = judged.predictions[judge, condition]
        # A judge that writes nothing maps what it measures to scores for their order alone.
        if condition != judged.own_condition or not any(p.tokens for p in predictions):
            continue
        if (found := calibrate(predictions)) is not None:
            rows.append(
                (judge, f"{found.ece:.3f}", f"{found.brier:.3f}", str(found.num_judgements))
            )
    if not rows:
        return None
    note = "Of P(A) = 1/2 + (score A - score B) / 20, over judgements with scores."
    return Grid("Calibration", ("judge", "ECE", "Brier", "judgements"), rows, note)


def _accuracy(judged: Judged, predictions: Sequence[Prediction]) -> str:
    return _short(summarize(predictions, judged.pairs))


def _interval(mean: float, low: float, high: float) -> str:
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _short(a: Accuracy) -> str:
    half = f"{(a.high - a.low) / 2:.2f}".removeprefix("0")
    return f"{a.mean:.3f} ±{half}"
