"""The service under load from a second process, beside offline scoring of the same requests.

    python -m benchmarks.serve --run RUN [--seconds 60] [--out results/serve.json]

This process is the clients: 64 of them, each sending its next request when its last is answered.
The service is the real command in a process of its own. Requests are drawn from a list that was
scored offline before, by the same judge in a process of its own, with a candidate of its own in
each, so that an answer that went to another client shows. At the end the service is flooded with
more than it takes on, and stopped with requests on their way.
"""

import dataclasses
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from persrm_jax import cli
from persrm_jax.evaluation.reward_model import Judge, Request
from persrm_jax.evaluation.trained import use_config
from persrm_jax.jsonl import read_records, write_text
from persrm_jax.runs import provenance
from persrm_jax.types import Document

NUM_REQUESTS = 192
"""Different ones."""
FLOOD = 256
"""Requests at a time in the flood."""


@dataclass(frozen=True)
class Config:
    """What to measure."""

    run: Path
    """Folder of a run with its documents."""
    seconds: float = 60.0
    """Of load."""
    clients: int = 64
    """That wait for an answer at a time."""
    max_prompt_tokens: int = 192
    """Longest prompt that the service takes."""
    out: Path | None = None
    """Where to write the numbers, as JSON."""
    offline: Path | None = None
    """Set in the process that scores offline: the requests' file."""


def make_requests(run: Path) -> list[dict[str, Any]]:
    """One person's exemplar, and two to four candidates by various people; no two alike."""
    documents = read_records(run / "documents.jsonl", Document)
    rng = random.Random(0)
    return [
        {
            "exemplars": [rng.choice(documents).text],
            "candidates": [d.text for d in rng.sample(documents, rng.choice((2, 2, 3, 4)))],
        }
        for _ in range(NUM_REQUESTS)
    ]


def score_offline(cfg: Config, path: Path) -> None:
    """Scores the requests in one call, twice: the second is timed, since the first compiles."""
    requests = json.loads(path.read_text())
    asked = [Request(tuple(r["exemplars"]), tuple(r["candidates"])) for r in requests]
    use = use_config(cfg.run)
    prompt = dataclasses.replace(use.prompt, max_tokens=cfg.max_prompt_tokens)
    judge = Judge.load(cfg.run, cfg=dataclasses.replace(use, prompt=prompt))
    for _ in range(2):
        start = time.perf_counter()
        scores = judge.score_many(asked)
        seconds = time.perf_counter() - start
    sizes = [judge.num_questions(len(request.candidates), 1) for request in asked]
    found = [[s.score for s in request] for request in scores]
    result = {"scores": found, "seconds": seconds, "sizes": sizes}
    path.with_suffix(".scored").write_text(json.dumps(result))


def run_offline(cfg: Config, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """`score_offline` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requests.json"
        path.write_text(json.dumps(requests))
        flags = ["--run", str(cfg.run), "--max-prompt-tokens", str(cfg.max_prompt_tokens)]
        command = [sys.executable, "-m", "benchmarks.serve", *flags, "--offline", str(path)]
        subprocess.run(command, check=True)
        return json.loads(path.with_suffix(".scored").read_text())


class Service:
    """The real command."""

    def __init__(self, cfg: Config) -> None:
        flags = ["--run", str(cfg.run), "--max-prompt-tokens", str(cfg.max_prompt_tokens)]
        flags += ["--port", "0", "--limit.n", "1", "--batch.max-waiting", "2048"]
        flags += ["--limit.candidates", "16"]
        command = [sys.executable, "-m", "experiments.serve", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        self.port = int(said.rsplit(":", 1)[1])
        while self.call("GET", "/health")[0] != 200:
            if self.process.poll() is not None:
                raise RuntimeError("the service ended before it was ready")
            time.sleep(0.2)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and answer, over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        try:
            return exchange(connection, method, path, body)
        finally:
            connection.close()

    @property
    def memory_mib(self) -> float:
        """Resident now."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def stop(self) -> int:
        """Its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(300)


def exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    """Status and answer."""
    data = None if body is None else json.dumps(body).encode()
    connection.request(method, path, data)
    reply = connection.getresponse()
    return reply.status, json.loads(reply.read())


@dataclass
class Load:
    """What clients saw."""

    statuses: Counter[str]
    crossed: int
    """Answers with scores other than those of the client's own request."""
    latencies: list[float]
    seconds: float
    questions: int

    @property
    def questions_per_s(self) -> float:
        return self.questions / self.seconds


def load_service(
    service: Service,
    requests: list[dict[str, Any]],
    offline: dict[str, Any],
    *,
    clients: int,
    s: float,
) -> Load:
    """Closed-loop clients for `s` seconds; every request that was begun is waited for."""
    found = Load(Counter(), 0, [], 0.0, 0)
    lock = threading.Lock()
    numbers = iter(range(10**9))
    start = time.perf_counter()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=300)
        while time.perf_counter() < start + s:
            with lock:
                i = next(numbers) % len(requests)
            begun = time.perf_counter()
            try:
                number, said = exchange(connection, "POST", "/score", requests[i])
                status = str(number)
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
                connection.close()
            with lock:
                found.statuses[status] += 1
                if status == "200":
                    found.latencies.append(time.perf_counter() - begun)
                    found.crossed += [x["score"] for x in said["scores"]] != offline["scores"][i]
                    found.questions += offline["sizes"][i]
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found.seconds = time.perf_counter() - start
    return found


