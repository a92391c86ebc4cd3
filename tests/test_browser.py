"""The report and TensorBoard, opened in headless Chromium: what must be visible is, and no page
complains. `SCREENS=FOLDER` keeps what was seen."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from matplotlib.image import imread

from persrm_jax.summaries import write_hparams

pytestmark = pytest.mark.browser
SMALL = """--personas.num-personas 48 --pairs.num-train 1000 --pairs.num-dev 16 --pairs.num-test 32
    --pairs.num-seen 8 --sft.steps 160 --sft.eval-every 40 --rft.steps 6 --rft.prompts 8
    --rft.mini-batches 2 --rft.histogram-every 1 --rft.text-every 3 --rft.eval-every 2"""
"""A run of minutes whose model has learnt to answer in the right form."""
NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without a GPU: what draws TensorBoard's curves is WebGL, here in software.
FLAGS = (
    "--no-sandbox",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
)
PATIENCE = 60_000
"""Milliseconds until something must have appeared."""
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import Error, sync_playwright

    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_playwright() as playwright:
        try:
            found = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        except Error as error:
            pytest.fail(
                "no Chromium: apt-get install chromium, or .venv/bin/playwright install chromium "
                f"({error})"
            )
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[OpenPage]:
    """Opens pages; none of them may have complained in the end."""
    complaints: list[str] = []
    contexts = []

    def listen(message: Any) -> None:
        if message.type == "error":
            complaints.append(message.text)

    def open_page(url: str, width: int = 1400, height: int = 1000, scheme: str = "light") -> Any:
        contexts.append(
            browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        )
        contexts[-1].set_default_timeout(PATIENCE)
        page = contexts[-1].new_page()
        page.on("console", listen)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and the sessions of a sweep."""
    folder = tmp_path_factory.mktemp("logs")
    command = [sys.executable, "-m", "experiments.rft", "--out", str(folder / "run")]
    ended = subprocess.run([*command, *SMALL.split()], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    for number, (variant, kl) in enumerate([("grpo", 1e-3), ("dapo", 0.0), ("gspo", 0.0)]):
        for seed in range(2):
            write_hparams(
                folder / "sweep" / variant / f"seed{seed}" / "hparams",
                {"variant": variant, "loss.kl-coef": kl, "seed": seed},
                {"final/test_accuracy": 0.7 + number / 32 + seed / 64, "final/gain": number / 32},
            )
    return folder


@pytest.fixture(scope="module")
def board(logs: Path) -> Iterator[str]:
    """The address of a TensorBoard."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logs), "--port", "0"]
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+/", line):
                yield found[0]
                break
        else:
            pytest.fail("TensorBoard gave no address")
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[Any, str], Path]:
    folder = Path(os.environ.get("SCREENS", tmp_path))

    def keep(page: Any, name: str) -> Path:
        path = folder / f"{name}.png"
        page.screenshot(path=path)
        return path

    return keep


def _seen(locator: Any) -> Any:
    """Waits until it is visible."""
    locator.wait_for(state="visible")
    return locator


def _is_loaded(image: Any) -> bool:
    return image.evaluate("x => x.complete && x.naturalWidth > 0")


def _num_colored(path: Path) -> int:
    """Pixels that are not grey."""
    pixels = imread(path)[..., :3]
    return int((np.ptp(pixels, axis=2) > 0.1).sum())


def test_the_report_is_read(logs: Path, open_page: OpenPage, keep: Any) -> None:
    page = open_page((logs / "run" / "report.html").as_uri(), 1280, 1250)
    _seen(page.get_by_role("heading", name="unseen authors"))
    for cell in ("char_ngrams", "wrong author", "sft", "rft"):
        _seen(page.get_by_role("cell", name=cell, exact=True).first)
    assert page.locator("table").first.locator("tbody tr").count() >= 10
    images = page.locator("img")
    assert images.count() == 2 and all(_is_loaded(image) for image in images.all())
    keep(page, "report")
    samples = page.locator(".sample")
    assert samples.count() >= 2
    samples.first.scroll_into_view_if_needed()
    for said in ("base", "sft", "rft"):
        _seen(samples.first.get_by_role("heading", name=re.compile(f"^{said} ")))
    page.locator("#samples").evaluate("x => x.scrollIntoView()")
    keep(page, "report-samples")
    config = page.locator("details", has_text="Config").locator("pre").last
    assert not config.is_visible()
    page.get_by_text("Config", exact=True).click()
    assert '"preset": "tiny"' in _seen(config).inner_text()


def test_the_report_fits_a_phone_and_the_dark(logs: Path, open_page: OpenPage, keep: Any) -> None:
    url = (logs / "run" / "report.html").as_uri()
    phone = open_page(url, 390, 844)
    assert phone.evaluate("document.documentElement.scrollWidth") <= 390
    keep(phone, "report-phone")
    dark = open_page(url, scheme="dark")
    color = dark.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", color))) < 64
    keep(dark, "report-dark")


def test_the_report_asks_for_nothing(logs: Path, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    url = (logs / "run" / "report.html").as_uri()
    page.goto(url)
    assert [found for found in asked if not found.startswith("data:")] == [url]
    context.close()


def test_curves_histograms_and_figures_are_drawn(
    board: str, open_page: OpenPage, keep: Any, tmp_path: Path
) -> None:
    page = open_page(f"{board}?tagFilter={quote('reward/mean')}#timeseries")
    card = _seen(page.locator("scalar-card").first)
    _seen(card.get_by_text("reward/mean"))
    page.wait_for_timeout(3000)  # the curve is drawn after its card
    card.screenshot(path=tmp_path / "card.png")
    assert _num_colored(tmp_path / "card.png") > 100, "the card is all grey"
    wanted = quote("^(reward/(mean|each)|ratio/each|eval/)")
    page = open_page(f"{board}?tagFilter={wanted}#timeseries", height=1300)
    for tag in ("reward/each", "ratio/each"):
        card = page.locator("histogram-card", has_text=tag)
        card.first.scroll_into_view_if_needed()
        _seen(card.locator("svg path").first)
    card = page.locator("image-card", has_text="eval/accuracy").first
    card.scroll_into_view_if_needed()
    image = _seen(card.locator("img").first)
    assert _is_loaded(image)
    keep(page, "tensorboard-timeseries")


def test_the_layout_brings_curves_together(board: str, open_page: OpenPage, keep: Any) -> None:
    page = open_page(f"{board}#custom_scalars")
    for title in ("reward", "accuracy and format", "KL and entropy", "clip fractions"):
        _seen(page.get_by_text(title, exact=True).first)
    page.wait_for_timeout(3000)
    assert _num_colored(keep(page, "tensorboard-layout")) > 100


def test_a_rollout_is_read(board: str, open_page: OpenPage, keep: Any) -> None:
    page = open_page(f"{board}#text", height=760)
    for shown in ("Exemplar 1", "(the person's own)", "Completions"):
        _seen(page.get_by_text(shown).first)
    rows = page.locator("tf-text-loader table table").first.locator("tr")  # in one of its own
    assert rows.count() == 1 + 8
    keep(page, "tensorboard-text")
    completion = page.get_by_text(re.compile(r"^Completion \d+: .*reward [+-]\d")).first
    _seen(completion).evaluate("x => x.scrollIntoView()")
    _seen(page.locator("blockquote", has_text="<think>").first)
    keep(page, "tensorboard-text-completion")


def test_a_sweep_is_compared(board: str, open_page: OpenPage, keep: Any) -> None:
    page = open_page(f"{board}#hparams")
    table = page.locator("tf-hparams-table-view")
    for shown in ("grpo", "dapo", "gspo", "final/test_accuracy"):
        _seen(table.get_by_text(shown, exact=True).first)
    assert table.get_by_text("dapo", exact=True).count() == 2
    page.get_by_text("Parallel coordinates view").first.click()
    plot = page.locator("tf-hparams-parallel-coords-plot")
    for axis in ("loss.kl-coef", "seed", "variant", "final/test_accuracy", "final/gain"):
        _seen(plot.locator("svg").get_by_text(axis, exact=True))
    assert plot.locator("g.foreground path").count() == 6
    keep(page, "tensorboard-hparams")
