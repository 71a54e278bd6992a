"""Images decoded ahead: order, errors in place, a bounded number at once."""

import threading
from pathlib import Path

import pytest

from backbones.errors import ImageError
from backbones.images import prefetch_images

PATHS = [Path(str(i)) for i in range(40)]


@pytest.mark.parametrize("workers", [0, 3])
def test_order_is_kept_and_errors_are_yielded(workers):
    def decode(path):
        if path.name == "7":
            raise ImageError("seven")
        return int(path.name)

    found = list(prefetch_images(PATHS, decode, workers))
    assert [value for value in found if not isinstance(value, ImageError)] == [i for i in range(40) if i != 7]
    assert str(found[7]) == "seven"


def test_no_more_than_twice_the_workers_are_decoded_and_not_taken():
    lock, started, taken, worst = threading.Lock(), 0, 0, 0

    def decode(path):
        nonlocal started, worst
        with lock:
            started += 1
            worst = max(worst, started - taken)

    for _ in prefetch_images(PATHS, decode, 2):
        with lock:
            taken += 1
    assert started == 40
    assert worst <= 2 * 2 + 1  # one more was handed over and is about to be counted


def test_another_error_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        list(prefetch_images(PATHS, lambda path: 1 / 0, 2))
