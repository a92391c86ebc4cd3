"""Rejected texts that are written: asked for, verified, asked for again, or left out and counted.

The kinds are PersRM-R1's (arXiv 2508.14076); the prompts are our own.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from persrm_jax.data.answers import Answer, Answers
from persrm_jax.data.cleaning import clean_text, cut_passages
from persrm_jax.data.minor import NUM_CHANGES
from persrm_jax.data.verify import VerifyConfig, find_fault
from persrm_jax.data.writers import NamedWriter, Request
from persrm_jax.types import WRITTEN, NegativeType, Pair

_LONGER = 1.1
"""How many times the person's words a written text keeps; what follows is cut at a sentence end."""
_SYSTEM = "You write exactly what you are asked for, and nothing before or after it."
_ASK = {
    "mimic": """\
Here is a text that somebody wrote:

{text}

Write another text of about {words} words in the same style, as if the same person had written \
it{prompt}. Take over the style, but no sentence and no phrase of the text.""",
    "random": """\
{task} in about {words} words, in whatever style you like, as long as it is an unusual one: \
free, absurd or poetic.""",
    "minor": """\
Replace exactly {fewest} or {most} words of the following text by close synonyms. Change nothing \
else: no other word, no name, no number, no punctuation. Answer with the whole text.

{text}""",
}


@dataclass(frozen=True)
class NegativesConfig:
    """How written negatives are had."""

    tries: int = 4
    """Times that a text is asked for before its pair is left out."""
    verify: VerifyConfig = field(default_factory=VerifyConfig)

    def __post_init__(self) -> None:
        if self.tries < 1:
            raise ValueError(f"--written.tries {self.tries}: must be at least 1")


def negative_messages(kind: NegativeType, text: str, prompt: str) -> tuple[dict[str, str], ...]:
    """The chat that asks for a negative of the person's `text`, which answers or continues
    `prompt`."""
    values = {
        "text": text,
        "words": len(text.split()),
        "prompt": f", which answers or continues this:\n\n{prompt}\n\n" if prompt else "",
        "task": f"Answer or continue this:\n\n{prompt}\n\nWrite it" if prompt else _opening(text),
        "fewest": NUM_CHANGES[0],
        "most": NUM_CHANGES[1],
    }
    content = _ASK[kind].format(**values)
    return ({"role": "system", "content": _SYSTEM}, {"role": "user", "content": content})


def _opening(text: str) -> str:
    """Of a text that answers nothing, the first words are what is continued."""
    return f'Continue a text that begins "{" ".join(text.split()[:12])}". Write it'


class Negatives:
    """Fills in the rejected texts of pairs."""

    def __init__(
        self,
        writers: Mapping[NegativeType, NamedWriter],
        answers: Answers,
        cfg: NegativesConfig,
        advance: Callable[[int], Any] = lambda _: None,
    ) -> None:
        """Tells `advance` of each answer."""
        self.writers, self.answers, self.cfg = writers, answers, cfg
        self.advance = advance
        self._under = {
            kind: answers.settings(writer.label, writer.settings, kind, cfg.verify)
            for kind, writer in writers.items()
        }

    def __call__(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs in their order, without those for which no text was found."""
        texts: dict[str, str] = {}
        for kind in WRITTEN:
            texts |= self._write(kind, [p for p in pairs if p.negative_type == kind])
        return [
            self._filled(pair, texts.get(pair.pair_id))
            for pair in pairs
            if pair.negative_type not in WRITTEN or pair.pair_id in texts
        ]

    def _filled(self, pair: Pair, text: str | None) -> Pair:
        if text is None:
            return pair
        return replace(pair, rejected=text, writer=self.writers[pair.negative_type].label)

    def _write(self, kind: NegativeType, pairs: Sequence[Pair]) -> dict[str, str]:
        texts: dict[str, str] = {}
        if not pairs:
            return texts
        for attempt in range(self.cfg.tries):
            left = [self._request(p, attempt) for p in pairs if p.pair_id not in texts]
            known = {p.pair_id: self.answers.find(r.key, attempt) for p, r in left}
            new = self._ask(
                self.writers[kind], [(p, r) for p, r in left if known[p.pair_id] is None]
            )
            for pair, _ in left:
                answer = known[pair.pair_id] or new.get(pair.pair_id)
                if answer is not None and not answer.fault:
                    texts[pair.pair_id] = answer.text
        return texts

    def _request(self, pair: Pair, attempt: int) -> tuple[Pair, Request]:
        """Another text under the same name, or another prompt, is another question."""
        messages = negative_messages(pair.negative_type, pair.chosen, pair.prompt)
        said = zlib.crc32(messages[-1]["content"].encode())
        under = self._under[pair.negative_type]
        key = f"{under}|{pair.seed}/{pair.pair_id}/{pair.negative_type}/{said:08x}"
        return pair, Request(key, messages, attempt, pair.chosen)

    def _ask(self, writer: NamedWriter, asked: Sequence[tuple[Pair, Request]]) -> dict[str, Answer]:
        found = {}
        answers = writer.write(request for _, request in asked) if asked else ()
        for (pair, request), written in zip(asked, answers, strict=True):
            self.advance(1)
            if written.is_lost:
                self.answers.lose(written.fault)
                continue
            kind, text, fault = pair.negative_type, written.text or "", written.fault
            if not fault:
                text = text.strip() if kind == "minor" else fit_length(text, pair.chosen)
                fault = find_fault(kind, pair.chosen, text, self.cfg.verify) or ""
            spent = (written.prompt_tokens, written.completion_tokens)
            answer = Answer(request.key, request.attempt, kind, writer.label, text, fault, *spent)
            self.answers.add(answer)
            found[pair.pair_id] = answer
        return found


def fit_length(written: str, text: str) -> str:
    """The whole sentences with which `written` begins that are about as long as the person's
    `text`, so that length tells nothing; `written` itself where it has no more words."""
    most = max(1, round(_LONGER * len(text.split())))
    passages = cut_passages(written, most)
    return passages[0] if len(passages) > 1 else clean_text(written)
