"""What the sampler draws is the distribution that its settings say, exactly."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from small_model import random_params, small_model

from persrm_jax.models.decoder import forward, vocab_weight
from persrm_jax.models.params import Params
from persrm_jax.sampling import Ending, SamplingConfig, make_generate, sequence_keys
from persrm_jax.truncation import Truncation, truncate

CFG = small_model(vocab_size=24, mlp_width=48, max_positions=64, rope_theta=100.0)
PROMPT = np.array([[3, 9, 4, 11]], np.int32)
NUM_SAMPLES = 100_000
TEMPERATURE = 0.7


def exact(logits: np.ndarray, temperature: float, cfg: Truncation) -> np.ndarray:
    """The distribution [V] that is drawn from, in float64."""
    p = np.exp((logits - logits.max()) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: cfg.top_k] if cfg.top_k else order
    share = p[kept] / p[kept].sum()
    kept = kept[: 1 + int(np.sum(np.cumsum(share)[:-1] < cfg.top_p))]
    kept = [token for token in kept if p[token] >= cfg.min_p * p.max()]
    q = np.zeros_like(p)
    q[kept] = p[kept]
    return q / q.sum()


@pytest.fixture(scope="module")
def params() -> Params:
    params = random_params(CFG, seed=1)
    return params | {"embed": {"weight": params["embed"]["weight"] * 0.5}}


@pytest.fixture(scope="module")
def logits(params: Params) -> tuple[np.ndarray, np.ndarray]:
    """After the prompt [V], and after the prompt and each token [V, V]."""
    rows = np.concatenate(
        [np.repeat(PROMPT, CFG.vocab_size, axis=0), np.arange(CFG.vocab_size)[:, None]], axis=1
    ).astype(np.int32)

    @jax.jit
    def run(params: Params, rows: jax.Array) -> jax.Array:
        positions = jnp.broadcast_to(jnp.arange(rows.shape[1]), rows.shape)
        hidden = forward(params, CFG, rows, positions, jnp.ones_like(rows))
        return hidden @ vocab_weight(params).T

    found = np.asarray(run(params, rows), np.float64)
    return found[0, -2], found[:, -1]


@pytest.mark.parametrize(
    ("cfg", "wrong"),
    [
        (Truncation(), Truncation(top_k=20)),
        (Truncation(top_k=5), Truncation(top_k=6)),
        (Truncation(top_p=0.8), Truncation(top_p=0.7)),
        (Truncation(min_p=0.1), Truncation(min_p=0.2)),
        (Truncation(top_k=8, top_p=0.9, min_p=0.05), Truncation(top_k=8, top_p=0.7, min_p=0.05)),
    ],
    ids=["temperature", "top_k", "top_p", "min_p", "all"],
)
def test_two_tokens_are_drawn_from_their_joint_distribution(
    params: Params, logits: tuple[np.ndarray, np.ndarray], cfg: Truncation, wrong: Truncation
) -> None:
    sampling = SamplingConfig(2, TEMPERATURE, cfg)
    generate = make_generate(CFG, sampling, Ending((-1,), 0), num_samples=NUM_SAMPLES)
    keys = sequence_keys(jax.random.key(5), NUM_SAMPLES)
    out = jax.device_get(generate(params, PROMPT, np.ones_like(PROMPT, bool), keys))
    V = CFG.vocab_size
    counts = np.bincount(out.tokens[:, 0] * V + out.tokens[:, 1], minlength=V * V)

    def joint(temperature: float, cfg: Truncation) -> np.ndarray:
        first = exact(logits[0], temperature, cfg)
        after = np.stack([exact(row, temperature, cfg) for row in logits[1]])
        return (first[:, None] * after).ravel()

    def p_value(p: np.ndarray) -> float:
        if counts[p == 0].any():
            return 0.0
        common = p * NUM_SAMPLES >= 5
        observed, expected = counts[common], p[common] * NUM_SAMPLES
        if (rest := p[~common].sum()) > 0:
            observed = np.append(observed, counts[~common].sum())
            expected = np.append(expected, rest * NUM_SAMPLES)
        return stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue

    assert p_value(joint(TEMPERATURE, cfg)) > 0.01
    assert p_value(joint(TEMPERATURE, wrong)) < 1e-6, "the test has power"
    assert p_value(joint(TEMPERATURE + 0.03, cfg)) < 1e-6
    # Log-probabilities are those of the whole distribution.
    whole = np.log(exact(logits[0], TEMPERATURE, Truncation()))
    np.testing.assert_allclose(out.logprobs[:, 0], whole[out.tokens[:, 0]], atol=1e-4)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    logits=st.lists(st.integers(-60, 60), min_size=1, max_size=12, unique=True),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 1e-6]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_what_is_left_is_the_distribution_by_hand(
    logits: list[int], top_k: int, top_p: float, min_p: float
) -> None:
    cfg = Truncation(top_k, top_p, min_p)
    row = np.array(logits, np.float64) / 10
    left = np.asarray(truncate(jnp.asarray(row[None], jnp.float32), cfg))[0]
    want = exact(row, 1.0, cfg) > 0
    found = np.isfinite(left)
    # Where the probabilities before a token are top_p to the last bit, either is right.
    falling = np.sort(np.exp(row))[::-1][: top_k or None]
    if np.abs(np.cumsum(falling) / falling.sum() - top_p).min() > 1e-5:
        np.testing.assert_array_equal(found, want)
    assert found[row.argmax()]
    np.testing.assert_array_equal(left[found], row.astype(np.float32)[found])


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"top_k": -1}, "top-k -1"),
        ({"top_p": 0.0}, "top-p 0.0"),
        ({"top_p": 1.5}, "top-p 1.5"),
        ({"min_p": -0.1}, "min-p -0.1"),
    ],
)
def test_a_config_out_of_range_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        partial(Truncation, **fields)()