def flood(service: Service, requests: list[dict[str, Any]]) -> tuple[Counter[str], float]:
    """Statuses of many requests of 16 candidates at once, and the most memory meanwhile, in MiB."""
    statuses: Counter[str] = Counter()
    texts = [text for request in requests for text in request["candidates"]]
    lock, highest = threading.Lock(), service.memory_mib

    def client(i: int) -> None:
        rng = random.Random(i)
        body = {"exemplars": requests[i % len(requests)]["exemplars"]}
        status, _ = service.call("POST", "/score", {**body, "candidates": rng.sample(texts, 16)})
        with lock:
            statuses[str(status)] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(FLOOD)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        highest = max(highest, service.memory_mib)
        time.sleep(0.05)
    return statuses, highest


def stop_under_load(service: Service, requests: list[dict[str, Any]]) -> dict[str, Any]:
    """SIGTERM while requests are on their way: every one of them must be answered."""
    statuses: Counter[str] = Counter()
    lock = threading.Lock()

    def client(i: int) -> None:
        status, _ = service.call("POST", "/score", requests[i])
        with lock:
            statuses[str(status)] += 1

    threads = [threading.Thread(target=client, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    while service.call("GET", "/health")[1]["waiting"] < 32:
        time.sleep(0.01)
    time.sleep(0.2)
    code = service.stop()
    for thread in threads:
        thread.join()
    return {"exit_code": code, "statuses": dict(statuses)}


def main(args: Sequence[str]) -> None:
    """The command line."""
    cfg = cli.parse_flags(Config, "python -m benchmarks.serve", args)
    if cfg.offline is not None:
        score_offline(cfg, cfg.offline)
        return
    requests = make_requests(cfg.run)
    before = run_offline(cfg, requests)
    service = Service(cfg)
    try:
        load_service(service, requests, before, clients=cfg.clients, s=5.0)
        memory = [service.memory_mib]
        load = load_service(service, requests, before, clients=cfg.clients, s=cfg.seconds)
        memory.append(service.memory_mib)
        flooded, highest = flood(service, requests)
        memory.append(service.memory_mib)
        stopped = stop_under_load(service, requests)
    finally:
        service.process.kill()
    after = run_offline(cfg, requests)
    rates = [sum(found["sizes"]) / found["seconds"] for found in (before, after)]
    result = {
        "provenance": provenance(),
        "clients": cfg.clients,
        "seconds": load.seconds,
        "statuses": dict(load.statuses),
        "crossed": load.crossed,
        "latency_s": {
            "median": median(load.latencies),
            "p99": sorted(load.latencies)[int(0.99 * len(load.latencies))],
        },
        "judgements_per_s": {
            "service": load.questions_per_s,
            "offline before": rates[0],
            "offline after": rates[1],
        },
        "share_of_offline": load.questions_per_s / (sum(rates) / 2),
        "memory_mib": {
            "before": memory[0],
            "after load": memory[1],
            "highest in flood": highest,
            "after flood": memory[2],
        },
        "flood": dict(flooded),
        "stop_under_load": stopped,
        "offline scores the same before and after": before["scores"] == after["scores"],
    }
    print(json.dumps(result, indent=2))
    if cfg.out is not None:
        write_text(cfg.out, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    cli.run_main(main)
