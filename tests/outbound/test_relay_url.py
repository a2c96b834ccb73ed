"""Relay URLs: every form, every mistake in words, no password in sight."""

from __future__ import annotations

import pytest

from gateway.outbound.relay_url import Security, parse_relay_url


@pytest.mark.parametrize(
    ("url", "host", "port", "security", "verify"),
    [
        ("smtp://mx.example.org", "mx.example.org", 25, Security.OFFERED, True),
        ("smtp+starttls://mx.example.org", "mx.example.org", 587, Security.STARTTLS, True),
        ("smtps://mx.example.org?verify=no", "mx.example.org", 465, Security.TLS, False),
        ("smtp://[::1]:2500/", "::1", 2500, Security.OFFERED, True),
    ],
)
def test_each_scheme_has_its_port_and_security(
    url: str, host: str, port: int, security: Security, verify: bool
) -> None:
    spec = parse_relay_url(url)
    assert (spec.host, spec.port, spec.security, spec.verify) == (host, port, security, verify)
    assert not spec.is_capture


def test_capture_is_a_relay_of_its_own() -> None:
    assert parse_relay_url("capture:").is_capture


def test_passwords_are_decoded_and_never_shown() -> None:
    spec = parse_relay_url("smtp://me%40corp:s%3Acret@mx.example.org")
    assert (spec.user, spec.password) == ("me@corp", "s:cret")
    assert "cret" not in repr(spec) + spec.name


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://mx.example.org", "no relay scheme 'http'"),
        ("mx.example.org:25", "scheme"),
        ("capture:x", "scheme"),
        ("smtp://", "needs a host"),
        ("smtp://mx.example.org:0", "port"),
        ("smtp://mx.example.org:99999", "port"),
        ("smtp://mx.example.org:abc", "port"),
        ("smtp://mx.example.org/path", "ends after the port"),
        ("smtp://me@mx.example.org", "user and password together"),
        ("smtp://me:hidden@mx.example.org?verify=maybe", "verify is yes or no"),
        ("smtp://me:hidden@mx.example.org?tls=1", "no relay option 'tls'"),
        ("smtp://me:hid/den@mx.example.org", "port|percent"),
    ],
)
def test_a_wrong_url_is_told_in_words(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        parse_relay_url(url)
    assert "hid" not in str(error.value)


def test_streams_and_weights_are_checked() -> None:
    with pytest.raises(ValueError, match="no stream 'fast'"):
        parse_relay_url("capture:", streams=["fast"])
    with pytest.raises(ValueError, match="at least 1"):
        parse_relay_url("capture:", weight=0)
