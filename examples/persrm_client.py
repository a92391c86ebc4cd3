"""A client of `python -m experiments.serve`, of the standard library alone.

Copy it beside your training script: it needs neither JAX nor persrm-jax.
"""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

URL = os.environ.get("PERSRM_URL", "http://127.0.0.1:8000")
TOKEN = os.environ.get("PERSRM_TOKEN", "")
TIMEOUT_S = 300.0
"""Until an answer is given up, waits for a busy service included."""


def score(
    exemplars: Sequence[str], candidates: Sequence[str], prompt: str = "", n: int = 1
) -> list[dict[str, Any]]:
    """The service's scores: for each candidate `score` (None if no answer could be read), `spread`,
    `samples`, `reasoning`, `parsed`, `asked`, `tokens`.

    Raises:
        RuntimeError: a request that the service refuses, with its sentence.
        TimeoutError: the service stays busy.
    """
    body = {"exemplars": list(exemplars), "candidates": list(candidates), "prompt": prompt, "n": n}
    headers = {"Content-Type": "application/json"}
    if TOKEN:
        headers["Authorization"] = f"Bearer {TOKEN}"
    request = urllib.request.Request(f"{URL}/score", json.dumps(body).encode(), headers)
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(request, timeout=end - time.monotonic()) as reply:
                return json.load(reply)["scores"]
        except urllib.error.HTTPError as error:
            with error:
                sentence = error.read().decode()
            if error.code != 503:
                raise RuntimeError(f"{URL} answers {error.code}: {sentence}") from None
            time.sleep(float(error.headers.get("Retry-After", 1)))
    raise TimeoutError(f"{URL} has been busy for {TIMEOUT_S:g} s")
