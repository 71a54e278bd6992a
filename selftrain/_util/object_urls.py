"""What a URL of object storage is called on this machine: the path of its copy, which stands for it.

``s3://BUCKET/KEY`` is ``$SELFTRAIN_CACHE/selftrain/objects/s3/BUCKET/KEY``. Nothing has to be remembered to
go from one to the other, and what lies beside an object lies beside its copy; `store.objects` fetches.
"""

from __future__ import annotations

import re
from pathlib import Path

from selftrain._util.files import cache_home
from selftrain.errors import ManifestError, StorageError

WHAT = "s3://BUCKET/KEY, gs://BUCKET/KEY or abfs://CONTAINER@ACCOUNT.dfs.core.windows.net/KEY"
SCHEMES = ("s3", "gs", "abfs", "abfss")
MAX_PART = 200  # bytes between two slashes: a file of a longer name, and of what is beside it, cannot be had
_CONTROL = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
# pathlib takes slashes away: s3:/BUCKET/KEY is how a URL looks that was made a path
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]+")
# another host would be sent the token of whoever reads there
_ACCOUNT = re.compile(r"[a-z0-9-]+@[a-z0-9]+\.(?:dfs|blob)\.core\.windows\.net")


def is_url(named: str | Path) -> bool:
    """Return whether a text, or a path that was made of one, is a URL and no path."""
    return _URL.match(str(named)) is not None


def local_path(named: str | Path) -> Path:
    """Return the path that something is read by: a path as it is, of a URL that of its copy.

    Raises:
        ManifestError: A URL of another kind, one with a password or options, or of no object.
    """
    found = _URL.match(str(named))
    if found is None:
        return Path(named)
    scheme, rest = found[1].lower(), found[2]
    bucket, _, key = rest.partition("/")
    # never more of a URL than this is shown or kept: what is left out may be a secret
    told = f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}"
    if scheme not in SCHEMES:
        raise ManifestError(f"{told} is no URL that is read: give a path, or {WHAT}; or download it")
    if "?" in rest or "#" in rest:
        raise ManifestError(
            f"{told} has ? or # behind it, where signatures stand: they would be written into run folders."
            " Credentials and endpoint are named in the environment; an object called so is not read"
        )
    if not (_ACCOUNT if scheme.startswith("abfs") else _BUCKET).fullmatch(bucket):
        raise ManifestError(f"{told} names no bucket, or names a user or a host: expected {WHAT}")
    if not key or key.endswith("/"):
        raise ManifestError(f"{told} is a folder: expected one object, {WHAT}")
    path = home_of("objects") / scheme / bucket / key
    if {"", ".", ".."}.intersection(key.split("/")) or url_of(path) is None:
        raise ManifestError(
            f"{told!a} has an empty part, one of dots, one of more than {MAX_PART} bytes, or a control"
            " character: rename the object"
        )
    return path


def url_of(path: Path) -> str | None:
    """Return the URL whose copy lies at a path; None elsewhere, and where there can be no copy."""
    home = home_of("objects")
    if not path.is_relative_to(home):
        return None
    scheme, *parts = path.relative_to(home).parts or ("",)
    key = "/".join(parts)
    if len(parts) < 2 or _CONTROL.search(key) or max(len(one.encode()) for one in parts) > MAX_PART:
        return None
    return f"{scheme}://{key}"


def url_or_path(path: Path) -> str:
    """Return what a path is called to people, and in files: the URL whose copy lies there, else the path."""
    return url_of(path) or str(path)


def name_urls(text: str) -> str:
    """Return a message with the URLs in it instead of the paths of their copies."""
    return re.sub(f"{re.escape(str(home_of('objects')))}/({'|'.join(SCHEMES)})/", r"\1://", text)


def home_of(kind: str) -> Path:
    """Return a folder of the cache: "objects" has the copies, "versions" what is known of them."""
    return (cache_home() / kind).resolve()


def refuse(named: str | Path) -> None:
    """Refuse a URL where a file of this machine is needed.

    Raises:
        StorageError: It is one.
    """
    if found := _URL.match(str(named)):
        raise StorageError(
            f"a URL ({found[1]}://...) stands where a path on a disk of this machine is expected: on object"
            " storage manifests are read, and a run's folder is kept by `selftrain run --mirror`; everything"
            " else is read and written on a disk, and copied from or to there"
        )
