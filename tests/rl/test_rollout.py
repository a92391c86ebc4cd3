import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_model import SMALL, hidden_states

from persrm_jax.data.prompts import Judgement, PromptConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.groups import plain_rows
from persrm_jax.models.params import init_params
from persrm_jax.rl.rewards import RewardConfig
from persrm_jax.rl.rollout import JudgedRollout, completion_texts, roll_out
from persrm_jax.sampling import Completions, SamplingConfig, make_generate
from persrm_jax.tokenizer import Tokenizer, byte_tokenizer
from persrm_jax.training.rft import RftConfig, describe, rollout_metrics
from persrm_jax.types import Groups, Pair, Rollout

BYTES = byte_tokenizer()
END = BYTES.end_ids[0]
PROMPT = PromptConfig(template="compact", answer="verdict")
GOOD_A = "<think>x</think><answer>[[A]]</answer>"
GOOD_B = "<think>x</think><answer>[[B]]</answer>"


def _pair(number: int, order: str, shown: str = "hey") -> Pair:
    return Pair(
        f"p{number}", "ann", "train", "d", "", (shown,), ("1",), f"mine {number}", "2",
        f"theirs {number}", "3", "bob", "other_author", order, "human", 0,
    )  # fmt: skip


def _completions(texts: list[str | None], length: int) -> Completions:
    """Rows that say `texts` and end; None is cut off before its end."""
    tokens = np.full((len(texts), length), BYTES.pad_id, np.int32)
    mask = np.zeros((len(texts), length), bool)
    for i, text in enumerate(texts):
        ids = [*BYTES.encode(text), END] if text is not None else BYTES.encode("A") * length
        tokens[i, : len(ids)], mask[i, : len(ids)] = ids, True
    logprobs = np.where(mask, -np.arange(len(texts), dtype=np.float32)[:, None] - 1, 0)
    return Completions(jnp.array(tokens), jnp.array(mask), jnp.array(logprobs, jnp.float32))


def test_rows_are_grouped_by_pair_and_rewarded_by_its_order(mesh: Mesh) -> None:
    pairs = [_pair(0, "AB"), _pair(1, "BA", shown="a longer text")]
    texts = [GOOD_A, GOOD_B, "no idea", GOOD_A, GOOD_B, None]
    asked = {}

    def generate(
        params: object, tokens: jax.Array, mask: jax.Array, keys: jax.Array
    ) -> Completions:
        asked.update(tokens=np.array(tokens), mask=np.array(mask), keys=jax.random.key_data(keys))
        return _completions(texts, 48)

    judged = roll_out(
        {},
        generate,
        pairs,
        3,
        jax.random.key(0),
        tokenizer=BYTES,
        prompt=PROMPT,
        reward_cfg=RewardConfig(1.0, 0.5),
        prompt_length=96,
        mesh=mesh,
    )

    assert judged.completions == [*texts[:5], "A" * 48]
    verdicts = [j.verdict if j else None for j in judged.judgements]
    assert verdicts == ["A", "B", None, "A", "B", None]
    assert judged.rewards.tolist() == [1.5, -0.5, -1.0, -0.5, 1.5, -1.0]
    assert judged.correct.tolist() == [1, 0, 0, 0, 1, 0]
    assert len({tuple(row) for row in asked["keys"].tolist()}) == 6, "each row has its own key"

    rollout = judged.rollout
    groups = rollout.groups
    assert asked["tokens"].shape == groups.prompt_tokens.shape == (2, 96)
    assert groups.tokens.shape == groups.mask.shape == rollout.logprobs.shape == (2, 3, 48)
    for pair, order, ids, mask in zip(
        pairs, ("AB", "BA"), groups.prompt_tokens, groups.prompt_mask, strict=True
    ):
        shown = BYTES.decode(ids[mask])
        mine = f"{'A' if order == 'AB' else 'B'}: {pair.chosen}"
        assert f"person: {pair.exemplars[0]}\n" in shown and mine in shown
        assert mask[-1] and not mask[0]
    np.testing.assert_array_equal(rollout.logprobs[1, 0], np.where(groups.mask[1, 0], -4, 0))


def test_completion_texts_leave_out_the_end_and_what_follows() -> None:
    tokens = np.array([[*BYTES.encode("ab"), END, *BYTES.encode("zz")], [*BYTES.encode("hello")]])
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], bool)
    assert completion_texts(tokens, mask, BYTES) == ["ab", "hello"]


@pytest.fixture(scope="module")
def sampled(mesh: Mesh) -> JudgedRollout:
    """A real rollout of a random model whose end token is likely, so that rows end early."""
    params = init_params(SMALL, jax.random.key(0), mesh)
    params["embed"]["weight"] = params["embed"]["weight"].at[END].multiply(4.0)
    generate = make_generate(
        SMALL,
        SamplingConfig(max_new_tokens=24),
        end_ids=(END, 65, 66, 67),
        pad_id=BYTES.pad_id,
        num_samples=4,
    )
    judged = roll_out(
        params,
        generate,
        [_pair(0, "AB"), _pair(1, "BA", shown="a longer text")],
        4,
        jax.random.key(1),
        tokenizer=BYTES,
        prompt=PROMPT,
        reward_cfg=RewardConfig(),
        prompt_length=96,
        mesh=mesh,
    )
    return judged, params


