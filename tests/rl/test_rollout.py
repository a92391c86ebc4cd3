import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_model import SMALL, hidden_states

from persrm_jax.data.prompts import Judgement, PromptConfig, questions
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.groups import plain_rows
from persrm_jax.models.params import Params, init_params
from persrm_jax.rl.rewards import CompletionRecord, RewardConfig, margin_reward
from persrm_jax.rl.rollout import (
    JudgedRollout,
    completion_texts,
    join_groups,
    judge_rollout,
    roll_out,
    take_groups,
)
from persrm_jax.sampling import Completions, Ending, SamplingConfig, make_generate
from persrm_jax.tokenizer import Tokenizer, byte_tokenizer
from persrm_jax.training.rft_metrics import rollout_metrics
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
    forced = jnp.zeros(mask.shape, bool)
    return Completions(jnp.array(tokens), jnp.array(mask), jnp.array(logprobs, jnp.float32), forced)


def _judged(
    params: Params,
    generate: Any,
    pairs: list[Pair],
    group_size: int,
    *,
    reward: RewardConfig,
    mesh: Mesh,
    prompt: PromptConfig = PROMPT,
    own: Any = None,
) -> JudgedRollout:
    ((asked, rollout),) = roll_out(
        params,
        generate,
        questions(pairs, prompt),
        group_size,
        jax.random.key(1),
        tokenizer=BYTES,
        prompt=prompt,
        prompt_length=96,
        mesh=mesh,
    )
    return judge_rollout(rollout, asked, tokenizer=BYTES, prompt=prompt, reward=reward, own=own)


def test_parts_are_under_way_before_the_first_is_looked_at(mesh: Mesh) -> None:
    """And draw what they would have drawn together."""
    asked = questions([_pair(i, "AB", shown=f"text {i}") for i in range(4)], PROMPT)
    calls: list[tuple[np.ndarray, np.ndarray]] = []

    def generate(
        params: object, tokens: jax.Array, mask: jax.Array, keys: jax.Array
    ) -> Completions:
        calls.append((np.array(tokens), np.array(jax.random.key_data(keys))))
        return _completions([GOOD_A, GOOD_B, None] * len(tokens), 48)

    def drawn(num_parts: int) -> Any:
        return roll_out(
            {},
            generate,
            asked,
            3,
            jax.random.key(1),
            tokenizer=BYTES,
            prompt=PROMPT,
            prompt_length=96,
            mesh=mesh,
            num_parts=num_parts,
        )

    ((_, whole),) = drawn(1)
    ((tokens, keys),) = calls
    calls.clear()
    shares = drawn(2)
    first = next(shares)
    assert len(calls) == 2
    parts = [first, *shares]
    assert [question for share, _ in parts for question in share] == asked
    np.testing.assert_array_equal(np.concatenate([call[0] for call in calls]), tokens)
    np.testing.assert_array_equal(np.concatenate([call[1] for call in calls]), keys)
    joined = join_groups([rollout.groups for _, rollout in parts])
    for one, other in zip(jax.tree.leaves(joined), jax.tree.leaves(whole.groups), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rows_are_grouped_by_pair_and_rewarded_by_its_order(mesh: Mesh) -> None:
    pairs = [_pair(0, "AB"), _pair(1, "BA", shown="a longer text")]
    texts = [GOOD_A, GOOD_B, "no idea", GOOD_A, GOOD_B, None]
    asked = {}

    def generate(
        params: object, tokens: jax.Array, mask: jax.Array, keys: jax.Array
    ) -> Completions:
        asked.update(tokens=np.array(tokens), mask=np.array(mask), keys=jax.random.key_data(keys))
        return _completions(texts, 48)

    judged = _judged(
        {},
        generate,
        pairs,
        3,
        reward=RewardConfig(1.0, 0.5),
        mesh=mesh,
    )

    assert [record.text for record in judged.records] == [*texts[:5], "A" * 48]
    verdicts = [r.judgement.verdict if r.judgement else None for r in judged.records]
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
        ending=Ending((END, 65, 66, 67), BYTES.pad_id),
        num_samples=4,
    )
    judged = _judged(
        params,
        generate,
        [_pair(0, "AB"), _pair(1, "BA", shown="a longer text")],
        4,
        reward=RewardConfig(),
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


def _records(
    judgements: list[Judgement | None], lengths: list[int], truncated: list[bool]
) -> list[CompletionRecord]:
    pair = _pair(0, "AB")
    rows = zip(judgements, lengths, truncated, strict=True)
    return [CompletionRecord(pair, "AB", "", j, n, 3, cut) for j, n, cut in rows]


def _hand_made(rewards: list[float]) -> JudgedRollout:
    """Three groups of two completions of at most three tokens."""
    A, B, tie = Judgement("A", 7.0, 3.0), Judgement("B", 1.0, 2.0), Judgement("tie", 4.0, 4.0)
    tokens = np.array([[5, 2, 0], [5, 6, 7], [9, 0, 0], [3, 3, 2], [5, 5, 2], [2, 0, 0]], np.int32)
    mask = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]], bool)
    prompts = np.arange(12).reshape(3, 4).astype(np.int32)
    groups = Groups(prompts, prompts % 4 > 0, tokens.reshape(3, 2, 3), mask.reshape(3, 2, 3))
    return JudgedRollout(
        Rollout(groups, np.zeros((3, 2, 3), np.float32), np.zeros((3, 2, 3), bool)),
        _records([A, B, tie, None, None, None], [2, 3, 1, 3, 3, 1], [False, True, *[False] * 4]),
        {"correct": np.array(rewards, np.float32)},
        np.array(rewards, np.float32),
    )


