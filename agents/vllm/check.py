"""Whether a server, ours or anybody's, can do what the agents need of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from agents.client.served import Served, read_served
from agents.client.translate import BrokenAnswerError
from agents.errors import ServerRefusedError
from agents.vllm.probe import Trial, ask, fetch


class Check(NamedTuple):
    """One thing looked at.

    Attributes:
        what: "alive", "model" or "answer".
        passed: Whether agents can go on.
        detail: What was found; after a failure also what to do.
    """

    what: str
    passed: bool
    detail: str


def check_server(
    address: str, *, model: str = "", key: str = "", image: bool = True, seconds: float = 120.0
) -> Iterator[Check]:
    """Look at a server step by step; the first failure is the last step.

    Args:
        address: ``http://127.0.0.1:8000``, without /v1.
        model: The name that must be served; empty: the only one that is.
        key: What the server wants to be shown; empty: nothing.
        image: Whether to ask about a picture, or about a text.
        seconds: The time that its answer may take; the first constrained one takes longest.
    """
    health = fetch(f"{address}/health", key)
    if health.status == 0 or health.status >= 500:
        yield Check("alive", False, f"{health.words}: is a server running at this address, and well?")
        return
    path = "" if health.status == 200 else f"; it has no /health (HTTP {health.status})"
    yield Check("alive", True, f"it answers{path}")
    served = _served(address, model, key)
    if isinstance(served, Check):
        yield served
        return
    yield Check("model", True, str(served))
    yield _judge(ask(address, served.model, key, image=image, seconds=seconds), image=image)


def _served(address: str, model: str, key: str) -> Served | Check:
    models, version = fetch(f"{address}/v1/models", key), fetch(f"{address}/version", key)
    if models.status != 200:
        advice = ": set the key in the environment" if models.status in {401, 403} else ""
        return Check("model", False, f"/v1/models: {models.words}{advice}")
    try:
        return read_served(address, models.body, version.body if version.status == 200 else None, model)
    except (ServerRefusedError, BrokenAnswerError) as error:
        return Check("model", False, str(error))


def _judge(trial: Trial, *, image: bool) -> Check:
    about = "an image" if image else "a text"
    if trial.completion is None:
        return Check("answer", False, f"to a question about {about}: {trial.fault}")
    usage = trial.completion.usage
    notes = [
        f"constrained, about {about}, after {trial.completion.seconds:.1f} s; {usage.prompt} prompt tokens,"
        f" {usage.image} of them of images, {usage.cached} cached"
    ]
    if not trial.compact:
        notes.append(
            "it allows white space in JSON, in which a small model may lose itself; vLLM forbids it with"
            ' --structured-outputs-config \'{"backend": "xgrammar", "disable_any_whitespace": true}\''
        )
    if not trial.detailed:
        notes.append(
            "it does not count cached and image tokens; vLLM does with --enable-prompt-tokens-details"
        )
    return Check("answer", True, "; ".join(notes))
