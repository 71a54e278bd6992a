"""A server under attack: what it is sent, whether it still answers others, and what that cost it."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from http_helpers import ask
from kill_helpers import ENVIRONMENT
from PIL import Image
from processes import Process

CHILD = Path(__file__).parent / "attacks" / "serve_child.py"
WAIT = 120  # nothing here takes so long; a test that would wait for ever fails
PROBE = 10


class Attacked:
    """A server's process: `listening on URL` or `open URL` is its first word."""

    def __init__(self, command, **environment):
        self.process = Process(command, env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"} | environment)
        self.log, self.lines = [], []
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def first(self, word):
        """The rest of the first line that begins so."""
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(word):
                return line.removeprefix(word).strip()
        raise AssertionError(f"no {word!r}: {self.lines}, {self.process.wait(WAIT)}, {self.log}")

    def listening(self, port):
        """Remember where it listens, and what it took until now."""
        self.port = port
        self.before = self.peak = self._settled()
        return self

    def _settled(self):
        """Bytes once they no longer grow: processes of its own start while it answers already."""
        last, now = 0, self.memory()
        while now > last:
            time.sleep(1)
            last, now = now, self.memory()
        return now

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=PROBE)

    def request(self, method, path, body=None, headers=None, timeout=WAIT):
        return ask(self.port, method, path, body, headers, timeout=timeout)

    def score(self, body, timeout=WAIT):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        status, answer = self.request("POST", "/score", content, headers, timeout)
        return status, json.loads(answer)

    def attempt(self, body):
        """`score` of a body that is refused while it is sent: the answer may be lost over that."""
        try:
            return self.score(body)
        except ConnectionError:
            return 413, {"error": "cut off"}

    def serves(self):
        """An honest client is served."""
        assert self.request("GET", "/health", timeout=PROBE)[0] == 200
        status, answer = self.score({"id": "honest", "text": "0.75"}, PROBE)
        assert (status, answer["scores"][0].get("probability")) == (200, 0.75), answer

    @contextmanager
    def others_served(self):
        """All the while, honest clients are served, one after the other."""
        over, wrong, served = threading.Event(), [], []

        self.peak = self.memory()

        def ask():
            while not over.is_set():
                try:
                    self.serves()
                    self.peak = max(self.peak, self.memory())
                    served.append(time.monotonic())
                except Exception as error:
                    wrong.append(error)
                    return
                time.sleep(0.02)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            yield
        finally:
            over.set()
            asking.join(WAIT)
        assert not wrong, wrong
        assert served, "nobody was served meanwhile"

    def memory(self):
        """Bytes of the process and of its own."""
        own, total = psutil.Process(self.process.pid), 0
        for one in (own, *own.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                total += one.memory_info().rss
        return total

    def grown(self):
        """Most of them while others were served the last time, beyond those at the start."""
        return self.peak - self.before

    def end(self):
        """Ends it: it still can, and has logged little."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(WAIT)
        self._reader.join(WAIT)
        assert code == 0, self.log
        assert sum(map(len, self.log)) < 20_000, self.log[:20]
        assert not any("Traceback" in line for line in self.log), self.log


def serve(temporary, **told):
    """A `selftrain serve`, ready; see serve_child.py."""
    server = Attacked([CHILD, json.dumps(told)], TMPDIR=str(temporary))
    port = int(server.first("listening on http://127.0.0.1:").partition(",")[0])
    server.first("ready")
    return server.listening(port)


def received(client):
    """What comes until the server closes."""
    found = b""
    try:
        while part := client.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


# ---- what is sent ----------------------------------------------------------------------------------------


def encoded(content):
    return base64.b64encode(content).decode()


def picture(width, height, mode="L", form="PNG", **options):
    """A picture of one colour: small on disk, whatever its size."""
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, form, **options)
    return file.getvalue()


def grey16(width, height):
    """A PNG of 16 bits a channel, all black."""
    file = io.BytesIO()
    Image.new("I;16", (width, height)).save(file, "PNG")
    return file.getvalue()


def many_scans(width, height, scans):
    """A progressive JPEG whose last scan stands there so many times more."""
    whole = picture(width, height, "RGB", "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + whole[last:-2] * scans + b"\xff\xd9"


def bomb(kind):
    """A picture of 49 million pixels."""
    return {
        "grey": lambda: picture(7000, 7000), "one bit": lambda: picture(7000, 7000, "1"),
        "16 bits": lambda: grey16(7000, 7000), "transparent": lambda: picture(7000, 7000, "RGBA"),
        "palette": lambda: picture(7000, 7000, "P"), "gif": lambda: picture(7000, 7000, "L", "GIF"),
        "webp": lambda: picture(7000, 7000, "RGBA", "WEBP", lossless=True, method=0),
        "jpeg": lambda: picture(7000, 7000, "RGB", "JPEG", quality=30),
        "progressive": lambda: picture(7000, 7000, "RGB", "JPEG", quality=30, progressive=True),
    }[kind]()  # fmt: skip


KINDS = ("grey", "one bit", "16 bits", "transparent", "palette", "gif", "webp", "jpeg", "progressive")


def head(*lines):
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


POST = ("POST /score HTTP/1.1", "Host: localhost", "Content-Type: application/json")
