"""A run's folder kept on object storage too, by one writer at a time; another machine goes on from there.

    s3://BUCKET/PREFIX/
    ├── run.json                    who writes, and what files the folder holds: path -> SHA-256
    └── files/PATH/SHA-256          their contents; what no run.json names any more is removed

The run works in its local folder; after each round what is new is uploaded, and then run.json is replaced. It
is only ever replaced on the condition that it is still the one that was read (`If-Match`, `If-None-Match`):
of two writers one alone gets through, and the other ends. Its writer touches run.json every few seconds;
where it stays untouched for a minute, by the clock of whoever looks, another may take it over.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from selftrain._util.files import read_json
from selftrain._util.types import Json
from selftrain.errors import RunBusyError, RunMismatchError, RunStateError, StorageError
from selftrain.store import atomic
from selftrain.store.checksums import digest_of

BEAT, STALE = 15.0, 60.0
"""Seconds between touches of run.json, and without one until its writer counts as dead."""
_MANIFEST, _FILES = "run.json", "files"
_NOTE = ".mirror.json"  # in the local folder: what it was last in step with
_REVIEWS = "review.sqlite"
_TRIES = 5  # at a write that met another request half-way

logger = logging.getLogger(__name__)


class Mirror:
    """A place on object storage, and the local folder that is kept there.

    Credentials, region and endpoint are those of boto3: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, and so on.

    Args:
        url: ``s3://BUCKET/PREFIX``, the run's alone.
        folder: The run's local folder, which this process holds locked.

    Raises:
        StorageError: No such address; boto3 is not installed.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url.rstrip("/")
        self._folder = folder
        self._bucket = _Bucket(self.url)
        self._me = {
            "id": secrets.token_hex(8), "host": socket.gethostname(), "pid": os.getpid(),
            "folder": str(folder.resolve()),
        }  # fmt: skip
        self._state: Json = {}
        self._etag: str | None = None
        self._writing = threading.Lock()
        self._lost = ""
        self._digests: dict[Path, tuple[tuple[int, int], str]] = {}

    @contextmanager
    def held(self) -> Iterator[Callable[[], None]]:
        """Hold the place for writing; give what brings it in line with the folder, as does leaving.

        The folder is first brought in line with the place, where another machine went on.

        Raises:
            RunBusyError: Another process writes there; from what is given: it has taken over meanwhile.
            RunMismatchError: The folder holds a run that was never kept there.
            StorageError: The place cannot be reached, or does not keep conditions.
        """
        self._take()
        ended = threading.Event()
        touching = threading.Thread(target=self._touch, args=(ended,), name="mirror", daemon=True)
        touching.start()
        try:
            self._restore()  # where it refuses, nothing of the folder belongs there
            try:
                yield self._publish
            finally:
                if not self._lost:
                    self._publish()
        finally:
            ended.set()
            touching.join()
            if not self._lost:
                self._write(writer=None)

    # ---- one writer -----------------------------------------------------------------------------------

    def _take(self) -> None:
        seen, since = None, time.monotonic()
        while True:
            state, etag = self._bucket.read(_MANIFEST) or (
                {"step": 0, "beat": 0, "files": {}, "links": {}},
                None,
            )
            writer = state.get("writer")
            untouched = seen == etag and time.monotonic() - since >= STALE
            if writer is None or self._was_here(writer) or untouched:
                taken = {**state, "writer": self._me, "beat": state["beat"] + 1}
                self._etag = self._bucket.replace(_MANIFEST, taken, etag)
                if self._etag is not None:
                    self._state = taken
                    break
                continue  # somebody was faster
            if seen not in (None, etag):
                raise self._busy(writer)
            if seen is None:
                logger.warning("%s at %s wrote to %s last: waiting to see whether it still does",
                               writer["pid"], writer["host"], self.url)  # fmt: skip
            seen = etag
            time.sleep(BEAT / 5)
        if self._bucket.replace(_MANIFEST, self._state, None) or self._bucket.replace(
            _MANIFEST, self._state, '"0"'
        ):
            raise StorageError(
                f"{self.url} does not keep conditions (If-Match, If-None-Match), by which one writer is told"
                " from two: use a store that does, or a shared disk"
            )

    def _was_here(self, writer: Json) -> bool:
        """Return whether it was a process of this folder: we hold its lock, so that one is dead.

        Another machine of the same name is met by the condition of every write.
        """
        return all(writer[key] == self._me[key] for key in ("host", "folder"))

    def _touch(self, ended: threading.Event) -> None:
        while not ended.wait(BEAT):
            try:
                self._write()
            except RunBusyError:  # raised again where the run can end
                return
            except StorageError as error:
                logger.warning("%s", error)

    def _write(self, **changes: Any) -> None:  # noqa: ANN401 -- JSON values
        """Replace run.json if it is still ours."""
        with self._writing:
            if self._lost:
                raise RunBusyError(self._lost)
            state = {**self._state, **changes, "beat": self._state["beat"] + 1}
            for _ in range(_TRIES):
                etag = self._bucket.replace(_MANIFEST, state, self._etag)
                if etag is not None:
                    break
                found, current = self._bucket.read(_MANIFEST) or ({}, None)
                if found == state:  # an answer was lost on its way, and the write repeated
                    etag = current
                    break
                if current != self._etag:
                    error = self._busy(found.get("writer"))
                    self._lost = str(error)
                    raise error
            else:
                raise StorageError(f"{self.url}/{_MANIFEST} could not be written in {_TRIES} tries")
            self._state, self._etag = state, etag

    def _busy(self, writer: Json | None) -> RunBusyError:
        who = "another process has worked"
        if writer:
            who = f"process {writer['pid']} at {writer['host']} works"
        return RunBusyError(
            f"{who} on the run {self.url}, and this one writes nothing there: let it end, then give the same"
            " command again, or give another --mirror"
        )

    # ---- the folder -----------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Upload what is new, name it in run.json, and remove what is named no more."""
        files, links = self._scan()
        before = self._state["files"]
        if (files, links) == (before, self._state["links"]):
            if self._lost:
                raise RunBusyError(self._lost)
            return
        for path, digest in files.items():
            if before.get(path) != digest:
                self._bucket.upload(self._folder / path, _key(path, digest))
        self._write(files=files, links=links, step=self._state["step"] + 1)
        self._bucket.delete(
            _key(path, digest) for path, digest in before.items() if files.get(path) != digest
        )
        self._note()

    def _restore(self) -> None:
        """Bring the folder in line with run.json, unless it was the last to write there."""
        state = self._state
        files = {_inside(path): digest for path, digest in state["files"].items()}
        noted = self._noted()
        if not files or noted == {"url": self.url, "step": state["step"]}:
            return
        here, _ = self._scan()
        if noted.get("url") != self.url and "recipe.toml" in here:
            raise RunMismatchError(
                f"{self._folder} holds a run that was not kept at {self.url}, where another one is: give an"
                " empty --out, or another --mirror"
            )
        for path in here.keys() - files.keys():
            if path.startswith("rounds/"):  # of a round that another machine made anew
                (self._folder / path).unlink()
        # a round counts once it has its metrics.json, a folder once it has its recipe.toml
        for path in sorted(files, key=lambda one: (one == "recipe.toml", one.endswith("metrics.json"), one)):
            if here.get(path) != files[path]:
                self._fetch(path, files[path])
        for path, target in state["links"].items():
            atomic.point(self._folder / _inside(path), _inside(target))
        self._note()

    def _fetch(self, path: str, digest: str) -> None:
        with atomic.replacing(self._folder / path) as part:
            self._bucket.download(_key(path, digest), part)
            if digest_of(part) != digest:
                raise StorageError(
                    f"{self.url}/{_key(path, digest)} does not hold what was written there: take it from a"
                    " copy, or begin anew with another --mirror"
                )

    def _scan(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return path -> SHA-256 of the files, and path -> target of the links, in the folder."""
        files, links = {}, {}
        for file in sorted(self._folder.rglob("*")):
            path = file.relative_to(self._folder)
            if any(part.startswith(".") for part in path.parts):
                continue
            if path.name.startswith(_REVIEWS):
                raise RunStateError(
                    f"{file} holds people's reviews, a database that cannot be kept on object storage: go on"
                    " without --mirror, in a folder on a disk"
                )
            if file.is_symlink():
                links[path.as_posix()] = str(file.readlink())
            elif file.is_file():
                files[path.as_posix()] = self._digest(file)
        return files, links

    def _digest(self, file: Path) -> str:
        stat = file.stat()
        written = stat.st_size, stat.st_mtime_ns
        known = self._digests.get(file)
        if known is None or known[0] != written:
            known = self._digests[file] = written, digest_of(file)
        return known[1]

    def _noted(self) -> Json:
        try:
            return dict(read_json(self._folder / _NOTE))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError) as error:
            raise RunStateError(f"{self._folder / _NOTE} cannot be read ({error}): remove it") from error

    def _note(self) -> None:
        atomic.write_json(self._folder / _NOTE, {"url": self.url, "step": self._state["step"]})


def _key(path: str, digest: str) -> str:
    return f"{_FILES}/{path}/{digest}"


def _inside(path: str) -> str:
    """Refuse a path that leads out of the folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or any(part.startswith(".") for part in parts):
        raise StorageError(f"{_MANIFEST} of the mirror names {path!r}, which is no file of a run's folder")
    return path


class _Bucket:
    """The requests that a mirror makes; names are relative to its address."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or not parts.path.strip("/"):
            raise StorageError(f"{url!r} is no place for a run: expected s3://BUCKET/PREFIX")
        try:
            import boto3
            import botocore.exceptions as errors
        except ImportError as error:
            raise StorageError("boto3 is not installed: pip install 'selftrain[s3]'") from error
        self._url, self._bucket, self._prefix = url, parts.netloc, parts.path.strip("/")
        self._refusal = errors.ClientError
        self._faults = (errors.BotoCoreError, errors.ClientError, boto3.exceptions.Boto3Error)
        with self._explained():
            self._client = boto3.client("s3")

    def read(self, name: str) -> tuple[Json, str] | None:
        """Return a JSON object and its ETag; None: there is none."""
        with self._explained():
            try:
                found = self._client.get_object(**self._at(name))
            except self._refusal as error:
                if error.response["Error"]["Code"] == "NoSuchKey":
                    return None
                raise
            return json.loads(found["Body"].read()), found["ETag"]

    def replace(self, name: str, value: Json, etag: str | None) -> str | None:
        """Write a JSON object over that of `etag` (None: where there is none).

        Returns:
            The new ETag; None where another object is there.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._explained():
            try:
                made = self._client.put_object(
                    **self._at(name), Body=atomic.json_text(value).encode(), **condition
                )
            except self._refusal as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (404, 409, 412):
                    return None
                raise
            return str(made["ETag"])

    def upload(self, file: Path, name: str) -> None:
        with self._explained():
            self._client.upload_file(str(file), self._bucket, f"{self._prefix}/{name}")

    def download(self, name: str, file: Path) -> None:
        with self._explained():
            self._client.download_file(self._bucket, f"{self._prefix}/{name}", str(file))

    def delete(self, names: Iterable[str]) -> None:
        with self._explained():
            for name in names:
                self._client.delete_object(**self._at(name))

    def _at(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}/{name}"}

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (*self._faults, ValueError) as error:
            raise StorageError(
                f"{self._url} cannot be read or written ({error}): see that bucket, credentials"
                " (AWS_ACCESS_KEY_ID, AWS_PROFILE) and endpoint (AWS_ENDPOINT_URL) are right. What was"
                " finished is kept; the same command goes on"
            ) from error
