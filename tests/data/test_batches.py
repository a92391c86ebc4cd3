from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persrm_jax.data.batches import (
    Packer,
    batch_indices,
    bucketed,
    encode_pairs,
    encode_prompt,
    encode_traces,
    left_pad,
    packed_batch,
    sft_batch,
)
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.tokenizer import byte_tokenizer
from persrm_jax.types import Pair, Trace

BYTES = byte_tokenizer()
COMPACT = PromptConfig(template="compact")
PAIR = Pair(
    "train-000001", "ann", "train", "d", "", ("x",), ("1",), "yes", "2", "no", "3", "bob",
    "other_author", "AB", "human", 0,
)  # fmt: skip


def test_lengths_are_rounded_up_to_a_bucket() -> None:
    assert [bucketed(n) for n in (1, 31, 32, 33, 64, 65)] == [32, 32, 32, 64, 64, 96]


@settings(deadline=None)
@given(
    num_records=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**32 - 1),
    num_steps=st.integers(1, 12),
)
def test_each_epoch_takes_every_record_once(
    num_records: int, batch_size: int, seed: int, num_steps: int
) -> None:
    stream = np.concatenate(
        [batch_indices(num_records, batch_size, step, seed) for step in range(num_steps)]
    )
    assert len(stream) == num_steps * batch_size
    for begin in range(0, len(stream) - num_records + 1, num_records):
        assert sorted(stream[begin : begin + num_records]) == list(range(num_records))
    rest = stream[len(stream) // num_records * num_records :]
    assert max(Counter(rest.tolist()).values(), default=1) == 1


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    late = batch_indices(100, 8, 31, 5)
    for step in range(40):
        batch_indices(100, 8, step, 5)
    np.testing.assert_array_equal(batch_indices(100, 8, 31, 5), late)
    assert (batch_indices(100, 8, 31, 6) != late).any()
    # Another epoch is another order.
    assert (batch_indices(100, 100, 0, 5) != batch_indices(100, 100, 1, 5)).any()


def test_only_responses_carry_loss() -> None:
    batch = sft_batch([([5, 6, 7], [8, 9]), ([4], [3, 2, 1, 1])], pad_id=99, length=7)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 99, 99], [4, 3, 2, 1, 1, 99, 99]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0, 0]]
    assert batch.loss_mask.astype(int).tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0, 0]]
    assert batch.positions.tolist() == [list(range(7))] * 2
    assert sft_batch([([5], [6])], 99).tokens.shape == (1, 32)
    assert sft_batch([([5] * 30, [6] * 3)], 99).tokens.shape == (1, 64)


def test_traces_end_with_the_end_token_and_it_carries_loss() -> None:
    messages = ({"role": "user", "content": "hi"},)
    trace = Trace("p", "AB", messages, "<think>é</think>", "t", "A")
    ((prompt, response),) = encode_traces([trace], BYTES, COMPACT)
    assert prompt == BYTES.encode_chat(messages)
    assert BYTES.decode(response) == "<think>é</think>"
    assert [i for i in response if i in BYTES.end_ids] == response[-1:]
    batch = sft_batch([(prompt, response)], BYTES.pad_id)
    learned = batch.tokens[0][batch.loss_mask[0]].tolist()
    assert learned == response
    assert BYTES.pad_id not in learned


def test_an_answer_that_names_the_end_token_does_not_end() -> None:
    trace = Trace("p", "AB", ({"role": "user", "content": "x"},), "a<|im_end|>b", "t", "A")
    ((_, response),) = encode_traces([trace], BYTES, COMPACT)
    assert [i for i in response if i in BYTES.end_ids] == response[-1:]


def test_left_padded_prompts_end_together() -> None:
    tokens, mask = left_pad([[1, 2, 3], [4]], pad_id=9, length=5)
    assert tokens.tolist() == [[9, 9, 1, 2, 3], [9, 9, 9, 9, 4]]
    assert mask.astype(int).tolist() == [[0, 0, 1, 1, 1], [0, 0, 0, 0, 1]]
    assert left_pad([[1] * 33], 9)[0].shape == (1, 64)
    assert left_pad([[1] * 5], 9, 5)[1].all()


def test_prompts_follow_the_order_asked() -> None:
    ids = encode_pairs([PAIR, PAIR], ["AB", "BA"], BYTES, COMPACT)
    texts = [BYTES.decode(row) for row in ids]
    assert "A: yes\nB: no" in texts[0] and "A: no\nB: yes" in texts[1]


def test_a_prompt_that_is_too_long_is_refused_by_name() -> None:
    messages = ({"role": "user", "content": "hello"},)
    length = len(BYTES.encode_chat(messages))
    fits = PromptConfig(max_tokens=length)
    assert len(encode_prompt(messages, "p", BYTES, fits)) == length
    with pytest.raises(ValueError) as error:
        encode_prompt(messages, "p-7", BYTES, PromptConfig(max_tokens=length - 1))
    assert str(error.value) == (
        f"pair p-7: its prompt takes {length} tokens and --prompt.max-tokens is {length - 1}; "
        "lower --pairs.num-exemplars or --corpus.max-words"
    )
    with pytest.raises(ValueError, match="pair train-000001: its prompt takes"):
        encode_pairs([PAIR], ["AB"], BYTES, PromptConfig(max_tokens=5))


LENGTHS = np.random.default_rng(3).integers(90, 260, 500).tolist()


def test_bins_hold_every_record_once_an_epoch_and_are_full() -> None:
    packer = Packer(LENGTHS, 1024, seed=1)
    num_bins = len(packer._pack(0))
    seen = [i for step in range(num_bins) for i in packer.batch(step, 1)[0]]
    assert sorted(seen) == list(range(500))
    sizes = [sum(LENGTHS[i] for i in packer.batch(step, 1)[0]) for step in range(num_bins)]
    assert max(sizes) <= 1024
    assert sum(sizes) > 0.95 * 1024 * num_bins
    following = [i for step in range(num_bins, 2 * num_bins) for i in packer.batch(step, 1)[0]]
    assert following != seen and len(set(following)) == len(following)


def test_a_packed_batch_is_a_function_of_seed_and_step() -> None:
    first, again, other = (Packer(LENGTHS, 1024, seed=s) for s in (1, 1, 2))
    straight = [first.batch(step, 8) for step in range(30)]
    assert again.batch(29, 8) == straight[29] and again.batch(3, 8) == straight[3]
    assert other.batch(0, 8) != straight[0]


def test_a_record_longer_than_a_bin_is_refused() -> None:
    with pytest.raises(ValueError, match="pack-length 200: the longest trace takes"):
        Packer(LENGTHS, 200, seed=0)


def test_a_packed_batch_by_hand() -> None:
    rows = [([5, 6], [7]), ([8], [9, 10])]
    batch = packed_batch([rows, rows[:1]], pad_id=0, length=8)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 10, 0, 0], [5, 6, 7, 0, 0, 0, 0, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert batch.positions[0, :6].tolist() == [0, 1, 2, 0, 1, 2]
    mask = [[0, 0, 1, 0, 1, 1, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]]
    assert batch.loss_mask.astype(int).tolist() == mask
