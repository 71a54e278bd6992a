"""Requests: what is read, what is refused with which words, and what becomes of pictures."""

from __future__ import annotations

import base64
import json
import pickle
import re
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from selftrain.models.predictor import Prediction
from selftrain.serving.wire import RequestLimits, ValueCount, answer, parse, place
from selftrain.web.access import BadRequestError

LIMITS = RequestLimits(body=10_000, posts=3, text=20, image=3_000, pixels=10_000)


def png(width=8, height=8):
    file = BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


def encoded(content):
    return base64.b64encode(content).decode()


def body(value):
    return json.dumps(value).encode()


def post(**fields):
    return {"id": "a", "text": "words"} | fields


def test_a_list_and_a_single_post_are_read():
    listed = parse(body({"posts": [post(), post(id="b", images=[encoded(png())])]}), LIMITS)
    assert [(one.id, one.text, len(one.images)) for one in listed] == [("a", "words", 0), ("b", "words", 1)]
    assert listed[1].images == (png(),)
    alone = parse(body({"id": "ü", "images": ["data:image/png;base64," + encoded(png())]}), LIMITS)
    assert [(one.id, one.text, one.images) for one in alone] == [("ü", "", (png(),))]
    # as Windows' editors and PowerShell write a file that is sent
    assert parse(b"\xef\xbb\xbf" + body(post()), LIMITS)[0].id == "a"


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"{", 400, "not JSON"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b"[" * 100_000, 400, "not JSON"),
        (b"[]", 422, "a list without contents; expected an object"),
        (body({"posts": {}}), 422, "an object without contents; expected a list"),
        (body({"posts": []}), 422, "at least one post"),
        (body({"posts": ["x"]}), 422, r"posts\[0\] is a text; expected an object with id, text, images"),
        (body({"posts": [post()], "model": 1}), 422, "unknown field 'model'; expected posts"),
        (body(post(label="x")), 422, "the post has the unknown field 'label'; expected id, text, images"),
        (body({"posts": [post(id=str(n)) for n in range(4)]}), 413, "4 posts; at most 3"),
        (body({"posts": [post(), post()]}), 409, "id 'a' stands twice"),
        (b'{"id": "a", "text": "x", "text": "y"}', 409, "the key 'text' stands twice"),
        (b'{"posts": [{"id": "a", "text": "x"}], "posts": []}', 409, "the key 'posts' stands twice"),
        (body({"text": "x"}), 422, "id is empty or absent"),
        (body(post(id=7)), 422, "id is a number; expected a text"),
        (body(post(text=["x"])), 422, "text is a list; expected a text"),
        (body(post(text="x" * 21)), 413, "21 characters; at most 20"),
        (body(post(text="a\0b")), 422, "NUL"),
        (b'{"id": "a", "text": "\\ud83d"}', 422, "half a surrogate pair"),
        (body(post(images="x")), 422, "images is a text; expected a list"),
        (body(post(images=["eA=="] * 17)), 422, "has 17; at most 16"),
        (body(post(images=[1])), 422, r"images\[0\] is a number"),
        (body(post(images=["https://example.org/x.png"])), 422, "is a URL, and none is fetched"),
        (body(post(images=["file:///etc/passwd"])), 422, "is a URL, and none is fetched"),
        (body(post(images=["data:image/png;base64"])), 422, "without a comma"),
        (body(post(images=["%%%"])), 422, "not base64"),
        (body(post(images=["eA"])), 422, "not base64"),
        (body(post(images=[""])), 422, "is empty"),
        (body(post(images=[encoded(b"x" * 3_001)])), 413, "about 3,00"),
    ],
)
def test_what_is_not_a_request_is_refused_with_what_was_found(content, status, words):
    with pytest.raises(BadRequestError, match=words) as refused:
        parse(content, LIMITS)
    assert refused.value.status == status


def test_limits_are_reached_but_not_passed():
    whole = [post(id=str(n), text="x" * 20) for n in range(3)]
    assert len(parse(body({"posts": whole}), LIMITS)) == 3
    largest = encoded(b"x" * 3_000)
    assert len(parse(body(post(images=[largest])), LIMITS)[0].images[0]) == 3_000


