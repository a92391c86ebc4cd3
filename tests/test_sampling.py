from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from small_model import random_params, small_model

from persrm_jax import sampling
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.decoder import forward, vocab_weight
from persrm_jax.models.logprobs import token_logprobs
from persrm_jax.models.params import Params, param_shardings
from persrm_jax.sampling import (
    Completions,
    Ending,
    Generate,
    SamplingConfig,
    make_generate,
    sequence_keys,
)
from persrm_jax.sharding import MeshShape, batch_sharding, make_mesh
from persrm_jax.types import Batch

CFG = small_model(vocab_size=48, mlp_width=48, max_positions=64, rope_theta=100.0, qkv_bias=True)
PAD = 0
B, S, T, G = 8, 6, 9, 2
"""Prompts, their padded length, new tokens, samples of each prompt."""
TEMPERATURE = 0.7
END_IDS = (7, 20, 33)


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params(CFG, seed=1)


@pytest.fixture(scope="module")
def prompts() -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask, padded on the left to lengths 1 to S; what pads is noise."""
    tokens = np.random.default_rng(2).integers(1, CFG.vocab_size, (B, S)).astype(np.int32)
    lengths = 1 + np.arange(B) % S
    return tokens, np.arange(S) >= S - lengths[:, None]


@pytest.fixture(scope="module")
def keys() -> jax.Array:
    return sequence_keys(jax.random.key(3), B * G)


@pytest.fixture(scope="module")
def generate() -> Generate:
    return make_generate(
        CFG, SamplingConfig(T, TEMPERATURE), ending=Ending(END_IDS, PAD), num_samples=G
    )


@pytest.fixture(scope="module")
def sampled(
    generate: Generate, params: Params, prompts: tuple[np.ndarray, np.ndarray], keys: jax.Array
) -> Completions:
    return jax.device_get(generate(params, *prompts, keys))


@jax.jit
def full_logits(params: Params, tokens: jax.Array) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    return forward(params, CFG, tokens, positions, jnp.ones_like(tokens)) @ vocab_weight(params).T


def naive_greedy(params: Params, prompt: np.ndarray) -> tuple[list[int], list[float]]:
    """The likeliest token, T times, each from a forward pass over the whole row."""
    row, logprobs = list(prompt), []
    for _ in range(T):
        padded = np.zeros((1, S + T), np.int32)  # causal: what follows a token changes nothing
        padded[0, : len(row)] = row
        logits = np.asarray(full_logits(params, padded), np.float64)[0, len(row) - 1]
        top, second = np.sort(logits)[:-3:-1]
        assert top - second > 1e-3, "too close a call to compare"
        row.append(int(logits.argmax()))
        logprobs.append(top - np.log(np.exp(logits).sum()))
    return row[len(prompt) :], logprobs


def test_greedy_equals_repeated_full_forward(
    params: Params, prompts: tuple[np.ndarray, np.ndarray]
) -> None:
    tokens, mask = prompts
    naive = [naive_greedy(params, row[keep]) for row, keep in zip(tokens, mask, strict=True)]
    ends = (naive[0][0][3], naive[5][0][0])
    greedy = make_generate(CFG, SamplingConfig(T, 0.0), ending=Ending(ends, PAD))

    out = jax.device_get(greedy(params, tokens, mask, sequence_keys(jax.random.key(0), B)))

    lengths = []
    for row, (ids, logprobs) in enumerate(naive):
        n = next((i + 1 for i, token in enumerate(ids) if token in ends), T)
        lengths.append(n)
        assert out.tokens[row].tolist() == ids[:n] + [PAD] * (T - n)
        assert out.mask[row].tolist() == [True] * n + [False] * (T - n)
        np.testing.assert_allclose(out.logprobs[row, :n], logprobs[:n], atol=1e-5)
        assert (out.logprobs[row, n:] == 0).all()
    assert lengths[5] == 1 and min(lengths) < max(lengths)


def test_rows_end_with_their_first_end_token(sampled: Completions) -> None:
    lengths = sampled.mask.sum(axis=1)
    for row, n in enumerate(lengths):
        ended = np.isin(sampled.tokens[row, :n], END_IDS)
        assert not ended[:-1].any()
        assert ended[-1] or n == T
        assert sampled.mask[row, :n].all()
        assert (sampled.tokens[row, n:] == PAD).all() and (sampled.logprobs[row, n:] == 0).all()
    assert lengths.min() < T and lengths.max() == T, "both ways to end"


def test_log_probabilities_are_those_of_the_trainer(
    params: Params, prompts: tuple[np.ndarray, np.ndarray], sampled: Completions
) -> None:
    tokens, mask = (np.repeat(x, G, axis=0) for x in prompts)
    rows = np.concatenate([tokens, sampled.tokens], axis=1)
    real = np.concatenate([mask, sampled.mask], axis=1)
    positions = np.maximum(np.cumsum(real, axis=1) - 1, 0).astype(np.int32)
    batch = Batch(rows, positions, real.astype(np.int32), real)

    @partial(jax.jit, static_argnames="temperature")
    def score(params: Params, batch: Batch, temperature: float) -> jax.Array:
        return token_logprobs(
            params, CFG, batch, ComputeConfig(), start=S, temperature=temperature
        )[0]

    found = np.asarray(score(params, batch, TEMPERATURE))
    assert found.shape == sampled.logprobs.shape
    np.testing.assert_allclose(sampled.logprobs[sampled.mask], found[sampled.mask], atol=1e-5)
    # In float64, from the logits of one row (row 3 is the second sample of prompt 1).
    ids = np.concatenate([tokens[3][mask[3]], sampled.tokens[3]])[None]
    logits = np.asarray(
        full_logits(params, jnp.asarray(np.pad(ids, ((0, 0), (0, S + T - ids.size)))))
    )
    logits = logits[0, mask[3].sum() - 1 :][:T].astype(np.float64) / TEMPERATURE
    want = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    n = sampled.mask[3].sum()
    np.testing.assert_allclose(
        sampled.logprobs[3, :n], want[np.arange(n), sampled.tokens[3, :n]], atol=1e-5
    )


def same_rows(found: Completions, want: Completions, rows: list[int] | slice) -> None:
    np.testing.assert_array_equal(found.tokens, want.tokens[rows])
    np.testing.assert_array_equal(found.mask, want.mask[rows])
    np.testing.assert_allclose(found.logprobs, want.logprobs[rows], atol=1e-5)


def test_a_sample_does_not_depend_on_its_batch(
    generate: Generate,
    params: Params,
    prompts: tuple[np.ndarray, np.ndarray],
    keys: jax.Array,
    sampled: Completions,
) -> None:
    tokens, mask = prompts
    num_programs = generate._cache_size()
    order = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    rows = (order[:, None] * G + np.arange(G)).ravel()
    same_rows(generate(params, tokens[order], mask[order], keys[rows]), sampled, rows.tolist())
    assert generate._cache_size() == num_programs, "the same shapes compile once"

    alone = generate(params, tokens[2:3], mask[2:3], keys[2 * G : 3 * G])
    same_rows(alone, sampled, slice(2 * G, 3 * G))
    assert generate._cache_size() == num_programs + 1


def test_a_sample_does_not_depend_on_the_mesh(
    generate: Generate,
    params: Params,
    prompts: tuple[np.ndarray, np.ndarray],
    keys: jax.Array,
    sampled: Completions,
) -> None:
    mesh = make_mesh(MeshShape(8, 1))
    placed = jax.device_put(params, param_shardings(CFG, mesh))
    with jax.set_mesh(mesh):
        out = generate(placed, *jax.device_put((*prompts, keys), batch_sharding(mesh)))
    assert len(out.tokens.sharding.device_set) == 8
    same_rows(jax.device_get(out), sampled, slice(None))


def test_a_sample_depends_on_its_key_and_its_step(
    generate: Generate, params: Params, prompts: tuple[np.ndarray, np.ndarray], keys: jax.Array
) -> None:
    same_key = keys[jnp.zeros(B * G, int)]
    same_prompt = tuple(np.repeat(x[-1:], B, axis=0) for x in prompts)
    together = jax.device_get(generate(params, *same_prompt, same_key))
    assert (together.tokens == together.tokens[0]).all()
    apart = jax.device_get(generate(params, *same_prompt, keys))
    assert len(np.unique(apart.tokens, axis=0)) > B


def test_keys_of_sequences_differ_and_do_not_depend_on_their_number() -> None:
    many = jax.random.key_data(sequence_keys(jax.random.key(0), 64))
    assert len(np.unique(many, axis=0)) == 64
    few = jax.random.key_data(sequence_keys(jax.random.key(0), 8))
    np.testing.assert_array_equal(few, many[:8])


def test_frequencies_of_the_first_token_are_the_softmax(
    params: Params, prompts: tuple[np.ndarray, np.ndarray]
) -> None:
    num = 4000
    tokens, mask = (x[S - 1 : S] for x in prompts)
    assert mask.all()
    one = make_generate(
        CFG, SamplingConfig(1, TEMPERATURE), ending=Ending((PAD,), PAD), num_samples=num
    )
    out = one(params, tokens, mask, sequence_keys(jax.random.key(11), num))
    counts = np.bincount(np.asarray(out.tokens)[:, 0], minlength=CFG.vocab_size)
    padded = np.pad(tokens, ((0, 0), (0, T)))
    logits = np.asarray(full_logits(params, padded), np.float64)[0, S - 1]

    def p_value(temperature: float) -> float:
        p = np.exp(logits / temperature)
        expected = num * p / p.sum()
        common = expected >= 5
        assert common.sum() > 5
        observed = np.append(counts[common], counts[~common].sum())
        return stats.chisquare(
            observed, np.append(expected[common], expected[~common].sum())
        ).pvalue

    assert p_value(TEMPERATURE) > 0.01
    assert p_value(0.8) < 1e-6 and p_value(0.6) < 1e-6, "the test has power"


def test_decoding_ends_when_all_rows_have(
    params: Params, prompts: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    plain: Callable[..., tuple[jax.Array, object]] = sampling.decode_step

    def counted(*args: object, **kwargs: object) -> tuple[jax.Array, object]:
        jax.debug.callback(lambda: steps.append(1))
        return plain(*args, **kwargs)

    monkeypatch.setattr(sampling, "decode_step", counted)
    ends = tuple(range(1, CFG.vocab_size, 2))  # every other token
    quick = make_generate(CFG, SamplingConfig(40), ending=Ending(ends, PAD))
    out = quick(params, *prompts, sequence_keys(jax.random.key(5), B))
    longest = int(out.mask.sum(axis=1).max())
    jax.effects_barrier()
    assert 1 < longest < 40
    assert len(steps) == longest - 1  # the prefill predicts the first token


def test_it_is_compiled_once_for_a_shape_and_never_for_a_token(
    params: Params, prompts: tuple[np.ndarray, np.ndarray]
) -> None:
    generate: Any = make_generate(CFG, SamplingConfig(T), ending=Ending(END_IDS, PAD))
    tokens, mask = prompts
    for seed in range(3):
        generate(
            params, (tokens + seed) % CFG.vocab_size, mask, sequence_keys(jax.random.key(seed), B)
        )
    assert generate._cache_size() == 1
    generate(params, tokens[:4], mask[:4], sequence_keys(jax.random.key(0), 4))
    assert generate._cache_size() == 2


def test_the_cache_is_updated_in_place() -> None:
    """The whole program's temporaries grow with the cache, and little faster."""
    num_prompts, group = 4, 8
    a_slot = 2 * CFG.num_layers * CFG.num_kv_heads * CFG.head_width * 4
    params = jax.eval_shape(lambda: random_params(CFG))
    keys = jax.eval_shape(lambda: sequence_keys(jax.random.key(0), num_prompts * group))

    def temporaries(length: int, num_new: int) -> int:
        generate: Any = make_generate(
            CFG, SamplingConfig(num_new), ending=Ending(END_IDS, PAD), num_samples=group
        )
        prompts = [jax.ShapeDtypeStruct((num_prompts, length), t) for t in ("int32", "bool")]
        return generate.lower(params, *prompts, keys).compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(16, 128), temporaries(16, 1024)
    growth = num_prompts * group * (1024 - 128) * a_slot
    assert growth < many - few < 1.3 * growth


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"max_new_tokens": 0}, "max-new-tokens 0"), ({"temperature": -0.5}, "temperature -0.5")],
)
def test_a_config_out_of_range_is_refused(fields: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SamplingConfig(**fields)
