"""What the server tells of itself: its OpenAPI description, with the limits that it was started with.

What is past a limit is answered 413, not 422: limits stand in the descriptions, the form in the schemas.
"""

from __future__ import annotations

from selftrain._util.types import Json
from selftrain.data.posts import MAX_IMAGES
from selftrain.serving.wire import ID_CHARACTERS, RequestLimits

NO_NUL = r"^[^\x00]*$"
_FOUR = "[A-Za-z0-9+/]"
BASE64 = (
    r"^([dD][aA][tT][aA]:[^,]*;[bB][aA][sS][eE]64,)?"
    rf"({_FOUR}{{4}})*({_FOUR}{{4}}|{_FOUR}{{3}}=|{_FOUR}{{2}}==)$"
)
REASONS = {
    400: "The body is no JSON, or the Host header no name of this server.",
    401: "No key, or a wrong one.",
    403: "The page of another site asked.",
    408: "The body took too long to arrive.",
    409: "Two posts with the same id, or a key twice in one object.",
    413: "More than the limits allow.",
    415: "The body is not said to be JSON.",
    422: "JSON of another form.",
    429: "Too many posts wait: ask again later.",
    500: "The model failed, or the server.",
    503: "The server is loading or about to end, or has no room for pictures.",
}


def describe(limits: RequestLimits, *, key: bool) -> Json:
    """Return the OpenAPI 3.1 description of the routes; `key`: whether clients must show one."""
    secured: Json = {"security": [{"key": []}]} if key else {}
    score = {
        "operationId": "score",
        "summary": "Score one post, or several.",
        "requestBody": {
            "required": True,
            "description": f"At most {limits.body:,} bytes.",
            "content": {"application/json": {"schema": {"anyOf": [_ref("Posts"), _ref("Post")]}}},
        },
        "responses": {"200": _answer("As asked.", _ref("Scores"))}
        | _errors(400, 401, 403, 408, 409, 413, 415, 422, 429, 500, 503),
        **secured,
    }
    status, figures = _ref("Status"), {"text/plain": {"schema": {"type": "string"}}}
    # path -> what it is for, what it answers, and how else than by 400 and 403
    told: dict[str, tuple[str, Json, tuple[int, ...]]] = {
        "/health": ("Whether the process lives.", _answer("As asked.", status), ()),
        "/ready": ("Whether posts are taken.", _answer("As asked.", status), ()),
        "/model": ("The model.", _answer("As asked.", _ref("Model")), (401, 503)),
        "/openapi.json": ("This description.", _answer("As asked.", {"type": "object"}), (401,)),
        "/metrics": ("Figures for Prometheus.", {"description": "Figures.", "content": figures}, (401,)),
    }
    paths: Json = {}
    for path, (text, answer, codes) in told.items():
        responses = {"200": answer} | _errors(400, *sorted({403, *codes}))
        paths[path] = {"get": {"summary": text, "responses": responses, **(secured if 401 in codes else {})}}
    paths["/ready"]["get"]["responses"]["503"] = _answer("Not yet, or no more.", status)
    components: Json = {"schemas": _schemas(limits)}
    if key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "selftrain serve", "version": "1"},
        "paths": {"/score": {"post": score}, **paths},
        "components": components,
    }


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _answer(text: str, schema: Json) -> Json:
    return {"description": text, "content": {"application/json": {"schema": schema}}}


def _errors(*codes: int) -> Json:
    return {str(code): _answer(REASONS[code], _ref("Error")) for code in codes}


def _object(required: tuple[str, ...], **properties: Json) -> Json:
    return {"type": "object", "required": list(required), "properties": properties}


def _schemas(limits: RequestLimits) -> Json:
    text, share = {"type": "string"}, {"type": "number", "minimum": 0, "maximum": 1}
    shares = {"type": "object", "additionalProperties": share}
    image = {
        "type": "string", "pattern": BASE64,
        "description": f"The file's bytes in base64, or a data: URI of them; at most {limits.image:,} bytes"
        f" and {limits.pixels:,} pixels. What cannot be decoded is an error of its post.",
    }  # fmt: skip
    post = _object(
        ("id",),
        id={
            **text, "minLength": 1, "pattern": NO_NUL,
            "description": f"To find its score by; at most {ID_CHARACTERS:,} characters.",
        },
        text={
            "type": ["string", "null"], "pattern": NO_NUL,
            "description": f"At most {limits.text:,} characters.",
        },
        images={"type": "array", "maxItems": MAX_IMAGES, "items": image},
    )  # fmt: skip
    score = _object(
        ("id", "label", "probability"), id=text, label=text, probability=share, probabilities=shares,
        process={"type": "object", "additionalProperties": shares},
        answers={"type": "object", "additionalProperties": text},
    )  # fmt: skip
    posts = {
        "type": "array", "minItems": 1, "items": _ref("Post"),
        "description": f"At most {limits.posts:,}, no two with the same id.",
    }  # fmt: skip
    scores = {"anyOf": [score, _object(("id", "error"), id=text, error=text)]}
    return {
        "Post": post | {"additionalProperties": False},
        "Posts": _object(("posts",), posts=posts) | {"additionalProperties": False},
        "Scores": _object(("model", "scores"), model=text, scores={"type": "array", "items": scores}),
        "Status": _object(("status",), status=text),
        "Model": _object(
            ("kind", "name", "classes", "positive", "threshold", "fingerprint"),
            kind=text, name=text, classes={"type": "array", "items": text}, positive=text, fingerprint=text,
            threshold={"type": ["number", "null"], "minimum": 0, "maximum": 1},
        ),
        "Error": _object(("error",), error=text),
    }  # fmt: skip
