"""Mailboxes -> texts that the data engine reads: a row for each mail that a person wrote.

python examples/mails.py Sent.mbox Inbox.mbox --out mails.jsonl
python -m experiments.synthesize smollm2-cpu --data mails.jsonl --out runs/mails

Everybody who wrote often enough becomes an author, you among them: a judge is taught by telling
people apart. Lists and automatic mail are left out. What the mails quote, and how they are signed,
goes when they are read (`--corpus.boilerplate`). Your mail program exports mbox files (Thunderbird:
the files without a suffix in its profile; Google: Takeout). The file holds other people's mail:
keep it to yourself.
"""

import json
import mailbox
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from email import message_from_binary_file, policy
from email.header import decode_header, make_header
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path

import tyro

AUTOMATIC = ("List-Id", "List-Unsubscribe", "Feedback-ID")
"""Headers of lists' and machines' mail."""
_REPLY = re.compile(r"^((re|aw|fwd?|wg|sv|vs|tr)(\[\d+\])?:\s*)+", re.IGNORECASE)


@dataclass(frozen=True)
class Config:
    """What to read."""

    boxes: tyro.conf.Positional[tuple[Path, ...]]
    """Files in mbox format."""
    out: Path
    """File for the texts, as JSON Lines."""
    least: int = 8
    """Mails that somebody must have written to be an author."""


def body_of(mail: EmailMessage) -> str:
    """The plain text of a mail; empty where it has none, or none that can be read."""
    part = mail.get_body(preferencelist=("plain",))
    if part is None:
        return ""
    try:
        return str(part.get_content()).strip()
    except (LookupError, ValueError):  # a character set that is unknown, or not what it says
        return ""


def header(mail: EmailMessage, name: str) -> str:
    """A header of a mail as it stands; empty where there is none. (Headers that break the rules
    also break their parser.)"""
    found = [value for key, value in mail.raw_items() if key.lower() == name.lower()]
    return " ".join(str(found[0]).split()) if found else ""


def subject_of(mail: EmailMessage) -> str:
    """The subject, decoded; as it stands where that fails."""
    raw = header(mail, "Subject")
    try:
        return " ".join(str(make_header(decode_header(raw))).split())
    except (LookupError, ValueError):
        return raw


def is_automatic(mail: EmailMessage) -> bool:
    """Whether no person wrote it to another."""
    replied = header(mail, "Auto-Submitted").lower() not in ("", "no")
    return replied or any(header(mail, name) for name in AUTOMATIC)


def read_mails(box: Path) -> Iterator[dict[str, str]]:
    """The rows of one mailbox.

    Raises:
        ValueError: no such file.
    """
    if not box.is_file():
        raise ValueError(f"{box}: no such file; expected a mailbox in mbox format")

    def parse(file) -> EmailMessage:  # noqa: ANN001
        return message_from_binary_file(file, policy=policy.default)

    with closing(mailbox.mbox(box, factory=parse, create=False)) as mails:
        for number, mail in enumerate(mails):
            if is_automatic(mail):
                continue
            sender, text = parseaddr(header(mail, "From"))[1].lower(), body_of(mail)
            if sender and text:
                yield {
                    "author": sender,
                    "doc_id": header(mail, "Message-ID") or f"{box}/{number}",
                    "domain": "mail",
                    "prompt": _REPLY.sub("", subject_of(mail)),
                    "text": text,
                }


def main(cfg: Config) -> None:
    """Writes the texts, and says who wrote how many.

    Raises:
        ValueError: nobody wrote enough.
    """
    mails: dict[str, dict[str, dict[str, str]]] = defaultdict(dict)
    for box in cfg.boxes:
        for row in read_mails(box):
            mails[row["author"]].setdefault(row["doc_id"], row)  # once, if in two boxes
    kept = {author: rows for author, rows in mails.items() if len(rows) >= cfg.least}
    if not kept:
        raise ValueError(
            f"{len(mails)} people, none with {cfg.least} mails: give more mailboxes, or --least"
        )
    with cfg.out.open("w", encoding="utf-8") as file:
        for rows in kept.values():
            file.writelines(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows.values())
    for author, rows in sorted(kept.items(), key=lambda one: -len(one[1])):
        print(f"{len(rows):6,} {author}")
    print(f"{sum(map(len, kept.values())):6,} mails by {len(kept)} people, in {cfg.out}")


if __name__ == "__main__":
    main(tyro.cli(Config))
