"""Reasoning traces that writers give, in two passes, as RM-R1 has them (arXiv 2505.02387).

A teacher judges, and what it judges rightly is kept; for the rest it is shown the right verdict and
its own failed reasoning, and asked again. Only traces are kept that parse, end in the right
verdict, and do not say that they were told it.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from persrm_jax.data.answers import Answer, Answers
from persrm_jax.data.prompts import (
    BOTH_ORDERS,
    Messages,
    PromptConfig,
    compare,
    judge_messages,
    parse_judgement,
)
from persrm_jax.data.writers import NamedWriter, Request
from persrm_jax.types import Order, Pair, Trace, right_verdict

_TOGETHER = 256
"""Questions that a pass asks before the next pass asks about them."""
_AGAIN = """\
The right answer is that candidate {side} fits the person better. Judge anew, from the beginning: \
look closer at how the person writes, and reason from the texts alone until that answer follows. \
Write as if nobody had told you the answer and there had been no earlier try; do not mention \
either. Keep to the same form."""
_BETRAYAL = re.compile(
    r"""\b(?:
        (?:correct|right|expected|true|actual|given|provided|known|stated)
        \s+(?:answer|verdict|label)
      | (?:answer|verdict|label)\s+(?:that\s+(?:was|is)\s+)?(?:given|provided|told|stated)
      | i(?:\s+was|\s+am|['’]m|\s+have\s+been|['’]ve\s+been)\s+(?:told|given|instructed)
      | (?:as|since\s+(?:i|we)\s+(?:was|were))\s+(?:told|instructed)
      | ground[\s-]truth | the\s+hint
      | (?:the\s+user|you)\s+(?:said|says|told|stated|states|have\s+told)
      | (?:my|the)\s+(?:previous|earlier|first|last|failed)
        \s+(?:attempt|try|reasoning|judge?ment|answer|analysis)
      | on\s+(?:second\s+thought|reconsideration)
      | i\s+(?:made|must\s+correct)\s+(?:a|my)\s+mistake | my\s+mistake | i\s+apologi[sz]e
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def find_betrayal(response: str) -> str | None:
    """The words by which a trace says that it was told the answer, or that it is a second try."""
    found = _BETRAYAL.search(response)
    return None if found is None else found[0]


Question = tuple[Pair, Order]
"""Of a pair whose texts are shown alone, the order's first text is meant."""


@dataclass
class _Teacher:
    """Asks, keeps every answer, and says of each whether it is right."""

    writer: NamedWriter
    answers: Answers
    prompt: PromptConfig
    under: str
    """Of the settings, among the answers."""

    def ask(
        self, asked: Mapping[Question, Messages], attempt: int, *, told: bool = False
    ) -> dict[Question, Answer]:
        """The answers, of which those that nobody gave are left out."""
        keys = {q: self._key(q, messages) for q, messages in asked.items()}
        found = {}
        for question, key in keys.items():
            if (answer := self.answers.find(key, attempt)) is not None:
                found[question] = answer
        todo = [q for q in asked if q not in found]
        requests = (Request(keys[q], asked[q], attempt) for q in todo)
        label = self.writer.label
        for question, written in zip(todo, self.writer.write(requests), strict=True):
            if written.is_lost:
                self.answers.lose(written.fault)
                continue
            text = written.text or ""
            fault = written.fault or self._fault(question, text, told)
            spent = (written.prompt_tokens, written.completion_tokens)
            answer = Answer(keys[question], attempt, "trace", label, text, fault, *spent)
            self.answers.add(answer)
            found[question] = answer
        return found

    def _key(self, question: Question, messages: Messages) -> str:
        """Another prompt is another question."""
        pair, order = question
        said = zlib.crc32("\n".join(m["content"] for m in messages).encode())
        return f"{self.under}|{pair.seed}/{pair.pair_id}/{order}/{said:08x}"

    def _fault(self, question: Question, text: str, told: bool) -> str:
        judgement = parse_judgement(text, self.prompt)
        if judgement is None:
            return "unparsed"
        if told and (words := find_betrayal(text)):
            return f"betrays that it was told: {words!r}"
        if judgement.verdict is None:  # of one text alone
            return ""
        return "" if judgement.verdict == right_verdict(question[1]) else "wrong"

    def right(self, given: Mapping[Question, Answer]) -> dict[Question, str]:
        """The responses that are right."""
        kept = {q: answer.text for q, answer in given.items() if not answer.fault}
        if self.prompt.answer != "score":
            return kept
        both = [q for q, text in kept.items() if self._in_order(kept, q[0])]
        return {q: kept[q] for q in both}

    def _in_order(self, kept: Mapping[Question, str], pair: Pair) -> bool:
        """Whether the texts of a pair, each shown alone, are scored in their order."""
        if not all((pair, order) in kept for order in BOTH_ORDERS):
            return False
        scores = [parse_judgement(kept[pair, order], self.prompt) for order in BOTH_ORDERS]
        whole = compare(*scores)
        return whole is not None and whole.verdict == right_verdict("AB")


def taught_traces(
    pairs: Iterable[Pair],
    writer: NamedWriter,
    answers: Answers,
    prompt: PromptConfig,
    *,
    samples: int = 1,
    second_pass: bool = True,
) -> Iterator[Trace]:
    """Traces of both orders of each pair, in the order of the pairs. Of a pair whose texts are
    shown alone, both texts' or neither's; the right answer to one text is not known, so that these
    have no second pass.

    Args:
        samples: judgements that the first pass may take of a question until one is right.
    """
    under = answers.settings(writer.label, writer.settings, prompt)
    teacher = _Teacher(writer, answers, prompt, under)
    waiting = ((pair, order) for pair in pairs for order in BOTH_ORDERS)
    while questions := list(islice(waiting, _TOGETHER)):
        right: dict[Question, str] = {}
        given: dict[Question, Answer] = {}
        for attempt in range(samples):
            left = [q for q in questions if q not in right]
            given = teacher.ask({q: judge_messages(*q, prompt) for q in left}, attempt)
            right |= teacher.right(given)
        if second_pass and prompt.answer != "score":
            failed = {q: answer.text for q, answer in given.items() if q not in right}
            again = {q: _again(q, text, prompt) for q, text in failed.items()}
            right |= teacher.right(teacher.ask(again, samples, told=True))
        for question in questions:
            if question in right:
                pair, order = question
                yield Trace(
                    pair_id=pair.pair_id,
                    order=order,
                    messages=judge_messages(pair, order, prompt),
                    response=right[question],
                    teacher=writer.label,
                    verdict=right_verdict(order),
                )


def _again(question: Question, failed: str, prompt: PromptConfig) -> Messages:
    said = ({"role": "assistant", "content": failed},) if failed else ()
    told = {"role": "user", "content": _AGAIN.format(side=right_verdict(question[1]))}
    return (*judge_messages(*question, prompt), *said, told)
