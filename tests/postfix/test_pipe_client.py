"""gateway-pipe by itself: before a real door, and before peers that answer nonsense, nothing or too late."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

PIPE = Path(__file__).parents[2] / "postfix" / "gateway-pipe"
MAIL = b"Subject: x\n\nx\n"
HELLO = ["220 a LMTP", "250-a\r\n250-XFORWARD ADDR HELO\r\n250-8BITMIME\r\n250 SMTPUTF8"]


@contextmanager
def scripted_door(folder: Path, replies: list[str]) -> Iterator[tuple[Path, list[bytes]]]:
    """Says its replies one after the other, whatever it hears; an empty one is silence, the end of the list a hang-up."""
    path, heard = folder / "door.sock", []
    over = threading.Event()

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        # A client that has heard enough hangs up: that is one of the cases.
        with suppress(ConnectionError), closing(connection), connection.makefile("rb") as lines:
            for reply in replies:
                if not reply:
                    over.wait(60)
                    return
                connection.sendall(reply.encode() + b"\r\n")
                if reply.startswith("354"):
                    while (line := lines.readline()) not in (b".\r\n", b""):
                        heard.append(line)
                else:
                    heard.append(lines.readline())

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield path, heard
        finally:
            over.set()
            thread.join(60)


def pipe(path: Path, *words: str, octets: bytes = MAIL) -> tuple[int, str]:
    command = [str(PIPE), f"--socket={path}", "--from=ann@example.net", "--to=posts@localhost", *words]
    done = subprocess.run(command, input=octets, capture_output=True, timeout=120, env={})
    assert b"Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout.decode()


OK = "250 2.0.0 Ok"


@pytest.mark.parametrize(
    ("replies", "code", "said"),
    [
        ([*HELLO, OK, OK, OK, "354 go", "250 2.0.0 Ok: kept as 1"], 0, "2.0.0 Ok: kept as 1"),
        ([*HELLO, "550 5.7.1 not trusted", OK, OK, "354 go", "250 kept"], 0, "2.0.0 kept"),
        ([*HELLO, OK, OK, "550 5.1.1 x@localhost is unknown here"], 67, "5.1.1 x@localhost is unknown here"),
        ([*HELLO, OK, OK, "550 5.7.1 relaying denied"], 77, "5.7.1 relaying denied"),
        ([*HELLO, OK, OK, OK, "354 go", "554 5.6.0 a bare CR"], 65, "5.6.0 a bare CR"),
        ([*HELLO, OK, OK, OK, "354 go", "552 5.3.4 too large"], 65, "5.3.4 too large"),
        ([*HELLO, OK, OK, OK, "354 go", "451 4.3.0 a fault of ours"], 75, "4.3.0 the gateway said: 451"),
        ([*HELLO, OK, "452 4.3.1 too little free space"], 75, "4.3.0 the gateway said: 452"),
        ([*HELLO, OK, OK, OK, "554 5.5.0 data sent before 354"], 75, "4.3.0 the gateway said: 554"),
        ([*HELLO, OK, "500 5.5.2 what?"], 75, "4.3.0 the gateway said: 500"),
        ([*HELLO, OK, OK, "550 unknown, says one who has no status"], 75, "4.3.0 the gateway said: 550"),
        ([*HELLO, OK, OK, "250 2.1.5 Ok", "250 2.0.0 no 354"], 75, "4.3.0 the gateway said: 250"),
        (["421 4.3.2 closing"], 75, "4.3.0 the gateway said: 421"),
        (["HTTP/1.1 400 Bad Request"], 75, "4.5.0 the gateway's answer is not LMTP"),
        (["22"], 75, "4.5.0 the gateway's answer is not LMTP"),
        (["220-" + "x" * 70_000], 75, "4.5.0 the gateway's answer has no end"),
        ([*HELLO, OK, OK, OK, "354 go"], 75, "4.4.2 the gateway closed the connection"),
        ([], 75, "4.4.2 the gateway closed the connection"),
    ],
)
def test_only_what_the_door_proved_is_passed_on(replies: list[str], code: int, said: str, tmp_path: Path) -> None:
    with scripted_door(tmp_path, replies) as (path, _):
        got, text = pipe(path)
    assert (got, text[: len(said)]) == (code, said), text


@pytest.mark.parametrize("said", [[], HELLO, [*HELLO, OK, OK, OK, "354 go"]])
def test_a_door_that_falls_silent_defers_the_mail_at_the_deadline(said: list[str], tmp_path: Path) -> None:
    with scripted_door(tmp_path, [*said, ""]) as (path, _):
        assert pipe(path, "--seconds=2") == (75, "4.4.2 the gateway did not answer in time\n")


def test_what_is_said_to_the_door(tmp_path: Path) -> None:
    with scripted_door(tmp_path, [*HELLO, OK, OK, OK, "354 go", OK]) as (path, heard):
        words = ["--client=192.0.2.1", "--helo=b+c=ü d", "--from="]
        assert pipe(path, *words, octets=".Größe: 1\n\n.\n..x\r\nend".encode())[0] == 0
    assert [line.decode() for line in heard] == [
        "LHLO gateway-pipe\r\n",
        "XFORWARD ADDR=192.0.2.1 HELO=b+2Bc+3D+C3+BC+20d\r\n",
        "MAIL FROM:<> BODY=8BITMIME SMTPUTF8\r\n",
        "RCPT TO:<posts@localhost>\r\n",
        "DATA\r\n",
        *("..Größe: 1\r\n", "\r\n", "..\r\n", "...x\r\n", "end\r\n"),
        "",
    ]


@pytest.mark.parametrize(
    ("words", "octets"),
    [
        (["--to="], MAIL),
        (["--to=a@b>\r\nRSET"], MAIL),
        (["posts@localhost"], MAIL),
        (["--seconds=soon"], MAIL),
        ([], b""),
    ],
)
def test_a_wrong_call_or_an_empty_mail_is_deferred(words: list[str], octets: bytes, tmp_path: Path) -> None:
    code, said = pipe(tmp_path / "nowhere.sock", *words, octets=octets)
    assert code == 75
    assert said == "" or said.startswith("4.3."), said
    assert pipe(tmp_path / "nowhere.sock") == (75, "4.4.1 the gateway is not there: No such file or directory\n")
