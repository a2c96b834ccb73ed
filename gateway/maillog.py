"""The words of the log: one method per mail event, so that nobody words a log line by hand.

Each method writes one structured line to stderr (key=value, or JSON with GATEWAY_LOG_FORMAT=json) and raises one counter.
Values of peers are escaped, tokens of secret addresses left out; secrets, params and bodies never come here.  Home of structlog.
Promise: a line that cannot be written (disk full, nobody reads any more) is counted as `log-lost` and troubles nobody: what
was done is done, whether it could be told or not.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from typing import Any

import structlog

from gateway.errors import GatewayError
from gateway.mail.secret_address import redacted
from gateway.reply import Reply

SAY_AGAIN_SECONDS = 600.0


def told(error: BaseException) -> str:
    """The error in one line; one that nobody raised on purpose also says where it came from."""
    text = f"{type(error).__name__}: {error}"
    trace = error.__traceback__
    if isinstance(error, GatewayError) or trace is None:
        return text
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{text} [{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}]"


class MailLog:
    """Log lines and counters of one process."""

    def __init__(self, *, stream: Any = None, as_json: bool | None = None) -> None:
        json_wanted = os.environ.get("GATEWAY_LOG_FORMAT") == "json" if as_json is None else as_json
        renderer: Any = (
            structlog.processors.JSONRenderer()
            if json_wanted
            else structlog.processors.KeyValueRenderer(key_order=["timestamp", "level", "event"])
        )
        self.counters: Counter[str] = Counter()
        self.dispositions: Counter[tuple[str, str]] = Counter()
        self._failing: dict[str, tuple[str, float]] = {}
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(stream or sys.stderr),
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                renderer,
            ],
        )

    def _say(self, event: str, level: str = "info", **facts: Any) -> None:
        self.counters[event] += 1
        plain = {key: redacted(str(value)) if isinstance(value, str) else value for key, value in facts.items()}
        try:
            getattr(self._log, level)(event, **{key: value for key, value in plain.items() if value not in (None, "")})
        except (OSError, ValueError):  # ValueError: stderr is closed
            self.counters["log-lost"] += 1

    # inbound

    def mail_queued(self, mail_id: str, *, door: str, client: str, size: int, recipients: int) -> None:
        self._say("mail-queued", mail=mail_id, door=door, client=client, size=size, recipients=recipients)

    def refused(self, *, door: str, client: str, verb: str, reply: Reply, address: str = "") -> None:
        self._say("refused", door=door, client=client, verb=verb, reply=str(reply), address=address)

    def proxy_refused(self, *, door: str, proxy: str, why: str) -> None:
        self._say("proxy-refused", "warning", door=door, proxy=proxy, why=why, next="the connection is closed")

    def throttled(self, *, door: str, client: str, limit: str, seconds: float, sender: str = "") -> None:
        """Who asks for more than his share is told to come again later; nothing is refused for good."""
        self._say("throttled", "warning", door=door, client=client, limit=limit, seconds=round(seconds), sender=sender)

    def door_fault(self, *, door: str, client: str, error: BaseException) -> None:
        self._say("door-fault", "error", door=door, client=client, error=told(error))

    def handshake_failed(self, *, door: str, client: str, error: BaseException) -> None:
        self._say("handshake-failed", door=door, client=client, why=told(error))

    def mail_recorded(self, mail_id: str, *, rcpt_to: str, disposition: str, reason: str) -> None:
        self.dispositions["in", str(disposition)] += 1
        self._say("mail-recorded", mail=mail_id, rcpt_to=rcpt_to, disposition=disposition, reason=reason)

    def mailbox_at_fault(self, mailbox: str, *, mail_id: str, rcpt_to: str, fingerprint: str) -> None:
        """An alarm: a mailbox cannot take a mail that is now held for a person."""
        self._say(
            "mailbox-at-fault",
            "critical",
            mailbox=mailbox,
            mail=mail_id,
            rcpt_to=rcpt_to,
            fault=fingerprint,
            next=f"mend the mailbox, then gateway replay {mail_id}",
        )

    def post_created(self, post_id: str, *, mailbox: str, app: str) -> None:
        self._say("post-created", post=post_id, mailbox=mailbox, app=app)

    def post_rejected(self, post_id: str, *, problems: str) -> None:
        self._say("post-rejected", "warning", post=post_id, problems=problems)

    def photo_rendered(self, attachment_id: str, *, post_id: str) -> None:
        self._say("photo-rendered", attachment=attachment_id, post=post_id)

    def photo_refused(self, attachment_id: str, *, post_id: str, reason: str) -> None:
        self._say("photo-refused", "warning", attachment=attachment_id, post=post_id, reason=reason)

    # notices

    def notice_sent(self, notice_id: str, *, of: str, to: str, stage: str) -> None:
        self._say("notice-sent", notice=notice_id, of=of, to=to, stage=stage)

    def notice_failed(self, notice_id: str, *, of: str, to: str, error: BaseException) -> None:
        self._say("notice-failed", "error", notice=notice_id, of=of, to=to, error=told(error))

    # outbound

    def email_accepted(self, email_id: str, *, recipients: int, template: str) -> None:
        self._say("email-accepted", email=email_id, recipients=recipients, template=template)

    def email_rejected(self, request_id: str, *, problems: str) -> None:
        self._say("email-rejected", "warning", email=request_id, problems=problems)

    def email_controlled(self, email_id: str, *, action: str, app: str, recipients: int) -> None:
        self._say("email-controlled", email=email_id, action=action, app=app, recipients=recipients)

    def control_rejected(self, request_id: str, *, app: str, problems: str) -> None:
        self._say("control-rejected", "warning", request=request_id, app=app, problems=problems)

    def command_refused(self, request_id: str, *, queue: str, app: str, problems: str) -> None:
        self._say("command-refused", "warning", request=request_id, queue=queue, app=app, problems=problems)

    def email_attempted(
        self, email_id: str, *, recipient: str, relay: str, disposition: str, reply: str, reason: str = ""
    ) -> None:
        self.dispositions["out", str(disposition)] += 1
        self._say("email-" + disposition, email=email_id, recipient=recipient, relay=relay, reply=reply, reason=reason)

    def relay_paused(self, relay: str, *, seconds: float, why: str) -> None:
        self._say("relay-paused", "warning", relay=relay, seconds=seconds, why=why)

    def relay_resumed(self, relay: str) -> None:
        self._say("relay-resumed", relay=relay)

    # the web

    def logged_in(self, user: str, *, client: str) -> None:
        self._say("logged-in", user=user, client=client)

    def login_refused(self, *, client: str, why: str) -> None:
        """Never the name as typed: people type their password there."""
        self._say("login-refused", "warning", client=client, why=why)

    def web_fault(self, *, method: str, route: str, error: BaseException) -> None:
        self._say("web-fault", "error", method=method, route=route, error=told(error))

    # those who look after us

    def alarm_raised(self, topic: str, *, severity: str, what: str, next_step: str) -> None:
        level = severity if severity in ("info", "warning", "critical") else "warning"
        self._say("alarm-raised", level, topic=topic, what=what, next=next_step)

    def alarm_over(self, topic: str, *, what: str, seconds: float) -> None:
        self._say("alarm-over", topic=topic, what=what, seconds=seconds)

    def admin_told(self, place: str, *, service: str, alarms: int) -> None:
        self._say("admin-told", admin=place, service=service, alarms=alarms)

    def admin_not_told(self, place: str, *, service: str, why: str) -> None:
        self._say("admin-not-told", "error", admin=place, service=service, why=why, next="it is tried again")

    # the machine

    def handler_failed(self, queue: str, ticket_id: str, *, error: BaseException, next_step: str) -> None:
        self._say(
            "handler-failed",
            "error",
            queue=queue,
            ticket=ticket_id,
            error=told(error),
            next=next_step,
        )

    def ticket_suspected(self, queue: str, ticket_id: str, *, deliveries: int) -> None:
        self._say("ticket-suspected", "warning", queue=queue, ticket=ticket_id, workers_died=deliveries)

    def ticket_parked(self, queue: str, ticket_id: str, *, why: str) -> None:
        self._say("ticket-parked", "warning", queue=queue, ticket=ticket_id, why=why, next="a newer worker takes it")

    def service(self, name: str, fact: str, **facts: Any) -> None:
        self._say(f"{name}-{fact}", **facts)

    def service_failed(self, name: str, *, error: BaseException) -> None:
        """A round of a service failed and the next one comes; the same fault is said again after ten minutes only."""
        text, now = told(error), time.monotonic()
        last, said_at = self._failing.get(name, ("", 0.0))
        if text == last and now - said_at < SAY_AGAIN_SECONDS:
            self.counters[f"{name}-failed"] += 1
            return
        self._failing[name] = (text, now)
        self._say(f"{name}-failed", "error", error=text)
