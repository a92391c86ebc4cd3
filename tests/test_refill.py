"""Rows that take up their prompt's next sample: the same samples, in fewer rows."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import random_params, small_model

from persrm_jax import sampling
from persrm_jax.models.params import Params, param_shardings
from persrm_jax.sampling import (
    Completions,
    Ending,
    SamplingConfig,
    make_ending,
    make_generate,
    sequence_keys,
)
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.tokenizer import byte_tokenizer

CFG = small_model(vocab_size=48, mlp_width=48, max_positions=64, rope_theta=100.0, qkv_bias=True)
PAD, ENDS = 0, (7, 20, 33)
P, S, T, G = 8, 6, 9, 5
BYTES = byte_tokenizer()


@pytest.fixture(scope="module")
def inputs() -> tuple[Params, np.ndarray, np.ndarray, jax.Array]:
    tokens = np.random.default_rng(2).integers(1, CFG.vocab_size, (P, S)).astype(np.int32)
    lengths = 1 + np.arange(P) % S
    mask = np.arange(S) >= S - lengths[:, None]
    return random_params(CFG, seed=1), tokens, mask, sequence_keys(jax.random.key(3), P * G)


def generate(rows: int, **fields: Any) -> Any:
    config = SamplingConfig(T, 0.7, rows=rows, **fields)
    return make_generate(CFG, config, Ending(ENDS, PAD), num_samples=G)


@pytest.fixture(scope="module")
def sampled(inputs: tuple) -> Completions:
    return jax.device_get(generate(0)(*inputs))


def same(found: Completions, want: Completions) -> None:
    found = jax.device_get(found)
    np.testing.assert_array_equal(found.tokens, want.tokens)
    np.testing.assert_array_equal(found.mask, want.mask)
    np.testing.assert_array_equal(found.forced, want.forced)
    np.testing.assert_allclose(found.logprobs, want.logprobs, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 9])
def test_samples_do_not_depend_on_the_number_of_rows(
    inputs: tuple, sampled: Completions, rows: int
) -> None:
    lengths = sampled.mask.sum(axis=1)
    assert len(np.unique(lengths)) > 4, "rows end at different steps"
    same(generate(rows)(*inputs), sampled)


@pytest.mark.parametrize("shape", ["8x1", "4x2"])
def test_nor_on_the_mesh(inputs: tuple, sampled: Completions, shape: str) -> None:
    params, *rest = inputs
    mesh = make_mesh(MeshShape.parse(shape))
    placed = jax.device_put(params, param_shardings(CFG, mesh))
    with jax.set_mesh(mesh):
        args = (placed, *jax.device_put(tuple(rest), batch_sharding(mesh)))
        program = generate(2)
        same(program(*args), sampled)
        text = program.lower(*args).compile().as_text()
    # Rows and their queue belong to one prompt, which lies on one device.
    assert "all-to-all" not in text
    gathered = [line for line in text.splitlines() if " all-gather(" in line]
    assert not any(f"[{P},{G}" in line or f"[{P},2" in line for line in gathered), gathered


def test_fewer_rows_take_as_many_steps_as_their_samples_need(
    inputs: tuple, sampled: Completions, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    plain = sampling.decode_step

    def counted(*args: Any, **kwargs: Any) -> Any:
        jax.debug.callback(lambda: steps.append(1))
        return plain(*args, **kwargs)

    monkeypatch.setattr(sampling, "decode_step", counted)
    generate(2)(*inputs)
    jax.effects_barrier()
    needed = []
    for lengths in sampled.mask.sum(axis=1).reshape(P, G):
        busy = [0, 0]
        for length in lengths:  # the row that is free first takes the next sample
            busy[int(np.argmin(busy))] += int(length)
        needed.append(max(busy))
    assert len(steps) == max(needed) - 1


def test_completions_end_with_a_stop_string() -> None:
    model = small_model(vocab_size=BYTES.vocab_size, mlp_width=48, max_positions=64)
    params = random_params(model, seed=1)
    prompt = np.array([BYTES.encode("hello")], np.int32)
    keys = sequence_keys(jax.random.key(0), 64)

    def draw(rows: int, *stop: str) -> Completions:
        config = SamplingConfig(16, stop=stop, rows=rows)
        run = make_generate(model, config, make_ending(config, BYTES), num_samples=64)
        return jax.device_get(run(params, prompt, np.ones_like(prompt, bool), keys))

    free = draw(0)
    spellings = BYTES.token_bytes()
    said = [
        [spellings[i] for i in row[keep]] for row, keep in zip(free.tokens, free.mask, strict=True)
    ]
    whole = b"".join(b"".join(row[3:]) + b" " for row in said)
    stop = next(
        two.decode()
        for two in (whole[i : i + 2] for i in range(len(whole)))
        if two.isascii() and two.decode().isprintable() and b" " not in two
    )
    stopped = 0
    for rows in (0, 16):
        out = draw(rows, stop, "never this")
        for i, row in enumerate(said):
            ends = (n for n in range(len(row)) if stop.encode() in b"".join(row[:n]))
            length = next(ends, len(row))
            stopped += length < len(row)
            assert out.mask[i].sum() == length
            np.testing.assert_array_equal(out.tokens[i, :length], free.tokens[i, :length])
    assert stopped


@pytest.mark.parametrize("rows", [0, 2])
def test_open_reasoning_is_closed_when_the_answers_tokens_are_left(rows: int) -> None:
    model = small_model(vocab_size=BYTES.vocab_size, mlp_width=48, max_positions=64)
    params = random_params(model, seed=1)
    prompt = np.array([BYTES.encode("hello")], np.int32)
    keys = sequence_keys(jax.random.key(0), 8)
    config = SamplingConfig(24, answer_tokens=6, rows=rows)
    # Some rows close it by themselves: whatever holds the letter below.
    plain = make_generate(model, SamplingConfig(24), Ending((-1,), PAD), num_samples=8)
    free = jax.device_get(plain(params, prompt, np.ones_like(prompt, bool), keys))
    closed_by = next(
        letter
        for letter in map(chr, range(33, 127))
        if 2 <= sum(BYTES.encode(letter)[0] in row[:10] for row in free.tokens) <= 5
    )
    ending = make_ending(config, BYTES, closed_by=closed_by, closing=f"!{closed_by}<")
    ending = ending._replace(end_ids=(-1,))
    run = make_generate(model, config, ending, num_samples=8)
    out = jax.device_get(run(params, prompt, np.ones_like(prompt, bool), keys))
    first = 24 - 6 - 3
    forced = np.zeros(24, bool)
    forced[first : first + 3] = True
    kinds = set()
    for i in range(8):
        is_closed = BYTES.encode(closed_by)[0] in free.tokens[i, :first]
        kinds.add(is_closed)
        np.testing.assert_array_equal(out.tokens[i, :first], free.tokens[i, :first])
        if is_closed:
            np.testing.assert_array_equal(out.tokens[i], free.tokens[i])
            assert not out.forced[i].any()
        else:
            assert out.tokens[i, first : first + 3].tolist() == BYTES.encode(f"!{closed_by}<")
            np.testing.assert_array_equal(out.forced[i], forced)
    assert kinds == {True, False}


def test_without_room_for_an_answer_nothing_is_closed() -> None:
    with pytest.raises(ValueError, match="answer-tokens 20: with the 3 tokens"):
        make_ending(SamplingConfig(22, answer_tokens=20), BYTES, closed_by="c", closing="abc")


def test_a_ring_is_not_read_beyond_a_rows_own_tokens(inputs: tuple) -> None:
    """A prompt's last samples, which begin in slots that others have filled, are those that it has
    alone."""
    params, tokens, mask, keys = inputs
    alone = make_generate(CFG, SamplingConfig(T, 0.7), Ending(ENDS, PAD), num_samples=1)
    want = alone(params, tokens[:1], mask[:1], keys[G - 1 : G])
    found = generate(1)(params, tokens[:1], mask[:1], keys[:G])
    np.testing.assert_array_equal(found.tokens[G - 1], want.tokens[0])
    np.testing.assert_allclose(found.logprobs[G - 1], want.logprobs[0], atol=1e-5)
    assert jnp.sum(found.mask) > T
