import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from small_model import SMALL, hidden_states

from persrm_jax.data.batches import batch_indices
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.params import Params, init_params
from persrm_jax.rl.advantages import AdvantageConfig, group_relative
from persrm_jax.rl.losses import LossConfig
from persrm_jax.rl.rewards import RewardConfig
from persrm_jax.sampling import Ending, SamplingConfig
from persrm_jax.tokenizer import byte_tokenizer
from persrm_jax.training.guard import StepLog
from persrm_jax.training.optimizer import OptimizerConfig, make_optimizer
from persrm_jax.training.rft import make_rft_step
from persrm_jax.training.rft_config import RftConfig
from persrm_jax.training.rft_programs import (
    RftBatch,
    make_rft_loss,
    make_rft_programs,
    whole_batch,
)
from persrm_jax.training.step import init_state, make_train_step
from persrm_jax.types import Groups, Pair, Rollout

COMPUTE = ComputeConfig()
START = 6
BYTES = byte_tokenizer()


def _rollout(lengths: list[int]) -> Rollout:
    """One group, its prompt of four tokens in six places."""
    rng = np.random.default_rng(0)
    prompt_mask = np.arange(START)[None] >= 2
    mask = np.arange(5) < np.array(lengths)[None, :, None]
    prompt = rng.integers(3, 300, (1, START)).astype(np.int32) * prompt_mask
    completion = rng.integers(3, 300, mask.shape).astype(np.int32) * mask
    groups = Groups(prompt, prompt_mask, completion, mask)
    return Rollout(groups, np.zeros(mask.shape, np.float32), np.zeros(mask.shape, bool))


def _sums(params: Params, rollout: Rollout, temperature: float = 1.0) -> np.ndarray:
    """log p of each whole completion, each row alone and unpadded."""
    sums, groups = [], rollout.groups
    prompt = groups.prompt_tokens[0][groups.prompt_mask[0]]
    for tokens, mask in zip(groups.tokens[0], groups.mask[0], strict=True):
        ids = np.concatenate([prompt, tokens[mask]])[None]
        hidden = hidden_states(params, SMALL, ids)
        logits = np.asarray(hidden[0]) @ np.asarray(vocab_weight(params)).T / temperature
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        places = np.arange(len(prompt), ids.shape[1])
        sums.append(float(logprobs[places - 1, ids[0, places]].sum()))
    return np.array(sums)


def _batch(rollout: Rollout, rewards: list[float], ref: jax.Array | None) -> RftBatch:
    groups, logprobs, _ = jax.tree.map(jnp.asarray, rollout)
    advantages = group_relative(jnp.array(rewards), len(rewards), AdvantageConfig())
    return whole_batch(groups, advantages[None], logprobs, ref_logprobs=ref)


@pytest.fixture(scope="module")
def params(mesh: Mesh) -> Params:
    return init_params(SMALL, jax.random.key(0), mesh)


@pytest.mark.parametrize("rewards", [[1.0, -1.0], [-1.0, 1.0]])
@pytest.mark.parametrize("kl_coef", [0.0, 1e-3])
def test_a_step_raises_the_rewarded_completion(
    mesh: Mesh, params: Params, rewards: list[float], kl_coef: float
) -> None:
    rollout = _rollout([5, 4])
    before = _sums(params, rollout)
    loss_cfg = LossConfig(kl_coef=kl_coef)
    programs = make_rft_programs(SMALL, COMPUTE, RftConfig(), loss_cfg, ending=Ending((1,), 0))
    ref = programs.score(params, rollout.groups) if kl_coef else None
    loss_fn = make_rft_loss(SMALL, COMPUTE, loss_cfg, temperature=1.0)
    optimizer = optax.sgd(0.01)
    state = init_state(params, optimizer, jax.random.key(0), mesh)
    state, metrics = make_train_step(loss_fn, optimizer)(state, _batch(rollout, rewards, ref))
    gain = _sums(state.params, rollout) - before
    good = int(np.argmax(rewards))
    assert gain[good] > 1e-3 and gain[1 - good] < -1e-3
    # On policy the surrogate is minus the mean advantage: 0 for a group.
    assert float(metrics["loss/policy"]) == pytest.approx(0.0, abs=1e-6)
    assert float(metrics["loss/scale"]) == pytest.approx(2**-0.5, rel=1e-3)
    assert float(metrics["ratio/max"]) == pytest.approx(1.0)


