"""The five routes, in this process: statuses, limits, the key, what is counted, what is cleaned up."""

from __future__ import annotations

import base64
import threading
from io import BytesIO

import pytest
from PIL import Image
from serving_helpers import HeldPredictor, Served, TextPredictor

from selftrain.serving import app as app_module
from selftrain.serving.intake import Scratch
from selftrain.serving.wire import RequestLimits

WAIT = 30


def picture():
    file = BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def make(tmp_path):
    made = []

    def build(predictor=None, *, limits=None, key="", load=True):
        made.append(Served(tmp_path, predictor or TextPredictor(), limits or RequestLimits(), key, load))
        return made[-1]

    yield build
    for served in made:
        if isinstance(served.predictor, HeldPredictor):
            served.predictor.go.release(100)
        if served.loaded.is_set():
            served.batcher.close()
        served.scratch.close()


def test_scores_come_back_by_id_with_failures_in_their_place(make):
    served = make()
    posts = [{"id": "a", "text": "0.9"}, {"id": "b", "text": "fail"}, {"id": "c", "text": " "}]
    told = served.client.post("/score", json={"posts": posts})
    assert told.status_code == 200
    scores = told.json()["scores"]
    assert told.json()["model"] == "texts"
    assert scores[0] == {
        "id": "a", "label": "yes", "probability": 0.9, "probabilities": {"yes": 0.9, "no": 0.1},
        "process": {"many": {"a": 0.25, "b": 0.75}},
    }  # fmt: skip
    assert [set(one) for one in scores[1:]] == [{"id", "error"}] * 2
    figures = served.measured()
    assert figures["selftrain_posts_total"] == 1
    assert figures["selftrain_failures_total"] == 2
    assert figures['selftrain_requests_total{path="/score",status="200"}'] == 1
    assert figures["selftrain_request_seconds_count"] == 1
    assert (figures["selftrain_batch_posts_count"], figures["selftrain_batch_posts_sum"]) == (1, 2)
    assert figures["selftrain_queue_posts"] == 0


def test_pictures_lie_in_a_private_folder_while_they_are_scored_and_no_longer(make):
    seen = []

    class Looks(TextPredictor):
        def predict(self, posts):
            for post in posts:
                seen.extend(
                    (path.stat().st_size, path.parent.parent.stat().st_mode & 0o777) for path in post.images
                )
            return super().predict(posts)

    served = make(Looks())
    told = served.client.post("/score", json={"id": "a", "text": "0.2", "images": [picture(), picture()]})
    assert told.json()["scores"][0]["label"] == "no"
    assert len(seen) == 2
    assert {mode for _, mode in seen} == {0o700}
    served.batcher.close()
    assert [path.name for path in served.scratch.path.iterdir()] == ["in-use"]
    served.scratch.close()
    assert not served.scratch.path.exists()


def test_a_folder_that_a_killed_server_left_is_removed_and_one_in_use_is_not(tmp_path):
    left = tmp_path / "selftrain-serve-left"
    left.mkdir()
    (left / "in-use").touch()
    (left / "picture").touch()
    used = Scratch(tmp_path)
    other = Scratch(tmp_path)
    assert not left.exists()
    assert used.path.exists()
    assert other.path.exists()
    used.close()
    other.close()


def test_readiness_follows_the_model_and_the_drain(make):
    served = make(load=False)
    states = [(served.client.get("/ready").status_code, served.client.get("/health").status_code)]
    assert served.client.post("/score", json={"id": "a", "text": "0.1"}).status_code == 503
    assert served.client.get("/model").status_code == 503
    served.load()
    states.append((served.client.get("/ready").status_code, served.client.get("/health").status_code))
    idle = []
    served.service.on_idle = lambda: idle.append(True)
    served.service.drain()
    states.append((served.client.get("/ready").status_code, served.client.get("/health").status_code))
    assert states == [(503, 200), (200, 200), (503, 200)]
    refused = served.client.post("/score", json={"id": "a", "text": "0.1"})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert idle[0]


