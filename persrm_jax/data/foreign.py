"""The files of PersRM-R1 (arXiv 2508.14076) and RM-R1 (arXiv 2505.02387), to and from ours.

PersRM-R1 has pairs by author: {author: [{prompt, response_A, response_B}]}, A the author's own; and
texts by author, {author: [{prompt, output}]}, which `sources.read_texts` reads. RM-R1 has one row a
judgement: {context_messages, winner}, the winner `model_a` or `model_b`.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from persrm_jax.data.copies import five_grams, is_near_copy
from persrm_jax.data.prompts import Messages, PromptConfig, judge_messages
from persrm_jax.data.words import words_of
from persrm_jax.jsonl import read_rows, write_text
from persrm_jax.types import NegativeType, Order, Pair, Split, right_verdict

_WINNERS = {"A": "model_a", "B": "model_b"}


def write_persrm(path: Path, pairs: Iterable[Pair]) -> None:
    """Pairs by author, in PersRM-R1's shape."""
    by_author: dict[str, list[dict[str, str]]] = defaultdict(list)
    for pair in pairs:
        by_author[pair.author].append(
            {"prompt": pair.prompt, "response_A": pair.chosen, "response_B": pair.rejected}
        )
    write_text(path, json.dumps(by_author, ensure_ascii=False, indent=1) + "\n")


def read_persrm(
    path: Path, *, kind: NegativeType, split: Split, num_exemplars: int, writer: str, seed: int = 0
) -> list[Pair]:
    """Pairs from PersRM-R1's shape; their sides alternate. The first half of an author's texts are
    the exemplars of the other half, near copies left out; with `num_exemplars` 0 all are judged.

    Args:
        kind: which generator wrote the file; it does not say so itself.

    Raises:
        ValueError: another shape, or an author with too few texts; it names the place.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected an object of authors")
    pairs: list[Pair] = []
    for author, rows in content.items():
        if not isinstance(rows, list):
            raise ValueError(f"{path}, author {author!r}: expected a list of rows")
        for number, row in enumerate(rows, start=1):
            _check_row(f"{path}, author {author!r}, row {number}", row)
        first = len(rows) // 2 if num_exemplars else 0
        grams = [five_grams(words_of(row["response_A"])) for row in rows]
        for i, row in enumerate(rows[first:], start=first):
            fresh = [k for k in range(first) if not is_near_copy(grams[k], grams[i])]
            if len(fresh) < num_exemplars:
                raise ValueError(
                    f"{path}: author {author!r} has {len(fresh)} texts to show that are no near "
                    f"copies of row {i + 1}; {num_exemplars} are to be shown"
                )
            shown = fresh[:num_exemplars]
            number = len(pairs)
            pairs.append(
                Pair(
                    pair_id=f"{split}-{number:06d}",
                    author=author,
                    author_split=split,
                    domain=path.stem,
                    prompt=row["prompt"],
                    exemplars=tuple(rows[k]["response_A"] for k in shown),
                    exemplar_ids=tuple(f"{author}-{k + 1}" for k in shown),
                    chosen=row["response_A"],
                    chosen_id=f"{author}-{i + 1}",
                    rejected=row["response_B"],
                    rejected_id=f"{author}-{i + 1}/{kind}",
                    rejected_author="",
                    negative_type=kind,
                    order="AB" if number % 2 == 0 else "BA",
                    writer=writer,
                    seed=seed,
                )
            )
    return pairs


def _check_row(place: str, row: Any) -> None:
    for name in ("prompt", "response_A", "response_B"):
        if not isinstance(row, dict) or not isinstance(row.get(name), str):
            raise ValueError(f"{place}: no string {name!r}")


def write_rm_r1(
    path: Path, pairs: Sequence[Pair], orders: Sequence[Order], cfg: PromptConfig
) -> None:
    """One row a judgement, in RM-R1's shape."""
    rows = (
        {
            "context_messages": judge_messages(pair, order, cfg),
            "winner": _WINNERS[right_verdict(order)],
        }
        for pair, order in zip(pairs, orders, strict=True)
    )
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rm_r1(path: Path) -> Iterator[tuple[Messages, Order]]:
    """(chat, order in which the right answer is told) of each row in RM-R1's shape.

    Raises:
        ValueError: another shape; it names the line.
    """
    orders: dict[str, Order] = {"model_a": "AB", "model_b": "BA"}
    for line, row in read_rows(path):
        place = f"{path}, line {line}"
        messages = row.get("context_messages")
        if not isinstance(messages, list) or not all(_is_message(m) for m in messages):
            raise ValueError(f"{place}: 'context_messages' must be a list of messages")
        if row.get("winner") not in orders:
            raise ValueError(f"{place}: 'winner' must be 'model_a' or 'model_b'")
        yield (
            tuple({"role": m["role"], "content": m["content"]} for m in messages),
            orders[row["winner"]],
        )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(name), str) for name in ("role", "content")
    )
