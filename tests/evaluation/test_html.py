"""The page as a browser's parser sees it: what others wrote is text, and nothing is fetched."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest

from persrm_jax.evaluation.html import write_html
from persrm_jax.evaluation.samples import Sample
from persrm_jax.types import Pair, Prediction

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(64))
NASTY = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> </pre></p> &lt; \"'> {{ 7*7 }} **b**"
)
REPORT = f"""# tiny: unseen authors

| judge | accuracy |
| --- | ---: |
| sft{NASTY} | 0.812 |

![accuracy](accuracy.png)

## Differences

- rft minus sft: +0.025 {NASTY}

## Provenance

```json
{{"command": "</code></pre><script>alert(3)</script>"}}
```

## Time

Three minutes.

## Config of the first run

```json
{{}}
```
"""
ALLOWED = set(
    "html head meta link title style body main section article h1 h2 h3 p em strong small span div "
    "table thead tbody tr th td ul li img pre code details summary".split()
)


class Page(HTMLParser):
    """Tags with their attributes, and the text under each kind of tag."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags, self.open = list[tuple[str, dict[str, str | None]]](), list[str]()
        self.texts: dict[str, list[str]] = {}
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self.open):
            self.texts[tag][-1] += data

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag]


def _sample() -> Sample:
    pair = Pair(
        f"p0{NASTY}", "ann", "test", "d", NASTY, (NASTY, "second"), ("1", "2"), "mine", "3",
        NASTY, "4", "bob", "minor", "BA", "human", 0,
    )  # fmt: skip
    said = Prediction(pair.pair_id, "BA", "1", "m", 0, 0, 7.5, 3.0, "A", True, 9, f"said {NASTY}")
    mute = Prediction(pair.pair_id, "BA", "1", "m", 0, 0, None, None, None, False, 64, "...")
    return Sample(pair, "BA", "drawn", {"sft": said, f"base{NASTY}": mute})


@pytest.fixture
def page(tmp_path: Path) -> Page:
    (tmp_path / "report.md").write_text(REPORT, encoding="utf-8")
    (tmp_path / "accuracy.png").write_bytes(PNG)
    path = write_html(tmp_path / "report.md", [_sample()])
    assert path == tmp_path / "report.html"
    return Page(path)


def test_the_report_is_all_there(page: Page) -> None:
    assert page.open == []
    assert page.texts["h1"] == page.texts["title"] == ["tiny: unseen authors"]
    assert page.texts["h2"] == ["Differences", "Time", "Sample judgements"]
    assert page.texts["summary"] == ["Provenance", "Config of the first run"]
    assert all("open" not in found for found in page.attributes("details"))
    assert page.texts["th"] == ["judge", "accuracy"] and page.texts["td"][1] == "0.812"
    assert page.attributes("td")[1]["style"] == "text-align:right"
    (image,) = page.attributes("img")
    src = image["src"] or ""
    assert base64.b64decode(src.removeprefix("data:image/png;base64,")) == PNG
    assert image["alt"] == "accuracy"


def test_what_others_wrote_is_text(page: Page) -> None:
    assert {tag for tag, _ in page.tags} <= ALLOWED
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    # In Markdown ** is bold, and references are read; elsewhere each sign is itself.
    assert "<script>alert(1)</script> <img src=x onerror=alert(2)>" in page.texts["td"][0]
    assert "{{ 7*7 }}" in page.texts["li"][0]
    assert page.texts["code"][0] == '{"command": "</code></pre><script>alert(3)</script>"}\n'
    assert f"said {NASTY}" in page.texts["pre"]
    assert page.texts["p"].count(NASTY) == 3, "an exemplar, the prompt, the rejected text"


def test_judgements_stand_side_by_side(page: Page) -> None:
    titles = [" ".join(text.split()) for text in page.texts["h3"]]
    assert titles[1:6] == [
        "Exemplar 1",
        "Exemplar 2",
        "What the texts answer",
        "A",
        "B the person's own",
    ]
    assert titles[6] == "sft wrong A 7.5, B 3"
    assert titles[7].startswith("base<script>") and titles[7].endswith("not parsed")


def test_nothing_is_fetched(page: Page) -> None:
    urls = [found[name] for _, found in page.tags for name in ("src", "href") if name in found]
    assert urls and all((url or "").startswith("data:") for url in urls)
    policies = [found for found in page.attributes("meta") if "http-equiv" in found]
    assert (policies[0]["content"] or "").startswith("default-src 'none'")
    assert "url(" not in page.texts["style"][0] and "@import" not in page.texts["style"][0]


@pytest.mark.parametrize(
    "src", ["http://example.org/x.png", "../x.png", "/etc/passwd", "x.svg", "missing.png"]
)
def test_an_image_from_elsewhere_is_its_name(tmp_path: Path, src: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (tmp_path / "x.png").write_bytes(PNG)
    (folder / "x.svg").write_text("<svg/>")
    (folder / "report.md").write_text(f"# Run\n\n![the picture]({src})\n")
    page = Page(write_html(folder / "report.md"))
    assert page.attributes("img") == [] and page.texts["p"] == ["the picture"]
    assert page.texts["h1"] == ["Run"] and "h2" not in page.texts


def test_links_that_run_scripts_are_text(tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("# Run\n\n[x](javascript:alert(1)) <b>bold</b>\n")
    page = Page(write_html(tmp_path / "report.md"))
    assert page.attributes("a") == [] and page.attributes("b") == []
    assert page.texts["p"] == ["[x](javascript:alert(1)) <b>bold</b>"]
