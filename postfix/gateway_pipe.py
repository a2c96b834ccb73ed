"""The client inside gateway-pipe: reads one mail from standard input and hands it over by LMTP (RFC 2033).

Run as `python3 -I -S gateway_pipe.py --socket=PATH --from=SENDER --to=RECIPIENT [--client=IP] [--helo=NAME] [--seconds=N]`
by any Python 3, with nothing installed; only built-in modules, because each mail pays for its start.
Output: one line that begins with the enhanced status, which Postfix logs and quotes.  Exit: 10 the door has it (the
wrapper's word for 0), 67 no such recipient, 77 not permitted, 65 refused for its content, 75 everything else.
Promises: the whole of standard input is read before anything is said; permanent is only what the door said of this mail or
its recipient; after its own deadline it ends with 75, by the kernel's alarm if it must.
Limits: one recipient a call.  A `pipe` process that is killed while it writes looks like the end of the mail.
"""

import _signal
import _socket
import sys
import time

KEPT, CONTENT, NO_RECIPIENT, NOT_PERMITTED, LATER = 10, 65, 67, 77, 75
MAX_REPLY_BYTES = 65536
ALARM_AFTER_SECONDS = 10  # what the deadline of the socket did not end, the kernel ends


class Answer(Exception):
    """What became of the mail."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code
        self.text = text


def main(words):
    options = read_options(words)
    seconds = int(options.get("seconds", "300"))
    _signal.signal(_signal.SIGALRM, _signal.SIG_DFL)
    _signal.alarm(seconds + ALARM_AFTER_SECONDS)
    deadline = time.monotonic() + seconds
    octets = sys.stdin.buffer.read()
    if not octets:
        raise Answer(LATER, "4.3.0 there is no mail on standard input")
    with_door(Door(options["socket"], deadline), options, octets)


def read_options(words):
    """Reads --name=value words; Postfix expands its macros into them, so that no value can become an option."""
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--") or not equals:
            raise Answer(LATER, "4.3.5 gateway-pipe: an argument is not --name=value; see master.cf")
        options[name[2:]] = value
    for name in ("socket", "from", "to"):
        if name not in options:
            raise Answer(LATER, f"4.3.5 gateway-pipe: --{name} is missing; see master.cf")
    if not options["to"] or any(ord(c) < 32 or c in "<>\x7f" for c in options["from"] + options["to"]):
        raise Answer(LATER, "4.3.5 gateway-pipe: an address that cannot be named in a command")
    return options


class Door:
    """The LMTP session; each wait ends at the deadline."""

    def __init__(self, path, deadline):
        self.deadline = deadline
        self.unread = b""
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.in_time()
        self.socket.connect(path)

    def in_time(self):
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise Answer(LATER, "4.4.2 the gateway did not answer in time")
        self.socket.settimeout(left)

    def say(self, line):
        self.send(line.encode(sys.getfilesystemencoding(), "surrogateescape") + b"\r\n")
        return self.reply()

    def send(self, octets):
        self.in_time()
        self.socket.sendall(octets)

    def reply(self):
        """Returns (code, text, all lines)."""
        lines = []
        while True:
            line = self.line()
            lines.append(line[4:])
            if line[3:4] != "-":
                break
        if not (line[:3].isdigit() and len(line) >= 3):
            raise Answer(LATER, "4.5.0 the gateway's answer is not LMTP")
        return int(line[:3]), lines[-1], lines

    def line(self):
        while b"\n" not in self.unread:
            self.in_time()
            more = self.socket.recv(4096)
            if not more:
                raise Answer(LATER, "4.4.2 the gateway closed the connection")
            self.unread += more
            if len(self.unread) > MAX_REPLY_BYTES:
                raise Answer(LATER, "4.5.0 the gateway's answer has no end")
        line, _, self.unread = self.unread.partition(b"\n")
        return line.rstrip(b"\r").decode("utf-8", "replace")


def with_door(door, options, octets):
    """Hands the mail over; always ends in an Answer."""
    wanted(door.reply())
    _, _, offers = wanted(door.say("LHLO gateway-pipe"))
    octets = octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    if not octets.endswith(b"\r\n"):
        octets += b"\r\n"
    forward(door, options, offers)
    wanted(door.say(f"MAIL FROM:<{options['from']}>{parameters(options, octets, offers)}"))
    wanted(door.say(f"RCPT TO:<{options['to']}>"))
    wanted(door.say("DATA"), first="3")
    if octets.startswith(b"."):
        octets = b"." + octets
    door.send(octets.replace(b"\r\n.", b"\r\n..") + b".\r\n")
    _, text, _ = wanted(door.reply())
    raise Answer(KEPT, text if text[:2] == "2." else "2.0.0 " + text)


def forward(door, options, offers):
    """Names the client on whose behalf we speak; a refusal costs the facts, not the mail."""
    offered = [name for offer in offers if offer.upper().startswith("XFORWARD ") for name in offer.upper().split()[1:]]
    facts = {"ADDR": options.get("client", ""), "HELO": options.get("helo", "")}
    if facts["ADDR"] in ("unknown", "local"):
        facts["ADDR"] = ""
    words = [f"{name}={xtext(facts[name])}" for name in ("ADDR", "HELO") if name in offered]
    if words:
        door.say("XFORWARD " + " ".join(words))


def xtext(value):
    """Encodes as RFC 3461, section 4, has it; what is not known is said to be unavailable."""
    octets = value.encode(sys.getfilesystemencoding(), "surrogateescape")
    return "".join(chr(o) if 33 <= o <= 126 and o not in b"+=" else f"+{o:02X}" for o in octets) or "[UNAVAILABLE]"


def parameters(options, octets, offers):
    """The parameters of MAIL that this mail needs and the door offers."""
    header = octets.partition(b"\r\n\r\n")[0]
    needs_utf8 = not (header.isascii() and (options["from"] + options["to"]).isascii())
    words = [f"SIZE={len(octets)}"] if any(offer.upper().startswith("SIZE") for offer in offers) else []
    words += ["BODY=8BITMIME"] if "8BITMIME" in offers and not octets.isascii() else []
    words += ["SMTPUTF8"] if "SMTPUTF8" in offers and needs_utf8 else []
    return "".join(" " + word for word in words)


def wanted(reply, first="2"):
    """Returns a good reply; raises the Answer that any other one means."""
    code, text, _ = reply
    if str(code)[0] == first:
        return reply
    status = text.split(" ")[0].split(".")
    is_proven = 550 <= code <= 554 and len(status) == 3 and status[0] == "5" and status[1] in "123467"
    if not is_proven:
        raise Answer(LATER, f"4.3.0 the gateway said: {code} {text}")
    raise Answer({"1": NO_RECIPIENT, "7": NOT_PERMITTED}.get(status[1], CONTENT), text)


def tell(answer):
    try:
        sys.stdout.buffer.write((answer.text + "\n").encode("utf-8", "replace"))
        sys.stdout.buffer.flush()
    except OSError:
        pass  # nobody listens; the exit code says it all the same


if __name__ == "__main__":
    try:
        try:
            main(sys.argv[1:])
        except Answer as answer:
            found = answer
        except TimeoutError:
            found = Answer(LATER, "4.4.2 the gateway did not answer in time")
        except OSError as error:
            found = Answer(LATER, f"4.4.1 the gateway is not there: {error.strerror}")
        tell(found)
        sys.exit(found.code)
    except Exception:  # noqa: BLE001 - the wrapper makes 75 of it, too; a traceback would only be quoted to the sender
        sys.exit(LATER)
