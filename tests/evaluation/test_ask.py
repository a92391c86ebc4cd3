"""How prompts are batched, beside counts by hand and answers worked out on paper."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import Mesh
from planted_judge import PROMPT, planted_config, planted_model, planted_score

from persrm_jax.data.batches import common_start
from persrm_jax.data.prompts import BOTH_ORDERS
from persrm_jax.evaluation import judge
from persrm_jax.evaluation.ask import Plan, padded, plan_batches
from persrm_jax.evaluation.judge import make_judge
from persrm_jax.types import Pair


def test_pads_are_few_and_hold_the_prompt() -> None:
    for length in range(1, 5000):
        assert length <= padded(length) <= max(32, 1.5 * length + 32)
        assert padded(padded(length)) == padded(length)
    ladder = sorted({padded(i) for i in range(1, 4097)})
    assert ladder == [32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]


def test_prompts_go_with_those_of_their_length() -> None:
    prompts = [[1] * length for length in (3, 70, 5, 40, 4)]
    batches = plan_batches(prompts, range(5), 2, 20)
    assert batches == [
        Plan([0, 2], 0, 32),
        Plan([4], 0, 32),
        Plan([3], 0, 64),
        Plan([1], 0, 96),
    ]


def test_a_long_start_is_read_once() -> None:
    start, ends = [*range(400)], [[7] * 20, [8] * 33, [9] * 30, [5] * 31]
    prompts = [start + end for end in ends] + [[3] * 30]
    alike = ["a", "a", "a", "a", "b"]
    assert plan_batches(prompts, alike, 4, 20) == [Plan([0, 1, 2, 3], 400, 64), Plan([4], 0, 32)]
    # Of three in a batch of two, the last is cheaper to read whole.
    found = plan_batches(prompts[:3], alike[:3], 2, 20)
    assert found == [Plan([0, 1], 400, 64), Plan([2], 0, 512)]
    # Two devices read it twice, which spares nothing.
    two = plan_batches(prompts[:3], alike[:3], 2, 20, num_devices=2)
    assert all(batch.shared == 0 for batch in two)
    # A batch that is half empty costs its empty rows: in short answers less than it spares.
    assert all(batch.shared for batch in plan_batches(prompts[:4], alike[:4], 8, 100))
    assert not any(batch.shared for batch in plan_batches(prompts[:4], alike[:4], 8, 400))
    # A short start is not worth it.
    short = [prompt[390:] for prompt in prompts[:4]]
    assert not any(batch.shared for batch in plan_batches(short, alike[:4], 4, 20))


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), min_size=1, max_size=40),
    st.integers(1, 9),
    st.sampled_from([1, 2, 8]),
)
def test_every_prompt_is_asked_once(
    made: list[tuple[int, int]], batch_size: int, num_devices: int
) -> None:
    prompts = [[who] * 60 * who + [9] * length for who, length in made]
    batches = plan_batches(prompts, [who for who, _ in made], batch_size, 9, num_devices)
    assert Counter(i for b in batches for i in b.rows) == Counter(range(len(prompts)))
    for batch in batches:
        assert 0 < len(batch.rows) <= batch_size
        chosen = [prompts[i] for i in batch.rows]
        assert len({tuple(p[: batch.shared]) for p in chosen}) == 1
        assert all(0 < len(p) - batch.shared <= batch.length for p in chosen)
        if not batch.shared:
            assert {padded(len(p)) for p in chosen} == {batch.length}


def test_a_common_start_leaves_a_token_to_each() -> None:
    assert common_start([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_start([[1, 2], [1, 2], [1, 2, 3]]) == 1
    assert common_start([[1], [2]]) == 0


def _pairs(num_sets: int, num_each: int) -> list[Pair]:
    rng = np.random.default_rng(0)

    def text() -> str:
        return "".join(rng.choice(list("xab"), rng.integers(4, 9)))

    return [
        Pair(
            pair_id=f"{s}-{i}",
            author=f"author {s}",
            author_split="test",
            domain="d",
            prompt="",
            exemplars=("x" * s + "c" * (30 - s),),
            exemplar_ids=(str(s),),
            chosen=text(),
            chosen_id=f"c{s}-{i}",
            rejected=text(),
            rejected_id=f"r{s}-{i}",
            rejected_author="someone else",
            negative_type="other_author",
            order="AB",
            writer="human",
            seed=0,
        )
        for i in range(num_each)
        for s in range(num_sets)
    ]


def test_exemplars_that_pairs_share_are_read_once(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Plan] = []

    def spy(*args: object, **kwargs: object) -> list[Plan]:
        planned.extend(found := plan_batches(*args, **kwargs))  # type: ignore[arg-type]
        return found

    monkeypatch.setattr(judge, "plan_batches", spy)
    cfg, model, pairs = planted_config(), planted_model(), _pairs(num_sets=3, num_each=5)
    found = make_judge(
        model.config,
        replace(cfg.eval, batch_size=8),
        tokenizer=model.tokenizer,
        prompt=PROMPT,
        compute=cfg.compute,
        seed=0,
        mesh=mesh,
    )(model.params, pairs, "1", "planted")
    assert sum(len(b.rows) for b in planned if b.shared > 30) >= 24
    assert [(p.pair_id, p.order) for p in found] == [
        (pair.pair_id, order) for pair in pairs for order in BOTH_ORDERS
    ]
    for prediction, pair in zip(found[::2], pairs, strict=True):
        scores = [planted_score(pair.exemplars, t) for t in (pair.chosen, pair.rejected)]
        assert [prediction.score_a, prediction.score_b] == scores
    assert len({p.score_a for p in found}) > 2
