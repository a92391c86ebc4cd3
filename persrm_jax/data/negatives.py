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

    def _key(self, pair: Pair) -> str:
        """Of an answer. Another text or writer under the same name is another question."""
        text = zlib.crc32(pair.chosen.encode())
        label = self.writers[pair.negative_type].label
        return f"{label}/{pair.seed}/{pair.pair_id}/{pair.negative_type}/{text:08x}"

    def _write(self, kind: NegativeType, pairs: Sequence[Pair]) -> dict[str, str]:
        texts: dict[str, str] = {}
        for attempt in range(self.cfg.tries):
            left = [p for p in pairs if p.pair_id not in texts]
            found = {p.pair_id: self.answers.find(self._key(p), attempt) for p in left}
            self._ask(kind, [p for p in left if found[p.pair_id] is None], attempt)
            for pair in left:
                answer = found[pair.pair_id] or self.answers.find(self._key(pair), attempt)
                assert answer is not None
                if not answer.fault:
                    texts[pair.pair_id] = answer.text
        return texts

    def _ask(self, kind: NegativeType, pairs: Sequence[Pair], attempt: int) -> None:
        if not pairs:
            return
        requests = (
            Request(self._key(p), negative_messages(kind, p.chosen, p.prompt), attempt, p.chosen)
            for p in pairs
        )
        for pair, written in zip(pairs, self.writers[kind].write(requests), strict=True):
            text, fault = written.text or "", written.fault
            if not fault:
                text = text.strip() if kind == "minor" else fit_length(text, pair.chosen)
                fault = find_fault(kind, pair.chosen, text, self.cfg.verify) or ""
            spent = (written.prompt_tokens, written.completion_tokens)
            label = self.writers[kind].label
            self.answers.add(Answer(self._key(pair), attempt, kind, label, text, fault, *spent))
            self.advance(1)


def fit_length(written: str, text: str) -> str:
    """The whole sentences with which `written` begins that are about as long as the person's
    `text`, so that length tells nothing; `written` itself where it has no more words."""
    most = max(1, round(_LONGER * len(text.split())))
    passages = cut_passages(written, most)
    return passages[0] if len(passages) > 1 else clean_text(written)