def test_nothing_after_the_first_end_token_is_trained_on(sampled: tuple) -> None:
    judged, _ = sampled
    rows = plain_rows(jax.tree.map(jnp.asarray, judged.rollout.groups))
    ends = {END, 65, 66, 67}
    assert BYTES.pad_id not in BYTES.end_ids
    num_ended = 0
    for tokens, mask in zip(rows.tokens, rows.loss_mask, strict=True):
        completion = tokens[96:].tolist()
        first = next((i for i, t in enumerate(completion) if t in ends), None)
        length = 24 if first is None else first + 1
        assert mask.astype(int).tolist() == [0] * 96 + [1] * length + [0] * (24 - length)
        num_ended += first is not None and first < 23
    assert num_ended > 0, "the fixture should hold rows that end early"


def test_the_samplers_logprobs_belong_to_the_rows_tokens(sampled: tuple) -> None:
    """Each row alone, unpadded, through the plain forward pass."""
    judged, params = sampled
    rollout = judged.rollout
    rows = jax.tree.map(np.asarray, plain_rows(jax.tree.map(jnp.asarray, rollout.groups)))
    sampler, mask = (x.reshape(8, -1) for x in (rollout.logprobs, rollout.groups.mask))
    lengths = set()
    for i in range(8):
        keep = rows.segment_ids[i] == 1
        ids = rows.tokens[i][keep][None]
        np.testing.assert_array_equal(rows.positions[i][keep], np.arange(ids.shape[1]))
        hidden = hidden_states(params, SMALL, ids)
        logits = np.asarray(hidden[0] @ vocab_weight(params).T, np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        count = int(mask[i].sum())
        lengths.add(count)
        token_logprobs = logprobs[np.arange(-count - 1, -1), ids[0, -count:]]
        np.testing.assert_allclose(sampler[i][:count], token_logprobs, atol=1e-4)
        assert (sampler[i][count:] == 0).all()
    assert len(lengths) > 1


def test_completions_of_a_group_differ(sampled: tuple) -> None:
    judged, _ = sampled
    tokens = judged.rollout.groups.tokens.reshape(8, -1)
    assert len({tuple(row) for row in tokens.tolist()}) > 4


def test_rollout_metrics_by_hand() -> None:
    A, B, tie = Judgement("A", 7.0, 3.0), Judgement("B", 1.0, 2.0), Judgement("tie", 4.0, 4.0)
    tokens = np.array([[5, 2, 0], [5, 6, 7], [9, 0, 0], [3, 3, 2], [5, 5, 2], [2, 0, 0]], np.int32)
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], bool)
    zeros = np.zeros((3, 3))
    tokens, mask = tokens.reshape(3, 2, 3), mask.reshape(3, 2, 3)
    groups = Groups(zeros.astype(np.int32), zeros.astype(bool), tokens, mask)
    judged = JudgedRollout(
        Rollout(groups, np.zeros((3, 2, 3), np.float32)),
        [""] * 6,
        [A, B, tie, None, None, None],
        np.array([1, -1, 0, -1, -1, -1], np.float32),
        np.array([1, 0, 0.5, 0, 0, 0], np.float32),
    )
    cfg = RftConfig(group_size=2)
    metrics = rollout_metrics(judged, cfg, (2, 9))
    assert metrics.pop("sampler/checksum") == zlib.crc32(tokens.tobytes()) % 2**24
    assert metrics == pytest.approx(
        {
            "reward/mean": -3 / 6,
            "reward/std": (5 / 6 - (3 / 6) ** 2) ** 0.5,
            "reward/accuracy": 1.5 / 6,
            "reward/format": 3 / 6,
            "reward/ties": 1 / 6,
            "reward/varied_groups": 2 / 3,  # (1, -1), (0, -1), (-1, -1)
            "length/completion": (2 + 3 + 1 + 3 + 3 + 1) / 6,
            "length/truncated": 1 / 6,  # the second row
        }
    )


def test_a_described_rollout_shows_its_texts(mesh: Mesh) -> None:
    def generate(*inputs: object) -> Completions:
        return _completions([GOOD_B, GOOD_A], 48)

    pair = _pair(7, "BA")
    judged = roll_out(
        {},
        generate,
        [pair],
        2,
        jax.random.key(0),
        tokenizer=BYTES,
        prompt=PROMPT,
        reward_cfg=RewardConfig(),
        prompt_length=96,
        mesh=mesh,
    )
    text = describe(judged, [pair])
    for shown in ("hey", "**A** theirs 7", "**B** mine 7", "**Right** B", GOOD_B, "reward +1.0"):
        assert shown in text


def test_the_pad_id_is_never_an_end_id() -> None:
    tokenizer: Tokenizer = byte_tokenizer()
    assert tokenizer.pad_id not in tokenizer.end_ids
