"""What a step does with a rollout beside one plain update of all of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_model import SMALL

from persrm_jax.data.batches import batch_indices
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.params import Params, init_params
from persrm_jax.rl.losses import LossConfig
from persrm_jax.rl.rewards import RewardConfig
from persrm_jax.sampling import Ending, SamplingConfig
from persrm_jax.tokenizer import byte_tokenizer
from persrm_jax.training.guard import StepLog
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer, num_updates
from persrm_jax.training.rft import make_rft_step, prompt_lengths
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.rft_metrics import ratio_histogram
from persrm_jax.training.rft_programs import (
    RATIO_EDGES,
    RftBatch,
    count_ratios,
    make_rft_programs,
)
from persrm_jax.training.step import TrainState, average, init_state, split_parts
from persrm_jax.types import Pair

BYTES = byte_tokenizer()
PROMPT = PromptConfig(template="compact")
T = 8
CFG = RftConfig(
    steps=4,
    prompts=4,
    group_size=2,
    sampling=SamplingConfig(max_new_tokens=T),
    # By length alone: a random model's answers do not parse.
    reward=RewardConfig(correct=0.0, overlong=1.0, overlong_buffer=T),
    optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=0),
)
NO_KL = LossConfig(kl_coef=0.0)


def _pairs(num: int = 12, longer: int = 1) -> list[Pair]:
    return [
        Pair(
            f"p{i}", "ann", "train", "d", "", ("hey " * (1 + i % 6) * longer,), ("1",),
            f"mine {i}", "2", f"theirs {i}", "3", "bob", "other_author", ("AB", "BA")[i % 2],
            "human", 0,
        )
        for i in range(num)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def params(mesh: Mesh) -> Params:
    """A random model that often ends early."""
    params = init_params(SMALL, jax.random.key(0), mesh)
    weight = params["embed"]["weight"]
    return params | {"embed": {"weight": weight.at[BYTES.end_id].multiply(6.0)}}


def run(
    mesh: Mesh,
    params: Params,
    cfg: RftConfig,
    loss: LossConfig = NO_KL,
    ref: Params | None = None,
    prompt: PromptConfig = PROMPT,
    steps: int = 1,
) -> tuple[TrainState, list[StepLog]]:
    step_fn = make_rft_step(
        _pairs(),
        SMALL,
        ComputeConfig(),
        cfg,
        loss,
        ref_params=ref,
        tokenizer=BYTES,
        prompt=prompt,
        seed=4,
        mesh=mesh,
    )
    optimizer = make_optimizer(cfg.optimizer, cfg.num_updates)
    state, logs = init_state(params, optimizer, jax.random.key(0), mesh), []
    for step in range(steps):
        state, log = step_fn(state, step)
        logs.append(log)
    return state, logs


def assert_close(found: Params, want: Params) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def moved(found: Params, start: Params) -> float:
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), found, start)
    return max(jax.tree.leaves(gaps))


def test_a_rollout_has_an_update_for_each_mini_batch_and_epoch(mesh: Mesh, params: Params) -> None:
    cfg = replace(CFG, mini_batches=2, epochs=2)
    state, (log,) = run(mesh, params, cfg)
    assert int(state.step) == num_updates(state.opt_state) == cfg.updates_a_step == 4
    batch: RftBatch = log.batch
    assert batch.old_logprobs is not None
    mask = np.asarray(batch.groups.mask)
    gap = np.abs(np.asarray(batch.old_logprobs) - batch.sampler_logprobs)[mask]
    assert gap.max() < 1e-4, "before the first update the policy is the sampler's"
    assert log.scalars["sampler/logprob_gap_max"] == pytest.approx(gap.max(), abs=1e-6)
    assert log.scalars["ratio/max"] > 1.001 and log.scalars["ratio/min"] < 0.999
    ratios = log.histograms["ratio/each"]
    counted = int(batch.counts.sum())
    assert ratios.counts.sum() == 2 * counted, "every token of each epoch"
    assert ratios.edges[0] <= log.scalars["ratio/min"] < ratios.edges[1]
    assert ratios.edges[-2] <= log.scalars["ratio/max"] < ratios.edges[-1]

    # The same by hand.
    programs = make_rft_programs(SMALL, ComputeConfig(), cfg, NO_KL, ending=Ending((1,), 0))
    optimizer = make_optimizer(cfg.optimizer, cfg.num_updates)
    want = init_state(params, optimizer, jax.random.key(0), mesh)
    parts = split_parts(batch, 2)
    np.testing.assert_array_equal(parts.groups.tokens[1], batch.groups.tokens[1::2])
    norms = []
    for i in (0, 1, 0, 1):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        want, metrics = programs.train(want, part)
        norms.append(float(metrics["loss/grad_norm"]))
    assert_close(state.params, want.params)
    assert log.scalars["loss/grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)


def test_ratios_are_counted_between_their_edges() -> None:
    """As NumPy counts them."""
    rng = np.random.default_rng(0)
    old, mask = rng.normal(-3, 1, (4, 50)), rng.random((4, 50)) < 0.7
    gap = rng.normal(0, 0.8, (4, 50))
    found = count_ratios(
        jnp.asarray(old + gap, jnp.float32), jnp.asarray(old, jnp.float32), jnp.asarray(mask)
    )
    want, _ = np.histogram(np.exp(gap)[mask], RATIO_EDGES)
    assert np.asarray(found).tolist() == want.tolist() and want[0] and want[-1]
    trimmed = ratio_histogram([np.array([0, 2, 0, 1, 0]), np.array([0, 1, 0, 0, 0])])
    assert trimmed is not None
    assert trimmed.counts.tolist() == [3, 0, 1]
    assert trimmed.edges.tolist() == list(RATIO_EDGES[1:5])
    assert ratio_histogram([]) is None


def test_one_update_is_the_mean_over_its_mini_batches_where_nothing_is_learnt(
    mesh: Mesh, params: Params
) -> None:
    """At a learning rate of nearly 0 the mini-batches' gradients are parts of one."""
    still = replace(CFG.optimizer, learning_rate=1e-12)
    one, many = (
        run(mesh, params, replace(CFG, optimizer=still, mini_batches=n))[1][0] for n in (1, 2)
    )
    assert many.scalars["loss/total"] == pytest.approx(one.scalars["loss/total"], abs=1e-6)
    assert many.scalars["sampler/checksum"] == one.scalars["sampler/checksum"]


