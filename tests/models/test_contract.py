import pytest
from contract import measure
from small_model import FAMILIES, random_params

from persrm_jax.models.config import ComputeConfig, ModelConfig


@pytest.mark.parametrize("cfg", FAMILIES.values(), ids=FAMILIES)
def test_in_float32_nothing_but_the_text_changes_the_numbers(cfg: ModelConfig) -> None:
    gaps = measure(cfg, random_params(cfg), ComputeConfig())
    assert {name: g for name, g in gaps.items() if g.l2 > 1e-5} == {}


@pytest.mark.parametrize("name", ["qwen2", "smollm3"])
def test_in_bfloat16_within_its_rounding(name: str) -> None:
    """Measured: 0 under padding and packing, 0.004 to 0.011 in decoding, where the sums of
    attention run in another order. All families: `make parity`."""
    gaps = measure(FAMILIES[name], random_params(FAMILIES[name]), ComputeConfig(dtype="bfloat16"))
    assert {name: g for name, g in gaps.items() if g.l2 > 0.02} == {}
