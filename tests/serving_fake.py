"""A program that answers like a vLLM server, or fails like one; run as a process of its own.

    serving_fake.py BEHAVIOUR PORT NOTES

BEHAVIOUR is among `BEHAVIOURS`. NOTES is a file in which it writes, one JSON object a line: its processes,
then what it is sent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEHAVIOURS = {
    "good": "takes images",
    "text only": "refuses images",
    "roomy": "allows white space, and tells no details of its usage",
    "free": "does not keep to the schema",
    "stubborn": "ignores SIGTERM, and has a child in a session of its own that does so too",
    "elsewhere": "sends everybody who asks for its health to another address",
    "breaks": "ends when it is asked the first question",
    "dies": "ends before it listens, as vLLM does for want of memory",
    "deaf": "never listens",
}
DYING = """\
(APIServer pid=12) INFO 11-22 06:19:58 [model.py:2152] Using max model len 8192
Loading safetensors checkpoint shards:   0% Completed\rLoading safetensors checkpoint shards: 100% Completed
(EngineCore pid=13) ERROR 11-22 06:20:12 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=13) ERROR 11-22 06:20:12 [core.py:1510] ValueError: Available memory on node 0 (7.58/17.09\
 GiB) on kv cache allocation is less than requested memory for kv (400.0 GiB).
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""


def note(notes, **what):
    with Path(notes).open("a") as file:
        file.write(json.dumps(what) + "\n")


def completion(behaviour):
    text = {"roomy": '{ "label": "1 acceptable",\n "rationale": "a cat" }', "free": "I think so."}.get(
        behaviour, '{"label":"1 acceptable","rationale":"a cat"}'
    )
    token = {"token": text, "logprob": -0.1, "top_logprobs": [{"token": text, "logprob": -0.1}]}
    usage = {"prompt_tokens": 50, "completion_tokens": 9, "total_tokens": 59}
    if behaviour != "roomy":
        usage["prompt_tokens_details"] = {"cached_tokens": 16, "multimodal_tokens": {"image": 20}}
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": [token]}}
    return {"choices": [choice], "usage": usage}


def handler(behaviour, notes):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def say(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "http://127.0.0.1:9/")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def refused(self):
            key = os.environ.get("VLLM_API_KEY")
            if key and self.headers.get("Authorization") != f"Bearer {key}":
                self.say(401, {"error": "Unauthorized"})
            return key and self.headers.get("Authorization") != f"Bearer {key}"

        def do_GET(self):
            if self.path == "/health":
                self.say(302 if behaviour == "elsewhere" else 200, {})
            elif self.path == "/version":
                self.say(200, {"version": "0.32.0"})
            elif self.path == "/v1/models" and not self.refused():
                self.say(200, {"data": [{"id": "fake", "root": "/models/fake", "max_model_len": 4096}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            note(notes, path=self.path, body=body)
            if self.refused():
                return
            if behaviour == "breaks":
                os._exit(7)
            if behaviour == "text only" and "image_url" in json.dumps(body):
                self.say(400, {"error": {"message": "fake is not a multimodal model", "code": 400}})
            else:
                self.say(200, completion(behaviour))

    return Handler


def main(behaviour, port, notes):
    pids = [os.getpid()]
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
        child = subprocess.Popen(
            [sys.executable, "-c", program + "; time.sleep(600)"],
            start_new_session=True,
            stdout=subprocess.PIPE,
        )
        child.stdout.readline()
        pids.append(child.pid)
    note(notes, pids=pids, key=os.environ.get("VLLM_API_KEY"), stated=os.environ.get("DO_NOT_TRACK"))
    if behaviour == "dies":
        print(DYING, end="", flush=True)
        sys.exit(3)
    if behaviour == "deaf":
        print("thinking", flush=True)
        signal.pause()
    ThreadingHTTPServer(("127.0.0.1", int(port)), handler(behaviour, notes)).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
