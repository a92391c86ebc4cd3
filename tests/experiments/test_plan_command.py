from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest

import experiments.plan
from experiments.plan import (
    Planner,
    capacity,
    job_of,
    main,
    missing_compiler,
    planned_presets,
    run_program,
)
from persrm_jax.chips import GIB
from persrm_jax.sharding import MeshShape
from persrm_jax.training.plan import Usage, estimate

TINY = (
    "--prompt.max-tokens 64 --trace-tokens 32 --sft.batch-size 8 --rft.prompts 2 "
    "--rft.group-size 2 --rft.sampling.max-new-tokens 8"
).split()


def test_a_plan_from_real_compilations(capsys: pytest.CaptureFixture[str]) -> None:
    main(["tiny", "--chip", "cpu", *TINY])
    said = capsys.readouterr().out
    assert "on 1x1 cpu of" in said and ": compiled\n" in said
    assert "SFT: 8 rows of 96 tokens" in said
    rows = {line.split("  ")[0].strip(): line.split() for line in said.splitlines()}
    assert rows["GiB a device"][3:] == ["sft", "step", "rollout", "reference", "rft", "step"]
    assert rows["fits"][1:] == ["yes"] * 4
    assert all(float(x) > 0.4 for x in rows["peak"][1:]), "a process holds more than its weights"


@pytest.fixture
def arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """No compiler: a plan in this process, by arithmetic."""

    def in_process(cfg: experiments.plan.PlanConfig, name: str) -> tuple[Usage, str]:
        return estimate(name, job_of(cfg), experiments.plan.imagined_mesh(cfg.mesh)), "it is a test"

    monkeypatch.setattr(experiments.plan, "in_subprocess", in_process)


def test_the_nearest_setting_that_fits_is_named_and_fits(
    arithmetic: None, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["qwen2.5-7b", "--mesh", "16x1", "--chip", "v5p", "--rft.prompts", "64"])
    said = capsys.readouterr().out
    assert "estimated by arithmetic, since it is a test" in said
    first, second = said.split("it fits with")
    assert "NO" in first and "NO" not in second
    flags = second.splitlines()[0].strip(" :").split()
    assert "--rft.accumulate" in flags
    main(["qwen2.5-7b", "--mesh", "16x1", "--chip", "v5p", "--rft.prompts", "64", *flags])
    assert "NO" not in capsys.readouterr().out, "the flags do what was said"


def test_one_part_fewer_would_not_fit(arithmetic: None) -> None:
    cfg = planned_presets()["qwen2.5-0.5b"]
    cfg = replace(cfg, chip="v5e", mesh=MeshShape(2, 1))
    planner = Planner(cfg, lambda text: None)
    found = planner.nearest()
    assert found is not None
    for stage, rows, names in (("sft", 64, ["sft"]), ("rft", 32, ["rft", "reference"])):
        config = getattr(found[1], stage)
        fewer = [n for n in range(1, config.accumulate) if rows % (n * found[1].mesh.data) == 0]
        less = replace(found[1], **{stage: replace(config, accumulate=fewer[-1])})
        assert planner.fits(found[1], names) and not planner.fits(less, names), stage


def test_what_can_never_fit_says_so(arithmetic: None, capsys: pytest.CaptureFixture[str]) -> None:
    main(["qwen2.5-7b", "--mesh", "1x1", "--chip", "v5e", "--rft.sampling.max-new-tokens", "28000"])
    assert "nothing tried fits" in capsys.readouterr().out


def test_without_the_compiler_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    def in_process(cfg: experiments.plan.PlanConfig, name: str) -> tuple[Usage, str | None]:
        return run_program(cfg, name), missing_compiler(cfg.chip)

    monkeypatch.setattr(experiments.plan, "version", absent)
    monkeypatch.setattr(experiments.plan, "in_subprocess", in_process)
    main(["tiny", "--chip", "v5e", *TINY])
    said = capsys.readouterr().out
    assert "estimated by arithmetic, since the TPU compiler is in the package libtpu" in said
    assert "pip install 'jax[tpu]'" in said


def test_room_is_the_chips_memory_but_for_the_runtimes_share() -> None:
    cfg = replace(planned_presets()["tiny"], chip="v6e")
    assert capacity(cfg) == pytest.approx(0.95 * 32 * GIB)
    whole = capacity(replace(cfg, chip="cpu"))
    assert capacity(replace(cfg, chip="cpu", mesh=MeshShape(4, 2))) == pytest.approx(whole / 8)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--chip", "v9"], "--chip"),
        (["--mesh", "3x1"], "--sft.batch-size is 16, which 3 does not divide"),
    ],
)
def test_bad_input(flags: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        main(["tiny", *flags])