def test_packed_groups_learn_the_same_in_whatever_parts(mesh: Mesh, params: Params) -> None:
    """The reference, the old policy and updates, of a rollout in mini-batches and parts."""
    cfg = replace(CFG, mini_batches=2, accumulate=2, epochs=2)
    other = jax.tree.map(lambda x: x * 1.1, params)
    _, (want,) = run(mesh, params, cfg, LossConfig(kl_coef=0.1), ref=other)
    _, (found,) = run(mesh, params, replace(cfg, pack_length=512), LossConfig(kl_coef=0.1), other)
    assert found.scalars["sampler/checksum"] == want.scalars["sampler/checksum"]
    for tag in ("loss/total", "loss/grad_norm", "kl/mean", "ratio/max"):
        assert found.scalars[tag] == pytest.approx(want.scalars[tag], rel=1e-4, abs=1e-6), tag
    mask = np.asarray(want.batch.groups.mask)
    for name in ("ref_logprobs", "old_logprobs"):
        ours, theirs = (np.asarray(getattr(log.batch, name))[mask] for log in (found, want))
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    packed = found.batch.groups.packed
    used = (np.asarray(packed.group_ids) > 0).mean()
    assert found.scalars["length/padding"] == pytest.approx(1 - used)


@pytest.mark.parametrize("answer", ["scores", "score"])
def test_a_rollout_in_parts_is_the_same(mesh: Mesh, params: Params, answer: Any) -> None:
    prompt = replace(PROMPT, answer=answer)
    (want,), (found,) = (
        run(mesh, params, replace(CFG, rollout_parts=n), prompt=prompt)[1] for n in (1, 2)
    )
    assert found.scalars["sampler/checksum"] == want.scalars["sampler/checksum"]
    for tag in ("loss/total", "loss/grad_norm", "reward/mean", "reward/std"):
        assert found.scalars[tag] == pytest.approx(want.scalars[tag], abs=1e-6), tag


def test_a_row_too_short_for_a_group_is_refused(mesh: Mesh, params: Params) -> None:
    match = r"--rft.pack-length 64: a group may take \d+ tokens \(a prompt of up to \d+, and 2 comp"
    with pytest.raises(ValueError, match=match):
        run(mesh, params, replace(CFG, pack_length=64))


@pytest.mark.parametrize("parts", [1, 2])
def test_a_reward_of_ones_own_that_always_fails_ends_the_run(
    mesh: Mesh, params: Params, tmp_path: Path, parts: int
) -> None:
    (tmp_path / "mine.py").write_text("def never(records):\n    raise OSError('no')\n")
    path = f"{tmp_path / 'mine.py'}:never"
    cfg = replace(CFG, reward=replace(CFG.reward, own=path), rollout_parts=parts)
    with pytest.raises(ValueError, match="never: it failed for every completion of step 0"):
        run(mesh, params, cfg)


