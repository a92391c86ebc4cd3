"""What every framework is given: the model's sizes, prompts of words, a tokenizer and a reward.

Needs only transformers and numpy, so that it imports where neither ours nor theirs is installed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE, WIDTH, MLP_WIDTH, NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS = 2048, 256, 688, 4, 8, 4
PAD_ID, END_ID = 0, 1
LEARNING_RATE = 1e-6


@dataclass(frozen=True)
class Workload:
    """One update's sizes. Completions are exactly `new_tokens` long: none ends early."""

    prompts: int
    group_size: int
    prompt_tokens: int
    new_tokens: int


WORKLOADS = {"W1": Workload(8, 4, 256, 128), "W2": Workload(4, 8, 768, 96)}
"""Those of `shared/PEERS.md`, section 3."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word for each id, so that text and ids go back and forth unchanged."""
    words = {"<pad>": PAD_ID, "<end>": END_ID}
    words |= {f"w{i}": i for i in range(len(words), VOCAB_SIZE)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<end>", padding_side="left"
    )


def make_prompts(workload: Workload, step: int) -> list[str]:
    """The prompts of one step, each of exactly `prompt_tokens` words."""
    shape = (workload.prompts, workload.prompt_tokens)
    ids = np.random.default_rng(step).integers(END_ID + 1, VOCAB_SIZE, shape)
    return [" ".join(f"w{i}" for i in row) for row in ids]


def share_even(completions: Sequence[Sequence[int]]) -> list[float]:
    """The reward: the share of even token ids."""
    return [float(np.mean(np.asarray(ids) % 2 == 0)) for ids in completions]


def describe(workload: Workload) -> str:
    """In a line."""
    w = workload
    return (
        f"{w.prompts} prompts of {w.prompt_tokens} tokens, {w.group_size} completions each of "
        f"{w.new_tokens}"
    )