def test_rollout_metrics_by_hand() -> None:
    judged = _hand_made([1, -1, 0, -1, -1, -1])
    metrics = rollout_metrics(judged)
    tokens = judged.rollout.groups.tokens
    assert metrics.pop("sampler/checksum") == zlib.crc32(tokens.tobytes()) % 2**24
    assert metrics == pytest.approx(
        {
            "reward/mean": -3 / 6,
            "reward/std": (5 / 6 - (3 / 6) ** 2) ** 0.5,
            "reward/accuracy": 1.5 / 6,
            "reward/format": 3 / 6,
            "reward/ties": 1 / 6,
            "reward/varied_groups": 2 / 3,  # (1, -1), (0, -1), (-1, -1)
            "reward/missing": 0.0,
            "reward_part/correct": -3 / 6,
            "length/completion": (2 + 3 + 1 + 3 + 3 + 1) / 6,
            "length/longest": 3.0,
            "length/truncated": 1 / 6,  # the second row
            "length/padding": 1 - (9 + 13) / (12 + 18),
        }
    )


def test_rewards_that_are_missing_count_nowhere() -> None:
    judged = _hand_made([1, np.nan, 0, -1, np.nan, np.nan])
    assert judged.varied.tolist() == [False, True, False]
    metrics = rollout_metrics(judged)
    assert metrics["reward/mean"] == pytest.approx(0.0)
    assert metrics["reward/missing"] == pytest.approx(3 / 6)


def test_groups_are_taken_from_several_rollouts() -> None:
    first, second = _hand_made([1, -1, 0, -1, -1, -1]), _hand_made([5, 6, 7, 8, 9, 10])
    taken = take_groups([(first, np.array([1])), (second, np.array([0, 2]))])
    assert taken.rewards.tolist() == taken.components["correct"].tolist() == [0, -1, 5, 6, 9, 10]
    leaves = map(jax.tree.leaves, (taken.rollout.groups, first.rollout.groups))
    for found, want in zip(*leaves, strict=True):
        np.testing.assert_array_equal(found, want[[1, 0, 2]])
    lengths = [record.num_tokens for record in taken.records]
    assert lengths == [1, 3, 2, 3, 3, 1]


def test_a_text_shown_alone_is_rewarded_by_its_place_among_its_rivals(mesh: Mesh) -> None:
    """Two completions for the chosen text, then two for the rejected one."""
    scores = [8, 3, None, 5, 1, 1, 9, 9]
    texts = [
        f'<think>x</think><answer>{{"score": {x}}}</answer>' if x is not None else "so so"
        for x in scores
    ]
    prompt = PromptConfig(template="compact", answer="score")
    judged = _judged(
        {},
        lambda *inputs: _completions(texts, 64),
        [_pair(0, "BA"), _pair(1, "AB")],
        2,
        reward=RewardConfig(correct=1.0),
        mesh=mesh,
        prompt=prompt,
    )
    assert [record.order for record in judged.records] == ["AB", "AB", "BA", "BA"] * 2
    # 8 and 3 against 5; no answer; 5 against 8 and 3. Then 1 and 1 against 9 and 9.
    assert judged.rewards.tolist() == [1, -1, -1, 0, -1, -1, -1, -1]
    assert judged.correct.tolist() == [1, 0, 0, 0.5, 0, 0, 0, 0]
    margins = [margin_reward(record, RewardConfig()) for record in judged.records]
    assert margins == pytest.approx([0.3, -0.2, -1, 0.05, -0.8, -0.8, -0.8, -0.8])
    shown = judged.rollout.groups.prompt_tokens, judged.rollout.groups.prompt_mask
    said = [BYTES.decode(ids[mask]) for ids, mask in zip(*shown, strict=True)]
    for text, (mine, theirs) in zip(
        said, [(0, None), (None, 0), (1, None), (None, 1)], strict=True
    ):
        assert (f"text: mine {mine}" in text) == (mine is not None)
        assert (f"text: theirs {theirs}" in text) == (theirs is not None)


def test_the_pad_id_is_never_an_end_id() -> None:
    tokenizer: Tokenizer = byte_tokenizer()
    assert tokenizer.pad_id not in tokenizer.end_ids