def test_a_reward_that_fails_for_one_part_leaves_it_out(
    mesh: Mesh, params: Params, tmp_path: Path
) -> None:
    """All completions of one question fail, which is a part of its own."""
    code = (
        "def some(records):\n"
        "    assert records[0].pair.pair_id != 'PAIR'\n"
        "    return [0.0] * len(records)\n"
    )
    first = _pairs()[int(batch_indices(12, 4, 0, 4)[0])].pair_id
    (tmp_path / "mine.py").write_text(code.replace("PAIR", first))
    own = replace(CFG.reward, own=f"{tmp_path / 'mine.py'}:some")
    _, (log,) = run(mesh, params, replace(CFG, reward=own, rollout_parts=4))
    assert log.scalars["reward/missing"] == 1 / 4
    counts = np.asarray(log.batch.counts)
    assert not counts[0].any() and counts[1:].any()


@pytest.mark.parametrize("drop", [True, False])
def test_flat_groups_are_dropped_with_their_kl(mesh: Mesh, params: Params, drop: bool) -> None:
    """All answers are wrong: no group has anything to compare, but each a divergence."""
    cfg = replace(CFG, reward=RewardConfig(), drop_flat=drop)
    other = jax.tree.map(lambda x: x * 1.1, params)
    state, (log,) = run(mesh, params, cfg, LossConfig(kl_coef=0.5), ref=other)
    assert log.scalars["reward/varied_groups"] == 0
    assert log.scalars["reward/kept_groups"] == (0.0 if drop else 1.0)
    assert log.scalars["guard/skipped"] == 0
    if drop:
        assert moved(state.params, params) == 0
        assert log.scalars["loss/total"] == 0
    else:
        assert moved(state.params, params) > 1e-4


def test_means_are_over_the_groups_that_are_kept(mesh: Mesh, params: Params) -> None:
    """Dropping flat groups scales the gradient of the others up, and changes nothing else."""
    loss = replace(NO_KL, aggregate="sequence_mean")
    kept, all_ = (run(mesh, params, replace(CFG, drop_flat=d), loss)[1][0] for d in (True, False))
    share = kept.scalars["reward/kept_groups"]
    assert 0 < share < 1
    ratio = kept.scalars["loss/grad_norm"] / all_.scalars["loss/grad_norm"]
    assert ratio == pytest.approx(1 / share, rel=1e-4)


def test_rollouts_go_on_until_enough_groups_differ(mesh: Mesh, params: Params) -> None:
    cfg = replace(CFG, max_rollouts=4)
    _, logs = run(mesh, params, cfg, steps=3)
    numbers = [log.scalars["reward/rollouts"] for log in logs]
    assert max(numbers) > 1
    for log, number in zip(logs, numbers, strict=True):
        batch = log.batch
        advantages = np.asarray(batch.advantages)
        kept = np.asarray(batch.kept)
        assert batch.groups.tokens.shape == (4, 2, T)
        assert number == 4 or kept.all()
        np.testing.assert_array_equal(kept, np.abs(advantages).max(axis=1) > 0)
        assert not np.asarray(batch.counts)[~kept].any()
        assert log.scalars["reward/kept_groups"] == kept.mean()
        # Over all that was drawn, not the groups kept, nor the last rollout's.
        num_varied = log.scalars["reward/varied_groups"] * 4 * number
        assert num_varied >= 4 - 1e-6 if kept.all() else num_varied == pytest.approx(kept.sum())


def test_rollouts_of_a_step_ask_about_pairs_of_their_own(mesh: Mesh, params: Params) -> None:
    """And a step's are the same whether or not those before it took all of theirs."""
    cfg = replace(CFG, max_rollouts=2, reward=RewardConfig())  # always flat: both are taken
    _, logs = run(mesh, params, cfg, steps=2)
    shown = [
        BYTES.decode(row[row != BYTES.pad_id])
        for row in np.asarray(logs[1].batch.groups.prompt_tokens)
    ]
    filled = [_pairs()[i] for i in batch_indices(12, 4, 3, 4)]  # rollout 3 is step 1's second
    for text, pair in zip(shown, filled, strict=True):
        assert f": {pair.chosen}" in text


def test_nothing_is_learnt_from_what_was_cut_off(mesh: Mesh, params: Params) -> None:
    _, (log,) = run(mesh, params, replace(CFG, mask_truncated=True))
    batch = log.batch
    tokens, mask = np.asarray(batch.groups.tokens), np.asarray(batch.groups.mask)
    ended = (np.isin(tokens, BYTES.end_ids) & mask).any(axis=2)
    assert ended.any() and not ended.all()
    np.testing.assert_array_equal(batch.counts, mask & ended[..., None])