def test_draining_is_idle_only_after_the_last_answer(make):
    served = make(HeldPredictor())
    idle, answers = threading.Event(), []
    served.service.on_idle = idle.set
    post = threading.Thread(
        target=lambda: answers.append(served.client.post("/score", json={"id": "a", "text": "0.1"}))
    )
    post.start()
    assert served.predictor.entered.acquire(timeout=WAIT)
    served.service.drain()
    assert not idle.is_set()
    served.predictor.go.release()
    post.join(WAIT)
    assert answers[0].status_code == 200
    assert idle.wait(WAIT)


def test_a_full_queue_is_429_and_a_fault_500_with_the_server_alive(make):
    served = make()
    many = {"posts": [{"id": str(n), "text": "0.1"} for n in range(9)]}
    full = served.client.post("/score", json=many)
    assert (full.status_code, full.headers["retry-after"]) == (429, "1")
    assert "at most 8 may wait" in full.json()["error"]
    fault = served.client.post("/score", json={"id": "a", "text": "raise"})
    assert fault.status_code == 500
    assert "asked to fail" not in fault.text
    assert served.client.post("/score", json={"id": "a", "text": "0.1"}).status_code == 200
    assert list(served.scratch.path.glob("[0-9]*")) == []


def test_a_body_is_refused_by_its_length_or_as_it_streams(make):
    served = make(limits=RequestLimits(body=1000))
    declared = served.client.post("/score", content=b"x" * 1001)
    assert declared.status_code == 413
    streamed = served.client.post("/score", content=(b"x" * 100 for _ in range(11)))
    assert streamed.status_code == 413
    assert streamed.headers["connection"] == "close"
    fits = b'{"id": "a", "text": "0.1"}'
    assert served.client.post("/score", content=fits + b" " * (1000 - len(fits))).status_code == 200


def test_bytes_under_way_have_a_common_limit_and_are_given_back(make, monkeypatch):
    monkeypatch.setattr(app_module, "BODIES", 0.5)
    monkeypatch.setattr(app_module, "SMALL", 100)  # bytes that are taken in any case
    served = make(limits=RequestLimits(body=1000))
    assert served.client.post("/score", content=b"x" * 600).status_code == 429
    assert served.client.post("/score", json={"id": "a", "text": "0.1"}).status_code == 200
    assert served.client.post("/score", json={"id": "a", "text": "0.1"}).status_code == 200
    assert served.service._held == 0


def test_the_key_guards_all_but_the_probes(make):
    served = make(key="sëcret")
    statuses = {
        path: served.client.get(path).status_code for path in ("/health", "/ready", "/metrics", "/model")
    }
    assert statuses == {"/health": 200, "/ready": 200, "/metrics": 401, "/model": 401}
    post = {"id": "a", "text": "0.1"}
    for shown in ("Bearer wrong", "Basic sëcret", "sëcret", "Bearer ", "Bearer sëcretx"):
        refused = served.client.post("/score", json=post, headers={"authorization": shown.encode()})
        assert refused.status_code == 401, shown
        assert refused.headers["www-authenticate"] == "Bearer"
    shown = {"authorization": "Bearer sëcret".encode()}
    assert served.client.post("/score", json=post, headers=shown).status_code == 200
    assert served.client.get("/model", headers=shown).json() == {
        "kind": "classifier", "name": "texts", "classes": ["yes", "no"], "positive": "yes",
        "threshold": None, "fingerprint": "f" * 64,
    }  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/score", 405), ("POST", "/admin", 404)])
def test_other_requests_are_told_what_there_is(make, method, path, status):
    served = make()
    told = served.client.request(method, path)
    assert told.status_code == status
    assert "expected POST /score" in told.json()["error"]
    assert served.measured()[f'selftrain_requests_total{{path="other",status="{status}"}}'] == 1


def test_what_a_request_holds_cannot_break_the_answer(make):
    told = make().client.post("/score", content=b'{"id": "a", "text": "x", "\\ud800\\u001b": 1}')
    assert told.status_code == 422
    assert "unknown field" in told.json()["error"]
