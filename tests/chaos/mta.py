"""Mail servers that hand mail to the gateway's SMTP door: what was not answered with 250 is sent again, the same octets."""

from __future__ import annotations

import itertools
import smtplib
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

MAIL_FROM, RCPT_TO = "poster@localhost", "posts@localhost"
ANSWER_SECONDS = (
    5.0  # less than a stopped node sleeps: some give up after the dot, and the door keeps the mail all the same
)
RETRY_SECONDS = 0.5
LARGE_EVERY, LARGE_OCTETS = 500, 300 * 1024  # beyond 256 KiB the octets travel by the blob store


class Mta:
    """`sessions` of them, each one mail after the other until `stop`; then `join` waits for the last answers.

    No new mail is begun while `may_go` is not set: the store is behind.
    """

    def __init__(self, ports: Sequence[int], *, sessions: int, pace_seconds: float) -> None:
        self.kept: dict[str, str] = {}  # token → the mail id the 250 told
        self.resent: Counter[str] = Counter()  # tried again without a 250: the door may have kept it already
        self.refused: dict[str, str] = {}
        self.may_go = threading.Event()
        self.may_go.set()
        self._ports = ports
        self._pace_seconds = pace_seconds
        self._stop = threading.Event()
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(sessions)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        self.may_go.set()

    def give_up(self) -> None:
        """What is not answered by now stays so."""
        self.stop()
        self._is_over.set()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _post(self, number: int) -> None:
        session: smtplib.SMTP | None = None
        tries = itertools.count(number)
        for count in itertools.count(1):
            token = f"m{number}-{count}"
            octets = mail(token, large=count % LARGE_EVERY == 0)
            while token not in self.kept and token not in self.refused and not self._is_over.is_set():
                try:
                    session = session or self._open(next(tries))
                    self._send(session, token, octets)
                except (OSError, smtplib.SMTPException):
                    self.resent[token] += 1
                    if session is not None:
                        session.close()
                    session = None
                    self._is_over.wait(RETRY_SECONDS)  # an MTA's interval
            self.may_go.wait()
            if self._stop.wait(self._pace_seconds):
                break
        if session is not None:
            with suppress(OSError, smtplib.SMTPException):
                session.quit()

    def _open(self, tried: int) -> smtplib.SMTP:
        port = self._ports[tried % len(self._ports)]
        session = smtplib.SMTP("127.0.0.1", port, local_hostname="mta.localhost", timeout=ANSWER_SECONDS)
        session.ehlo()
        return session

    def _send(self, session: smtplib.SMTP, token: str, octets: bytes) -> None:
        for step, said in ((session.mail, MAIL_FROM), (session.rcpt, RCPT_TO), (session.data, octets)):
            code, text = step(said)
            if 500 <= code < 600:
                self.refused[token] = f"{code} {text!r}"  # an MTA would bounce it
                return
            if code != 250:
                raise smtplib.SMTPResponseException(code, text)
        self.kept[token] = text.decode().rsplit(" ", 1)[-1]


def mail(token: str, *, large: bool = False) -> bytes:
    """The octets of a mail: the same at each try."""
    body = f"The text of {token}.\r\n" if not large else ("x" * 70 + "\r\n") * (LARGE_OCTETS // 72)
    head = f"From: {MAIL_FROM}\r\nTo: {RCPT_TO}\r\nSubject: {token}\r\nMessage-ID: <{token}@mta.localhost>\r\n"
    return f"{head}\r\n{body}".encode()
