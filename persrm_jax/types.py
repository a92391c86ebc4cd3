"""The records that stages pass to each other.

Text records are frozen dataclasses and have a JSON Lines form (`persrm_jax.jsonl`); array records
are NamedTuples, so that JAX sees them as pytrees: of NumPy arrays on the host, of jax.Arrays on
devices.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from jaxtyping import Bool, Float, Int

Split = Literal["train", "dev", "test"]
Pool = Literal["train", "test"]
Order = Literal["AB", "BA"]
Verdict = Literal["A", "B", "tie"]
NegativeType = Literal["mimic", "minor", "random", "other_author", "other_author_same_topic"]
WRITTEN: tuple[NegativeType, ...] = ("mimic", "minor", "random")
"""Kinds that a writer writes; the others are texts of other authors."""


@dataclass(frozen=True)
class Document:
    """One text by one author. `split` is its pool: `train` documents serve as exemplars, `test`
    documents as candidates."""

    author: str
    doc_id: str
    domain: str
    split: Pool
    text: str
    prompt: str = ""


@dataclass(frozen=True)
class Pair:
    """A person's exemplars and two candidates, one of them the person's own."""

    pair_id: str
    author: str
    author_split: Split
    domain: str
    prompt: str
    exemplars: tuple[str, ...]
    exemplar_ids: tuple[str, ...]
    chosen: str
    chosen_id: str
    rejected: str
    rejected_id: str
    rejected_author: str
    negative_type: NegativeType
    order: Order
    writer: str
    seed: int

    def candidates(self, order: Order | None = None) -> tuple[str, str]:
        """The texts shown as A and B; `AB` shows `chosen` as A."""
        first = (order or self.order) == "AB"
        return (self.chosen, self.rejected) if first else (self.rejected, self.chosen)


def right_verdict(order: Order) -> Literal["A", "B"]:
    """The side on which `order` shows the chosen text."""
    return "A" if order == "AB" else "B"


@dataclass(frozen=True)
class Trace:
    """A chat prompt and the reasoning that answers it rightly."""

    pair_id: str
    order: Order
    messages: tuple[dict[str, str], ...]
    response: str
    teacher: str
    verdict: Verdict


@dataclass(frozen=True)
class Prediction:
    """One judgement: `verdict` is None where the completion did not parse. `tokens` counts the
    completion's tokens; `condition` is the number of exemplars, or `wrong_author`."""

    pair_id: str
    order: Order
    condition: str
    model: str
    seed: int
    sample: int
    score_a: float | None
    score_b: float | None
    verdict: Verdict | None
    parsed: bool
    tokens: int
    completion: str


class Batch(NamedTuple):
    """Token rows for a training step. Segment 0 is padding; rows may be padded on either side."""

    tokens: Int[Any, "B T"]
    positions: Int[Any, "B T"]
    segment_ids: Int[Any, "B T"]
    loss_mask: Bool[Any, "B T"]
    """True where the token is one that the model must predict."""


class Totals(NamedTuple):
    """What a step's means divide by, counted over its whole batch. A loss over a part of the batch
    divides by them too, so that the parts' losses and gradients add up to the whole's."""

    sequences: Int[Any, ""]
    tokens: Int[Any, ""]
    """Those that carry loss."""


class PackedRows(NamedTuple):
    """The tokens of groups side by side in rows, padding left out. N blocks of R rows each hold the
    groups of P / N prompts, so that rows are split over devices, and taken in parts, as prompts
    are."""

    tokens: Int[Any, "N R L"]
    positions: Int[Any, "N R L"]
    group_ids: Int[Any, "N R L"]
    """0 is padding."""
    member_ids: Int[Any, "N R L"]
    """0 for a prompt, from 1 on for its completions."""
    sources: Int[Any, "P G T"]
    """Where in its block, as one run of R x L tokens, the token before each lies."""


class Groups(NamedTuple):
    """G completions for each of P prompts, the latter padded on the left."""

    prompt_tokens: Int[Any, "P S"]
    prompt_mask: Bool[Any, "P S"]
    tokens: Int[Any, "P G T"]
    mask: Bool[Any, "P G T"]
    """True up to and including the first end token. In SFT's groups, whose tokens hold the rest of
    the prompt too, True in the response: these are computed shared and not packed."""
    packed: PackedRows | None = None
    """The same tokens once more, where updates take them so."""


class Rollout(NamedTuple):
    """Groups as they were sampled."""

    groups: Groups
    logprobs: Float[Any, "P G T"]
    """The sampler's own, of the temperature-scaled, untruncated softmax."""
    forced: Bool[Any, "P G T"]
    """Tokens that were not drawn but put there, so that nothing is learnt from them."""
