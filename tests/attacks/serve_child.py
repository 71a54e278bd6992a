"""`selftrain serve` with a model that costs little, in a process of its own; told in JSON what is different.

serve_child.py '{"set": {"web.http_server.HEADER_SECONDS": 0.5}, "key": "", "most_file_bytes": 1000}'
"""

from __future__ import annotations

import importlib
import json
import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from serving_helpers import PicturePredictor

from selftrain.serving.server import serve
from selftrain.serving.wire import RequestLimits
from selftrain.web.http_server import quiet_logs


def main(told):
    for name, value in told.get("set", {}).items():
        module, _, constant = name.rpartition(".")
        module = importlib.import_module(f"selftrain.{module}")
        assert hasattr(module, constant), name
        setattr(module, constant, value)
    if most := told.get("most_file_bytes"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    quiet_logs()
    serve(
        PicturePredictor, host="127.0.0.1", port=0, max_queue=told.get("queue", 1024),
        limits=RequestLimits(), key=told.get("key", ""), tell=lambda line: print(line, flush=True),
    )  # fmt: skip


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