def test_equal_rewards_move_nothing(params: Params) -> None:
    loss_fn = make_rft_loss(SMALL, COMPUTE, LossConfig(kl_coef=0.0), temperature=1.0)
    grads = jax.jit(jax.grad(loss_fn, has_aux=True))(
        params, _batch(_rollout([5, 4]), [1.0, 1.0], None)
    )
    assert float(optax.tree.norm(grads[0])) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_is_that_of_the_policy_gradient(params: Params, temperature: float) -> None:
    """d loss / dw = -mean over rows of A_i * d(mean token log p_i) / dw, by a finite difference of
    the rows' plain log-probabilities along a random direction."""
    rollout = _rollout([5, 3, 1])
    rewards = [1.0, -1.0, 0.5]
    loss_fn = make_rft_loss(SMALL, COMPUTE, LossConfig(kl_coef=0.0), temperature=temperature)
    grads = jax.jit(jax.grad(loss_fn, has_aux=True))(params, _batch(rollout, rewards, None))[0]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    direction = tree.unflatten(
        [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )
    slope = sum(
        float(jnp.vdot(g, d))
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    r = np.array(rewards)
    advantages = (r - r.mean()) / (r.std(ddof=1) + 1e-4)

    def objective(eps: float) -> float:
        moved = jax.tree.map(lambda x, d: x + eps * d, params, direction)
        return -np.mean(advantages * _sums(moved, rollout, temperature) / np.array([5, 3, 1]))

    eps = 2e-4
    expected = (objective(eps) - objective(-eps)) / (2 * eps)
    assert abs(expected) > 0.1
    assert slope == pytest.approx(expected, rel=2e-2)


def _pairs() -> list[Pair]:
    return [
        Pair(
            f"p{i}", "ann", "train", "d", "", ("hey",), ("1",), f"mine {i}", "2", f"theirs {i}",
            "3", "bob", "other_author", ("AB", "BA")[i % 2], "human", 0,
        )
        for i in range(5)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def step_log(mesh: Mesh, params: Params) -> list[StepLog]:
    cfg = RftConfig(
        steps=3,
        prompts=2,
        group_size=4,
        sampling=SamplingConfig(max_new_tokens=8),
        reward=RewardConfig(),
        optimizer=OptimizerConfig(learning_rate=1e-2, schedule="constant", warmup_steps=1),
        text_every=2,
        histogram_every=2,
    )
    step_fn = make_rft_step(
        _pairs(),
        SMALL,
        COMPUTE,
        cfg,
        LossConfig(kl_coef=0.1),
        ref_params=params,
        tokenizer=BYTES,
        prompt=PromptConfig(template="compact"),
        seed=4,
        mesh=mesh,
    )
    state = init_state(params, make_optimizer(cfg.optimizer, 3), jax.random.key(0), mesh)
    logs = []
    for step in range(3):
        state, log = step_fn(state, step)
        logs.append(log)
    return logs


def test_a_step_logs_what_it_did(step_log: list[StepLog]) -> None:
    first = step_log[0].scalars
    assert first["reward/mean"] == -1 and first["reward/varied_groups"] == 0
    assert first["kl/mean"] == pytest.approx(0, abs=1e-5)
    assert first["sampler/logprob_gap_max"] < 1e-3
    assert 0 < first["entropy/mean"] <= np.log(320) + 1e-3
    assert 0 < first["length/completion"] <= 8
    assert [log.scalars["loss/learning_rate"] for log in step_log] == pytest.approx(
        [5e-3, 1e-2, 1e-2]
    )
    times = first["time/rollout_s"], first["time/train_s"], first["time/reference_s"]
    assert min(times) > 0
    tokens = first["time/rollout_tokens_per_s"] * first["time/rollout_s"]
    assert tokens == pytest.approx(8 * first["length/completion"])


def test_texts_come_every_so_often_and_at_the_end(step_log: list[StepLog]) -> None:
    assert [list(log.texts) for log in step_log] == [["rollout/sample"], [], ["rollout/sample"]]
    chosen = _pairs()[int(batch_indices(5, 2, 0, 4)[0])]
    assert chosen.chosen in step_log[0].texts["rollout/sample"]


def test_histograms_come_every_so_often_and_at_the_end(step_log: list[StepLog]) -> None:
    """The ratios of one update are all 1, and are not shown."""
    wanted = ["reward/each", "length/each", "advantage/each"]
    assert [list(log.histograms) for log in step_log] == [wanted, [], wanted]
    found = step_log[0].histograms
    assert {tag: int(one.counts.sum()) for tag, one in found.items()} == dict.fromkeys(wanted, 8)


@pytest.mark.parametrize(("kl_coef", "with_reference"), [(0.1, False), (0.0, True)])
def test_a_reference_goes_with_a_kl_coef(mesh: Mesh, kl_coef: float, with_reference: bool) -> None:
    with pytest.raises(ValueError, match="reference"):
        make_rft_step(
            _pairs(),
            SMALL,
            COMPUTE,
            RftConfig(),
            LossConfig(kl_coef=kl_coef),
            ref_params={} if with_reference else None,
            tokenizer=BYTES,
            prompt=PromptConfig(template="compact"),
            seed=0,
            mesh=mesh,
        )


@pytest.mark.parametrize(
    ("fields", "flag"),
    [
        ({"group_size": 1}, "--rft.group-size 1"),
        ({"sampling": SamplingConfig(temperature=0.0)}, "--rft.sampling.temperature 0"),
        ({"histogram_every": 0}, "--rft.histogram-every 0"),
        ({"text_every": 0}, "--rft.text-every 0"),
    ],
)
def test_a_bad_config_names_its_flag(fields: dict[str, object], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        RftConfig(**fields)