def test_a_divergence_in_the_reward_is_that_of_the_whole_completion(
    mesh: Mesh, params: Params
) -> None:
    other = jax.tree.map(lambda x: x * 1.2, params)
    cfg = replace(CFG, reward=replace(CFG.reward, kl=0.5))
    cfg = replace(cfg, advantage=replace(cfg.advantage, scale="none"))
    _, (log,) = run(mesh, params, cfg, ref=other)
    batch = log.batch
    mask = np.asarray(batch.groups.mask)
    lengths = mask.sum(axis=2)
    gap = np.where(mask, np.asarray(batch.sampler_logprobs) - batch.ref_logprobs, 0).sum(axis=2)
    rewards = -lengths / T - 0.5 * gap
    want = rewards - rewards.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(batch.advantages, want, atol=1e-4)
    assert np.abs(gap).max() > 0.1
    assert log.scalars["reward/mean"] == pytest.approx(np.mean(-lengths / T), abs=1e-6)


def test_forced_tokens_are_not_learnt(mesh: Mesh, params: Params) -> None:
    sampling = SamplingConfig(max_new_tokens=40, answer_tokens=4)
    cfg = replace(CFG, sampling=sampling)
    _, (log,) = run(mesh, params, cfg)
    batch = log.batch
    closing = BYTES.encode("\n</think>\n<answer>")
    tokens, mask = np.asarray(batch.groups.tokens), np.asarray(batch.groups.mask)
    first = 40 - 4 - len(closing)
    reached = mask[:, :, first]
    assert reached.any() and not reached.all()
    for p, g in zip(*np.nonzero(reached), strict=True):
        assert tokens[p, g, first : first + len(closing)].tolist() == closing
    forced = np.zeros(40, bool)
    forced[first : first + len(closing)] = True
    np.testing.assert_array_equal(batch.counts, mask & ~(reached[..., None] & forced))


@pytest.mark.parametrize("fields", [{}, {"think": False}], ids=["think", "no_think"])
def test_each_text_of_a_pair_is_asked_about_alone(
    mesh: Mesh, params: Params, fields: dict[str, Any]
) -> None:
    prompt = replace(PROMPT, answer="score", **fields)
    _, (log,) = run(mesh, params, CFG, prompt=prompt)
    groups = log.batch.groups
    shown = [BYTES.decode(row[row != BYTES.pad_id]) for row in np.asarray(groups.prompt_tokens)]
    pairs = [_pairs()[i] for i in batch_indices(12, 2, 0, 4)]
    want = [text for pair in pairs for text in (pair.chosen, pair.rejected)]
    assert all(f"text: {text}" in row for text, row in zip(want, shown, strict=True))


def test_prompts_are_padded_to_the_nearest_of_few_lengths() -> None:
    cfg = replace(CFG, steps=40, prompts=2)
    lengths = {
        n: prompt_lengths(_pairs(longer=10), replace(cfg, prompt_buckets=n), BYTES, PROMPT, 0)
        for n in (1, 2, 3)
    }
    assert len(set(lengths[1])) == 1
    assert 1 < len(set(lengths[2])) <= 2 and len(set(lengths[3])) <= 3
    assert sum(lengths[3]) <= sum(lengths[2]) < sum(lengths[1])
    assert max(lengths[2]) == lengths[1][0]
    assert prompt_lengths(_pairs(), replace(cfg, steps=0, prompt_buckets=3), BYTES, PROMPT, 0) == []


def test_metrics_of_several_updates_are_averaged() -> None:
    parts = [
        {"loss/total": 1.0, "ratio/max": 2.0, "ratio/min": 0.5, "guard/skipped": 0.0},
        {"loss/total": 4.0, "ratio/max": 1.5, "ratio/min": 0.7, "guard/skipped": 1.0},
    ]
    want = {"loss/total": 2.5, "ratio/max": 2.0, "ratio/min": 0.5, "guard/skipped": 1.0}
    assert average(parts) == want


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"mini_batches": 3}, "--rft.mini-batches 3: does not divide"),
        ({"epochs": 0}, "--rft.epochs 0"),
        ({"max_rollouts": 0}, "--rft.max-rollouts 0"),
        ({"prompt_buckets": 0}, "--rft.prompt-buckets 0"),
        ({"pack_length": -1}, "--rft.pack-length -1: a group's completions alone may take 16"),
        ({"pack_length": 16}, "--rft.pack-length 16: a group's completions alone may take 16"),
        ({"pack_length": 512, "shared_prefix": False}, "--rft.pack-length 512: packed groups"),
        ({"sampling": SamplingConfig(stop=("end",))}, "--rft.sampling.stop end"),
    ],
)
def test_a_bad_config_names_its_flag(fields: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        replace(CFG, **fields)
