import json
from pathlib import Path

import jax
import pytest

from kernels import dispatch
from kernels.dispatch import Tuned, imitate, platform, require_pallas, save_tuned, target, tuned


def test_the_chip_is_this_machines_or_the_imitated_one() -> None:
    here = target()
    assert (here.platform, here.interpret) == (jax.default_backend(), False)
    with imitate("TPU v5p", "tpu"):
        assert platform() == "tpu" and target().interpret
        with imitate("NVIDIA H100 80GB HBM3", "gpu", 132):
            assert target().num_cores == 132
        assert target().kind == "TPU v5p"
    assert target() == here


@pytest.mark.parametrize("kind", ["NVIDIA A100-SXM4-80GB", "NVIDIA B200", "cpu"])
def test_other_chips_are_refused(kind: str) -> None:
    with imitate(kind, "cpu" if kind == "cpu" else "gpu"):
        with pytest.raises(ValueError, match=f"this is {kind}; use auto or xla"):
            require_pallas("linear_logprob")


def test_what_was_measured_is_kept_for_each_chip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "TUNED", tmp_path / "tuned.json")
    dispatch.TUNED.write_text("{}")
    dispatch._all_tuned.cache_clear()
    try:
        save_tuned("TPU v5p", Tuned(tokens=512, vocabulary=256, linear_logprob="pallas"))
        save_tuned("TPU v4", Tuned(gradient_chunk=64))
        with imitate("TPU v5p", "tpu"):
            assert tuned() == Tuned(tokens=512, vocabulary=256, linear_logprob="pallas")
        with imitate("TPU v4", "tpu"):
            assert tuned().gradient_chunk == 64
        with imitate("TPU v6 lite", "tpu"):
            assert tuned() == Tuned()
    finally:
        dispatch._all_tuned.cache_clear()


def test_what_is_committed_can_be_read() -> None:
    for kind, fields in json.loads(dispatch.TUNED.read_text()).items():
        assert kind and Tuned(**fields)
