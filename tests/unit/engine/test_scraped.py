"""What Prometheus reads of every stage."""

from __future__ import annotations

import socket
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backbones import progress
from backbones.progress import ProgressBar
from selftrain.engine import scraped
from selftrain.errors import EngineError


def scrape(url):
    """Name, stage and unit -> value."""
    with urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        (one.name.removeprefix("selftrain_stage_"), *one.labels.values()): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def test_each_stage_says_what_is_done_and_left_and_how_fast(monkeypatch):
    for name in list(progress.LATEST):
        monkeypatch.delitem(progress.LATEST, name)
    url = scraped.serve_figures("0")
    assert scrape(url) == {}
    with ProgressBar(desc='a "stage"\n', total=10, initial=2, disable=True) as bar:
        bar.update(3)
        ProgressBar(desc="rows", unit="row", disable=True).update(7)  # how many there are is not known
        found = scrape(url)
        assert found.pop(("per_second", 'a "stage"\n', "post")) > 0
        assert found.pop(("per_second", "rows", "row")) > 0
        assert found == {
            ("done", 'a "stage"\n', "post"): 5, ("left", 'a "stage"\n', "post"): 5,
            ("done", "rows", "row"): 7,
        }  # fmt: skip
        bar.update(5)
    assert scrape(url)["left", 'a "stage"\n', "post"] == 0


@pytest.mark.parametrize("address", ["nonsense", "", "no.such.host.example:0", "-1", "99999", "127.0.0.1:"])
def test_an_address_that_cannot_be_had_is_told(address):
    with pytest.raises(EngineError, match=r"figures cannot be served at .*expected PORT or HOST:PORT"):
        scraped.serve_figures(address)


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(EngineError, match=r"in use.*another --metrics"):
            scraped.serve_figures(f"127.0.0.1:{port}")
