"""A group of a rollout as Markdown, for TensorBoard's tab of texts."""

import re

import numpy as np

from persrm_jax.data.prompts import PromptConfig
from persrm_jax.rl.rewards import CompletionRecord, credit
from persrm_jax.rl.rollout import JudgedRollout

_MARKUP = re.compile(r"[!#&()*+\-.<=>\[\\\]_`{|}~]")
"""What begins, ends or means something in Markdown or HTML."""
_UNSEEN = re.compile(r"[^\S\n ]|[\x00-\x09\x0b-\x1f\x7f]")
"""Spaces of other kinds than the common one, and control characters."""
_MARKS = {1.0: "right", 0.5: "tie", 0.0: "wrong"}


def describe(judged: JudgedRollout, prompt: PromptConfig) -> str:
    """The first question of a rollout, what each of its completions says and gets, and its best and
    worst completion as they read. Texts by others are shown as they are, whatever markup they
    hold."""
    group = judged.records[: judged.group_size]
    first, alone = group[0], prompt.answer == "score"
    a, b = first.pair.candidates(first.order)
    own = {True: " (the person's own)", False: ""}
    parts = [
        f"#### Exemplar {number}\n\n{quoted(text)}"
        for number, text in enumerate(first.pair.exemplars, 1)
    ]
    if first.pair.prompt:
        parts.append(f"#### What the texts answer\n\n{quoted(first.pair.prompt)}")
    parts.append(f"#### {'Candidate' if alone else 'A'}{own[first.order == 'AB']}\n\n{quoted(a)}")
    if not alone:
        parts.append(f"#### B{own[first.order == 'BA']}\n\n{quoted(b)}")
    parts += ["#### Completions", _table(judged, alone)]
    for row in _best_and_worst(judged.rewards[: judged.group_size]):
        title = f"#### Completion {row + 1}: {_said(group[row], alone)}, {_reward(judged, row)}"
        parts.append(f"{title}\n\n{quoted(group[row].text)}")
    return "\n\n".join(parts) + "\n"


def quoted(text: str) -> str:
    """A text as a Markdown quotation in which nothing is markup."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    # On one line: TensorBoard shows a line's end as a second break.
    return "> " + "<br>".join(map(plain, lines))


def plain(line: str) -> str:
    """One line with its markup as character references; spaces at its start stay."""
    line = _UNSEEN.sub(lambda found: " " if found[0].isspace() else "\ufffd", line)
    line = _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line)
    kept = line.lstrip(" ")
    return "&nbsp;" * (len(line) - len(kept)) + kept


def _table(judged: JudgedRollout, alone: bool) -> str:
    """A line for each completion of the first question."""
    names = list(judged.components)
    scores = ["score"] if alone else ["A", "B"]
    head = ["", *scores, "said", "tokens", *(name.replace("_", " ") for name in names), "reward"]
    lines = [head, ["---"] * len(head)]
    for row, record in enumerate(judged.records[: judged.group_size]):
        found = record.judgement
        given = [None, None] if found is None else [found.score_a, found.score_b]
        lines.append(
            [
                str(row + 1),
                *("-" if score is None else f"{score:g}" for score in given[: len(scores)]),
                _said(record, alone),
                f"{record.num_tokens}{' (cut off)' if record.truncated else ''}",
                *(f"{judged.components[name][row]:+.2f}" for name in names),
                f"{judged.rewards[row]:+.2f}",
            ]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _said(record: CompletionRecord, alone: bool) -> str:
    """The verdict and whether it is right."""
    if record.judgement is None:
        return "not parsed"
    if alone:
        return f"right about {credit(record):.0%} of its rivals"
    if record.judgement.verdict == "tie":
        return "tie"
    return f"{record.judgement.verdict}, {_MARKS[credit(record)]}"


def _reward(judged: JudgedRollout, row: int) -> str:
    parts = ", ".join(f"{name} {found[row]:+.2f}" for name, found in judged.components.items())
    return f"reward {judged.rewards[row]:+.2f} ({parts})"


def _best_and_worst(rewards: np.ndarray) -> list[int]:
    """The first row of the highest reward and of the lowest; one row where all are alike."""
    if np.isnan(rewards).all():
        return [0]
    return list(dict.fromkeys([int(np.nanargmax(rewards)), int(np.nanargmin(rewards))]))
