import jax
import pytest

from persrm_jax.chips import CHIPS, chip_of, memory_in_use, peak_flops, process_memory


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
    ],
)
def test_jax_names_are_known(kind: str, name: str) -> None:
    assert chip_of(kind) is CHIPS[name]


def test_a_cpu_has_no_data_sheet_and_is_measured() -> None:
    assert chip_of("cpu") is None
    machine = peak_flops() * len(jax.local_devices())
    assert 1e9 < machine < 1e14


def test_memory_is_this_process_own() -> None:
    before = memory_in_use()
    held = bytearray(300 * 2**20)
    grown = memory_in_use() - before
    assert 0.25 < grown < 0.5, len(held)
    resident = process_memory("VmRSS")
    # The kernel counts in batches, so that the peak may be a few pages behind.
    assert process_memory("VmHWM") + 2**20 >= resident > 2**20
