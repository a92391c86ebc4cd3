"""examples/mails.py on mailboxes that are written here, and what the data engine makes of them."""

import json
import mailbox
import runpy
import sys
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

import pytest

from persrm_jax.data.sources import SourceConfig, read_texts

SCRIPT = str(Path(__file__).parents[1] / "examples" / "mails.py")


def _mail(sender: str, subject: str, text: str, **headers: str) -> EmailMessage:
    mail = EmailMessage()
    mail["From"], mail["Subject"] = sender, subject
    for name, value in headers.items():
        mail[name.replace("_", "-")] = value
    mail.set_content(text)
    return mail


def _write(path: Path, mails: Sequence[EmailMessage | bytes]) -> Path:
    box = mailbox.mbox(path)
    for mail in mails:
        box.add(mail)
    box.close()
    return path


def _run(monkeypatch: pytest.MonkeyPatch, *args: str) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, *args])
    runpy.run_path(SCRIPT, run_name="__main__")


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_everybody_who_wrote_enough_is_an_author(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = [
        _mail("Ada <ADA@example.org>", f"Re: AW: plan {i}", f"Grüße, plan {i}", Message_ID=f"<{i}>")
        for i in range(3)
    ]
    received = [
        sent[0],  # a copy to herself
        _mail("bob@example.org", "=?utf-8?q?f=C3=BCr_lunch?=", "At noon?", Auto_Submitted="no"),
        _mail("Bob <bob@example.org>", "lunch", "At one, then."),
        _mail("news@example.org", "offers", "Buy!", List_Id="<news>"),
        _mail("news@example.org", "offers", "Buy more!", List_Id="<news>"),
        _mail("carl@example.org", "hello", "Hi."),
    ]
    page = EmailMessage()
    page["From"] = "bob@example.org"
    page.set_content("<p>only a page</p>", subtype="html")
    strange = _mail("bob@example.org", "odd", "text")
    strange.replace_header("Content-Type", 'text/plain; charset="x-no-such"')
    broken = b"From: a@[\nMessage-ID: <[abc]@x>\nSubject: odd\n\ntext\n"
    inbox = [*received, page, strange, broken]
    boxes = [_write(tmp_path / "Sent", sent), _write(tmp_path / "Inbox", inbox)]
    out = tmp_path / "mails.jsonl"
    _run(monkeypatch, *map(str, boxes), "--out", str(out), "--least", "2")
    assert {row["author"] for row in _rows(out)} == {"ada@example.org", "bob@example.org"}
    rows = _rows(out)
    assert [row["author"] for row in rows[:3]] == ["ada@example.org"] * 3
    assert [row["author"] for row in rows[3:]] == ["bob@example.org"] * 2
    assert rows[1] == {
        "author": "ada@example.org",
        "doc_id": "<1>",
        "domain": "mail",
        "prompt": "plan 1",
        "text": "Grüße, plan 1",
    }
    texts = [(text.author, text.text) for text in read_texts(str(out), SourceConfig())]
    assert texts == [(row["author"], row["text"]) for row in rows]
    shown = capsys.readouterr().out
    assert "3 ada@example.org" in shown and "5 mails by 2 people" in shown


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = str(tmp_path / "mails.jsonl")
    with pytest.raises(ValueError, match="nowhere: no such file"):
        _run(monkeypatch, str(tmp_path / "nowhere"), "--out", out)
    box = _write(tmp_path / "box", [_mail("ada@example.org", "", "Hello.")])
    with pytest.raises(ValueError, match="1 people, none with 8 mails"):
        _run(monkeypatch, str(box), "--out", out)
    assert not Path(out).exists()
