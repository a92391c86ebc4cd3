"""A disk that takes no more: the run says so, and its last good checkpoint survives."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from persrm_jax.checkpoint import Checkpoints

SAVE = textwrap.dedent("""
    import os, resource, sys
    from pathlib import Path
    import jax.numpy as jnp
    import numpy as np
    from persrm_jax.checkpoint import Checkpoints

    folder, kind = Path(sys.argv[1]), sys.argv[2]
    checkpoints = Checkpoints(folder)
    checkpoints.save(1, {"x": jnp.arange(3.0)})
    checkpoints._manager.wait_until_finished()
    if kind == "full":  # no file may grow past this: a write fails in its middle
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
    else:
        os.chmod(folder, 0o555)
        if os.geteuid() == 0:  # whom modes do not bind
            os.seteuid(65534)
    try:
        checkpoints.save(2, {"x": np.random.default_rng(0).random(2**20)})
        checkpoints.close()
    except ValueError as error:
        print(f"error: {error}")
        os._exit(2)
""")


@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_bad_disk_is_named_and_the_last_checkpoint_loads(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "checkpoints"
    for parent in [tmp_path, *tmp_path.parents][:-2]:
        os.chmod(parent, parent.stat().st_mode | 0o055)  # so that another user finds it
    done = subprocess.run(
        [sys.executable, "-c", SAVE, str(folder), kind],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[1],
    )
    os.chmod(folder, 0o755)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"{folder}: a checkpoint cannot be written" in done.stdout
    assert "step 1 is whole" in done.stdout
    checkpoints = Checkpoints(folder)
    assert checkpoints.latest_step() == 1
    found = checkpoints.restore(1, {"x": jnp.zeros(3)})
    checkpoints.close()
    np.testing.assert_array_equal(found["x"], np.arange(3.0))
