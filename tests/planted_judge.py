"""A judge whose mind is known: a decoder of one layer, its weights set by hand.

It answers `<answer>{"score":D}</answer>` where D is the digit nearest to 20 times the share of x
among the tokens that it sees: the letters it says follow each other by a table in the head, and its
attention, whose queries are zero, averages an x counter over the prompt. So every score that comes
through tokenizer, sampler, service and all can be worked out on paper.
"""

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from small_model import small_model

from experiments.presets import PRESETS, RunConfig
from persrm_jax.data.prompts import PromptConfig, question_messages
from persrm_jax.evaluation.judge import EvalConfig
from persrm_jax.models.config import ModelConfig
from persrm_jax.models.load import Model, save_model
from persrm_jax.models.params import param_specs
from persrm_jax.runs import RunFolder
from persrm_jax.sampling import SamplingConfig
from persrm_jax.tokenizer import Tokenizer, train_tokenizer

BEFORE = ["<", "answer", '>{"', "score", '":']
"""Tokens that it says before the digit; each token follows one alone."""
AFTER = ["}", "</", "a", "n", "s", "w", "e", "r", ">"]
DIGITS = "0123456789"
PROMPT = PromptConfig(template="compact", answer="score", think=False, max_tokens=96)
SURE = 100.0
"""Weight of what must follow."""
COUNTER, MEAN, OTHER = 40, 41, 42
"""Dims of the x counter, of its mean over the prompt, and of tokens without a dim of their own."""


def planted_config(prompt: PromptConfig = PROMPT) -> RunConfig:
    """A run's config that goes with the model."""
    greedy = SamplingConfig(max_new_tokens=20, temperature=0.0)
    tiny = PRESETS["tiny"]
    return replace(
        tiny,
        prompt=prompt,
        eval=EvalConfig(batch_size=8, sampling=greedy),
        rft=replace(tiny.rft, sampling=replace(greedy, temperature=1.0)),
    )


def planted_tokenizer() -> Tokenizer:
    """Bytes, and the longer tokens of the answer."""
    return train_tokenizer(['<answer>{"score":7}</answer>'] * 9, 300)


def planted_model() -> Model:
    """The judge."""
    tokenizer = planted_tokenizer()
    cfg = small_model(
        num_layers=1, width=64, qk_norm=False, tie_embeddings=False, num_heads=4, num_kv_heads=2
    )
    return Model(cfg, _weights(cfg, tokenizer), tokenizer)


def _weights(cfg: ModelConfig, tokenizer: Tokenizer) -> dict:
    def one(text: str) -> int:
        (token,) = tokenizer.encode(text)
        return token

    said = [one(text) for text in (*BEFORE, *AFTER)]
    digits = [one(digit) for digit in DIGITS]
    dims = {token: dim for dim, token in enumerate([one("\n"), *said, *digits])}
    assert len(dims) == 1 + len(BEFORE) + len(AFTER) + 10 < COUNTER

    w = {path: np.zeros(spec.shape, np.float32) for path, spec in param_specs(cfg)}
    for path in w:
        if path[-1] == "scale":
            w[path] += 1
    w["embed", "weight"][:, OTHER] = 1
    for token, dim in dims.items():
        w["embed", "weight"][token] = np.eye(cfg.width)[dim]
    w["embed", "weight"][one("x")] = np.eye(cfg.width)[COUNTER]
    w["layers", "v", "kernel"][0, COUNTER, 0, 0] = 1
    w["layers", "o", "kernel"][0, 0, 0, MEAN] = 1

    head = w["head", "weight"]
    order = [one("\n"), *said[: len(BEFORE)]]
    for token, following in zip(order, order[1:], strict=False):
        head[following, dims[token]] = SURE
    # The digit d is likeliest where the mean m is near m_d = 0.05 d sqrt(D): 2 m m_d - m_d^2.
    for d, digit in enumerate(digits):
        at = 0.05 * d * cfg.width**0.5
        head[digit, dims[order[-1]]] = SURE - at**2
        head[digit, MEAN] = 2 * at
    for digit in digits:
        head[said[len(BEFORE)], dims[digit]] = SURE
    order = [*said[len(BEFORE) :], tokenizer.end_id]
    for token, following in zip(order, order[1:], strict=False):
        head[following, dims[token]] = SURE
    return traverse_util.unflatten_dict({path: jnp.asarray(x) for path, x in w.items()})


def planted_score(
    exemplars: list[str], candidate: str, prompt: str = "", cfg: PromptConfig = PROMPT
) -> float:
    """What the judge thinks of a candidate, worked out without it."""
    tokenizer = planted_tokenizer()
    ids = tokenizer.encode_chat(question_messages(exemplars, [candidate], prompt, cfg))
    (x,) = tokenizer.encode("x")
    share = ids.count(x) / (len(ids) + len(BEFORE))
    return float(min(range(10), key=lambda d: abs(20 * share - d)))


def planted_run(folder: Path, prompt: PromptConfig = PROMPT) -> Path:
    """A run that trained the judge, as the commands leave it."""
    run = RunFolder(folder, planted_config(prompt))
    with run.stage("sft"):
        save_model(folder / "sft" / "model", planted_model())
    return folder
