"""The URLs of a queue on RabbitMQ: one, or several of one cluster with blanks between them, tried in turn."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from gateway.errors import Problem, SettingsError

SCHEMES = ("amqp://", "amqps://")


def amqp_urls(text: str, key: str = "queue_url") -> list[str]:
    """The URLs in the text; raises SettingsError where they are no nodes of one cluster."""
    urls = text.split()
    parts = set()
    for url in urls:
        try:
            part = urlsplit(url)
            part.port  # noqa: B018 - looked at, since only the look finds a bad one
        except ValueError as error:
            raise SettingsError([Problem(key, f"not a URL: {error}")]) from None
        if part.scheme not in ("amqp", "amqps") or not part.hostname:
            raise SettingsError(
                [Problem(key, "a queue on RabbitMQ is amqp(s)://user:password@host/vhost, or some of them")]
            )
        parts.add((part.username, part.path))
    if len(parts) != 1:
        raise SettingsError([Problem(key, "nodes of one cluster are named with one user and one vhost")])
    return urls


def user_of(url: str) -> str:
    """The user a URL logs in as."""
    return unquote(urlsplit(url).username or "guest")