def test_a_bad_picture_costs_its_post_alone_and_names_it_as_the_client_knows_it(tmp_path):
    bomb, broken = png(101, 100), b"not an image"
    given = parse(
        body(
            {
                "posts": [
                    post(id="large", images=[encoded(png()), encoded(bomb)]),
                    post(id="good", images=[encoded(png())]),
                    post(id="broken", images=[encoded(broken)]),
                ]
            }
        ),
        LIMITS._replace(posts=9),
    )
    placed = place(given, tmp_path, LIMITS)
    assert list(placed.posts) == [1]
    assert placed.posts[1].images[0].read_bytes() == png()
    assert "images[1]: 101 x 100 = 10,100 pixels; at most 10,000" in placed.reasons[0]
    assert placed.reasons[2].startswith("images[0]: not an image")
    # a client has neither the server's files nor a manifest
    assert str(tmp_path) not in "".join(placed.reasons.values())
    assert "manifest" not in "".join(placed.reasons.values())
    score = Prediction("", "yes", {"yes": 0.75, "no": 0.25}, {"q": {"a": 1 / 3}})
    told = answer("m", placed, [score])
    assert [one["id"] for one in told["scores"]] == ["large", "good", "broken"]
    assert told["scores"][1] == {
        "id": "good", "label": "yes", "probability": 0.75, "probabilities": {"yes": 0.75, "no": 0.25},
        "process": {"q": {"a": 0.333333}},
    }  # fmt: skip
    failed = answer("m", placed, [Prediction("", reason=f"{placed.posts[1].images[0]}: cannot be decoded")])
    assert failed["scores"][1] == {"id": "good", "error": "images[0]: cannot be decoded"}


def test_a_post_of_nothing_has_a_reason_and_no_score(tmp_path):
    placed = place(parse(body(post(text=" ")), LIMITS), tmp_path, LIMITS)
    assert placed.posts == {}
    assert "neither text nor image" in placed.reasons[0]


# ---- counted before it is parsed ----


def counted(content, most, size):
    count = ValueCount(most)
    for start in range(0, len(content), size):
        count.feed(content[start : start + size])
    return count


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda one: st.lists(one) | st.dictionaries(st.text(), one),
    ),
    st.integers(1, 7),
    st.booleans(),
)
def test_values_are_counted_alike_however_a_body_is_cut(value, size, ascii_only):
    content = json.dumps(value, ensure_ascii=ascii_only, indent=1).encode("utf-8", "surrogatepass")
    # the naive way: every string is one, what stands beside the strings counts by the byte
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "s", json.dumps(value, ensure_ascii=ascii_only))
    expected = len(re.sub(r"\s", "", bare))
    counted(content, expected, size)
    with pytest.raises(BadRequestError, match="more values") as refused:
        counted(content, expected - 1, size)
    assert refused.value.status == 413


def test_the_largest_request_that_is_allowed_is_not_too_many_values():
    limits = RequestLimits(posts=20)
    one = {"id": 'a"\\', "text": None, "images": ["eA=="] * 16}
    counted(json.dumps({"posts": [one] * 20}, indent=4).encode(), limits.values, 1000)


def test_a_refusal_comes_back_whole_from_another_process():
    back = pickle.loads(pickle.dumps(BadRequestError(413, "too much")))
    assert (back.status, str(back)) == (413, "too much")


def test_images_of_a_request_have_a_common_budget(tmp_path):
    posts = [post(id=str(n), images=[encoded(png(90, 90))]) for n in range(3)]
    with pytest.raises(
        BadRequestError, match="posts 0 to 2 cost as much to decode as 48,600 pixels"
    ) as refused:
        place(parse(body({"posts": posts}), LIMITS), tmp_path, LIMITS._replace(work=40_000))
    assert refused.value.status == 413
    assert len(place(parse(body({"posts": posts}), LIMITS), tmp_path, LIMITS).posts) == 3
