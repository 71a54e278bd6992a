"""Run by the Python that has Ray Serve and vLLM: serves the application of a YAML file until it is ended."""

from __future__ import annotations

import json
import signal
import sys
from importlib import import_module
from pathlib import Path

import ray
from ray import serve

config = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
# more cores than there are: a replica and its engine ask for one each, and mostly wait for each other
ray.init(address="local", num_cpus=8, include_dashboard=False, object_store_memory=100 << 20)
serve.start(http_options=config["http_options"])
(app,) = config["applications"]
module, _, builder = app["import_path"].partition(":")
serve.run(
    getattr(import_module(module), builder)(app["args"]), name=app["name"], route_prefix=app["route_prefix"]
)
print("ready", flush=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
try:
    signal.pause()
finally:
    serve.shutdown()
    ray.shutdown()
