"""RFT's rivals: what they may spend, by hand."""

from dataclasses import replace

import pytest

from experiments.presets import PRESETS, RunConfig
from experiments.rivals import rft_passes

TINY = PRESETS["tiny"]


def config(**rft: object) -> RunConfig:
    sampling = replace(TINY.rft.sampling, max_new_tokens=10)
    rft = {"steps": 3, "prompts": 2, "group_size": 4, "sampling": sampling, **rft}
    return replace(TINY, rft=replace(TINY.rft, **rft))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rft", "kl", "a_step"),
    [
        # Prefill 5 and decode 40 a prompt; forward and backward of the same 45 cost 3.
        ({}, 0.0, 2 * (45 + 3 * 45)),
        # A forward of the reference.
        ({}, 1e-3, 2 * (45 + 4 * 45)),
        # Two epochs, and the old policy's forward.
        ({"epochs": 2}, 0.0, 2 * (45 + 7 * 45)),
        # The prompt computed for each completion in training.
        ({"shared_prefix": False}, 0.0, 2 * (45 + 3 * 60)),
    ],
)
def test_token_passes(rft: dict, kl: float, a_step: int) -> None:
    cfg = config(**rft)
    cfg = replace(cfg, loss=replace(cfg.loss, kl_coef=kl))
    assert rft_passes(cfg, 5) == 3 * a_step
