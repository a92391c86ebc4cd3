"""Mean log-probabilities beside a full forward pass in NumPy, and what they prefer."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from small_model import hidden_states, random_params, small_model

from persrm_jax.data.batches import sft_batch
from persrm_jax.data.prompts import PromptConfig
from persrm_jax.evaluation.judge import EvalConfig
from persrm_jax.evaluation.likelihood import encode_candidates, make_likelihood
from persrm_jax.models.config import ComputeConfig
from persrm_jax.models.decoder import vocab_weight
from persrm_jax.models.params import Params, init_params
from persrm_jax.sharding import MeshShape, make_mesh
from persrm_jax.tokenizer import train_tokenizer
from persrm_jax.training.sft import make_sft_loss
from persrm_jax.types import Pair

TEXTS = ["the roses are red", "the pond is deep, maybe!", "we do not like the fence"]
TOKENIZER = train_tokenizer(TEXTS, 280)
MODEL = small_model(vocab_size=320)
COMPUTE = ComputeConfig()
PAIR = Pair(
    pair_id="p0",
    author="ann",
    author_split="test",
    domain="letters",
    prompt="",
    exemplars=("We saw the pond!", "maybe the roses!"),
    exemplar_ids=("e0", "e1"),
    chosen="maybe the fence!",
    chosen_id="c",
    rejected="The report is about the budget of the office.",
    rejected_id="r",
    rejected_author="bob",
    negative_type="other_author",
    order="AB",
    writer="human",
    seed=0,
)
PAIRS = [
    PAIR,
    dataclasses.replace(PAIR, pair_id="p1", exemplars=(), exemplar_ids=()),
    dataclasses.replace(PAIR, pair_id="p2", prompt="What of the fence?"),
]


def judge_of(mesh: Mesh, **options: Any):  # noqa: ANN201
    return make_likelihood(
        MODEL,
        EvalConfig(batch_size=8),
        tokenizer=TOKENIZER,
        prompt=PromptConfig(),
        compute=COMPUTE,
        seed=4,
        mesh=mesh,
        **options,
    )


def by_hand(params: Params, before: str, text: str) -> float:
    """Mean log-probability of the text's tokens, from all logits of one row. What comes after them
    nothing before sees: one length, so that one program is compiled."""
    context, ids = TOKENIZER.encode(before), TOKENIZER.encode(text)
    end = len(context) + len(ids)
    row = np.array([[*context, *ids, *[7] * (160 - end)]])
    hidden = np.asarray(hidden_states(params, MODEL, row)[0], np.float64)
    logits = hidden @ np.asarray(vocab_weight(params), np.float64).T
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    places = range(len(context), end)
    return float(np.mean([logprobs[i - 1, row[0, i]] for i in places]))


CONTEXTS = {
    "p0": "\n\nWe saw the pond!\n\nmaybe the roses!\n\n",
    "p1": "\n\n",
    "p2": "\n\nWe saw the pond!\n\nmaybe the roses!\n\nWhat of the fence?\n\n",
}


def test_scores_equal_those_of_a_full_forward_pass(mesh: Mesh) -> None:
    params = random_params(MODEL)
    rows = judge_of(mesh)(params, PAIRS, "2", "likelihood")
    assert [(r.pair_id, r.order) for r in rows] == [
        (p.pair_id, o) for p in PAIRS for o in ("AB", "BA")
    ]
    for pair, (ab, ba) in zip(PAIRS, zip(rows[::2], rows[1::2], strict=True), strict=True):
        chosen, rejected = (
            by_hand(params, CONTEXTS[pair.pair_id], text) for text in (pair.chosen, pair.rejected)
        )
        assert ab.score_a == pytest.approx(10 * np.exp(chosen), rel=1e-3)
        assert ab.score_b == pytest.approx(10 * np.exp(rejected), rel=1e-3)
        assert (ba.score_a, ba.score_b) == (ab.score_b, ab.score_a)
        assert ab.verdict == ("A" if chosen > rejected else "B") != ba.verdict
        assert (ab.model, ab.condition, ab.seed, ab.parsed, ab.tokens) == (
            "likelihood",
            "2",
            4,
            True,
            0,
        )


def test_a_gain_is_what_the_exemplars_add(mesh: Mesh) -> None:
    params = random_params(MODEL)
    rows = judge_of(mesh, is_gain=True)(params, PAIRS, "2", "likelihood_gain")
    bare = {"p0": "\n\n", "p1": "\n\n", "p2": "\n\nWhat of the fence?\n\n"}
    for pair, ab in zip(PAIRS, rows[::2], strict=True):
        gain = by_hand(params, CONTEXTS[pair.pair_id], pair.chosen) - by_hand(
            params, bare[pair.pair_id], pair.chosen
        )
        assert ab.score_a == pytest.approx(10 / (1 + np.exp(-gain)), rel=1e-3)
    assert [r.verdict for r in rows[2:4]] == ["tie", "tie"], "nothing was shown"


def test_a_mesh_scores_as_one_device_does(mesh: Mesh) -> None:
    params = random_params(MODEL)
    one = judge_of(mesh)(params, PAIRS, "2", "likelihood")
    many = make_mesh(MeshShape(8, 1))
    with jax.set_mesh(many):
        found = judge_of(many)(params, PAIRS, "2", "likelihood")
    assert [r.verdict for r in found] == [r.verdict for r in one]
    np.testing.assert_allclose([r.score_a for r in found], [r.score_a for r in one], rtol=1e-4)


@pytest.mark.slow
def test_a_model_prefers_how_the_person_goes_on(mesh: Mesh) -> None:
    """Trained on one text after one person's exemplars and on the other after another's; both
    candidates are as likely to it without exemplars."""
    other = dataclasses.replace(
        PAIR,
        pair_id="p9",
        exemplars=("The meeting is about the report.", "The printer is about to stop."),
        chosen=PAIR.rejected,
        rejected=PAIR.chosen,
    )
    sets = [PAIR, other]
    rows = [encode_candidates([pair], TOKENIZER, PromptConfig())[0] for pair in sets]
    batch = jax.tree.map(jnp.asarray, sft_batch(rows, TOKENIZER.pad_id))
    loss, optimizer = make_sft_loss(MODEL, COMPUTE), optax.adam(1e-2)
    params = init_params(MODEL, jax.random.key(0), mesh)
    moments = optimizer.init(params)

    @jax.jit
    def step(params: Params, moments: optax.OptState) -> tuple[Params, optax.OptState]:
        gradient = jax.grad(lambda p: loss(p, batch)[0])(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments

    for _ in range(40):
        params, moments = step(params, moments)
    for is_gain in (False, True):
        found = judge_of(mesh, is_gain=is_gain)(params, sets, "2", "likelihood")
        assert [r.verdict for r in found] == ["A", "B", "A", "B"]


def test_a_text_that_is_too_long_is_named() -> None:
    with pytest.raises(ValueError, match=r"pair p0: a candidate after its exemplars takes \d+ tok"):
        encode_candidates([PAIR], TOKENIZER, PromptConfig(max_tokens=20))
