import math

import jax.numpy as jnp
import numpy as np
import pytest

from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer, make_schedule


def _rates(cfg: OptimizerConfig, num_steps: int) -> list[float]:
    schedule = make_schedule(cfg, num_steps)
    return [float(schedule(step)) for step in range(num_steps)]


def test_constant_schedule_by_hand() -> None:
    cfg = OptimizerConfig(learning_rate=1.0, schedule="constant", warmup_steps=4)
    rates = _rates(cfg, 8)
    np.testing.assert_allclose(rates, [0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1], rtol=1e-6)


def test_cosine_schedule_by_hand() -> None:
    cfg = OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_steps=1)
    fall = [2 * (0.9 * 0.5 * (1 + math.cos(math.pi * t / 4)) + 0.1) for t in range(4)]
    np.testing.assert_allclose(_rates(cfg, 5), [1.0, *fall], rtol=1e-6)
    assert float(make_schedule(cfg, 5)(5)) == pytest.approx(0.2)  # a tenth, at the end
    assert fall[2] == pytest.approx(1.1)


def test_no_warm_up_starts_at_the_peak() -> None:
    cfg = OptimizerConfig(learning_rate=3.0, schedule="constant", warmup_steps=0)
    assert _rates(cfg, 3) == pytest.approx([3.0, 3.0, 3.0])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_warm_up_longer_than_the_run_still_reaches_the_peak(schedule: str) -> None:
    cfg = OptimizerConfig(learning_rate=1.0, schedule=schedule, warmup_steps=10)
    assert _rates(cfg, 3) == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert _rates(cfg, 1) == pytest.approx([1.0])
    assert float(make_schedule(cfg, 0)(0)) > 0


def test_the_first_update_is_the_schedules_rate_times_the_sign() -> None:
    """Adam's first step is lr * g / |g|: 0.1 / 5 where the warm-up has five parts."""
    cfg = OptimizerConfig(learning_rate=0.1, schedule="constant", warmup_steps=4, weight_decay=0.0)
    optimizer = make_optimizer(cfg, 100)
    params = {"w": jnp.array([1.0, -2.0])}
    updates, _ = optimizer.update({"w": jnp.array([0.3, -0.1])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.02, 0.02], rtol=1e-4)


def test_weight_decay_is_decoupled() -> None:
    cfg = OptimizerConfig(0.1, schedule="constant", warmup_steps=0, weight_decay=0.5)
    optimizer = make_optimizer(cfg, 10)
    params = {"w": jnp.array([4.0])}
    updates, _ = optimizer.update({"w": jnp.array([0.0])}, optimizer.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.1 * 0.5 * 4.0], rtol=1e-5)


def test_large_gradients_are_scaled_down_before_adam_sees_them() -> None:
    """Two steps, gradients g and 100 g: unclipped, the moments would weigh the second more."""
    cfg = OptimizerConfig(1.0, schedule="constant", warmup_steps=0, max_grad_norm=1.0)
    optimizer = make_optimizer(cfg, 10)
    params = {"w": jnp.array([0.0, 0.0])}
    state = optimizer.init(params)
    m, v = np.zeros(2), np.zeros(2)
    for step, scale in enumerate((1.0, 100.0), start=1):
        g = scale * np.array([0.6, -0.3])
        updates, state = optimizer.update({"w": jnp.array(g)}, state, params)
        g = g / max(1.0, float(np.linalg.norm(g)))
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        expected = -(m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        np.testing.assert_allclose(updates["w"], expected, rtol=1e-4)


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="learning-rate 0"):
        OptimizerConfig(learning_rate=0.0)


def test_linear_schedule_by_hand() -> None:
    cfg = OptimizerConfig(learning_rate=2.0, schedule="linear", warmup_steps=1)
    np.testing.assert_allclose(_rates(cfg, 5), [1.0, 2.0, 1.55, 1.1, 0.65], rtol=1e-6)
    assert float(make_schedule(cfg, 5)(5)) == pytest.approx(0.2)
