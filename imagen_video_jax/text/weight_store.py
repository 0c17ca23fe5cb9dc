"""Where weights lie: folders and files here or in a bucket, gs://bucket/path, of which any part is read.

Buckets are read through TensorStore, so nothing else need be installed. Public ones need no account; for others it
takes Google's default credentials. TENSORSTORE_GCS_HTTP_URL names another server.
"""

import os
import pathlib

import tensorstore as ts

from imagen_video_jax.errors import UserError

_BUCKET = "gs://"
# About 20 s in all: a person who is not connected hears it soon; a server that is busy has had six requests by then.
_RETRIES = {"max_retries": 5, "initial_delay": "500ms", "max_delay": "8s"}
_PATIENCE = 300  # seconds for one answer, whatever happens
_LOG_IN = "gcloud auth application-default login, or GOOGLE_APPLICATION_CREDENTIALS"


def in_bucket(path: str | os.PathLike) -> bool:
    return os.fspath(path).startswith(_BUCKET)


def store_spec(folder: str | os.PathLike) -> dict:
    """TensorStore's key-value store of a folder."""
    folder = os.fspath(folder)
    if not in_bucket(folder):
        return {"driver": "file", "path": os.path.abspath(folder) + "/"}
    bucket, _, path = folder.removeprefix(_BUCKET).partition("/")
    path = path.strip("/") + "/" if path.strip("/") else ""
    return {"driver": "gcs", "bucket": bucket, "path": path, "context": {"gcs_request_retries": _RETRIES}}


def names_in(folder: str | os.PathLike) -> list[str]:
    """Names of files and folders right in a folder; none where a bucket is missing, empty or may not be listed."""
    if not in_bucket(folder):
        return sorted(os.listdir(folder))
    keys = _answer(lambda: _open(folder).list(), folder)
    return sorted({key.decode().partition("/")[0] for key in keys})


def exists(path: str | os.PathLike) -> bool:
    """Whether there is such a file."""
    if not in_bucket(path):
        return os.path.exists(path)
    folder, _, name = os.fspath(path).rpartition("/")
    return _answer(lambda: _open(folder).read(name, byte_range=slice(0, 0)), path).state == "value"


def read(path: str | os.PathLike, begin: int = 0, end: int | None = None) -> bytes:
    """Bytes `begin` to `end` of a file, fewer where it ends before; FileNotFoundError, OSError, or UserError."""
    if not in_bucket(path):
        with open(path, "rb") as file:
            file.seek(begin)
            return file.read(-1 if end is None else end - begin)
    folder, _, name = os.fspath(path).rpartition("/")
    try:
        found = _answer(lambda: _open(folder).read(name, byte_range=slice(begin, end)), path)
    except _Ended:
        return read(path, begin, None) if end is not None else b""
    if found.state != "value":
        raise FileNotFoundError(f"no such file: {path}")
    return found.value


def size(path: str | os.PathLike) -> int | None:
    """Bytes of a file; None in a bucket, which is not asked: what is there is whole."""
    return None if in_bucket(path) else pathlib.Path(path).stat().st_size


def trouble(path: str | os.PathLike, error: Exception) -> UserError | None:
    """What a person can do about a bucket's refusal or silence; None where the error is about what was read."""
    text = str(error)
    if not in_bucket(path):
        return None
    if isinstance(error, TimeoutError):
        return UserError(f"{path}: no answer within {_PATIENCE} s; is there a network?")
    if text.startswith(("PERMISSION_DENIED", "UNAUTHENTICATED")):
        return UserError(f"{path} may not be read ({_reason(text)}); log in: {_LOG_IN}")
    if text.startswith(("ABORTED", "UNAVAILABLE", "DEADLINE_EXCEEDED")):
        return UserError(f"{path} cannot be reached ({_reason(text)}); is there a network?")
    if "bucket name" in text:
        return UserError(f"{path}: {_reason(text)}")
    return None


class _Ended(Exception):
    """A range begins or ends after the file's end."""


def _open(folder: str | os.PathLike) -> ts.KvStore:
    return ts.KvStore.open(store_spec(folder)).result()


def _answer(ask, path):
    try:
        return ask().result(timeout=_PATIENCE)
    except (ValueError, TimeoutError) as error:
        if str(error).startswith("OUT_OF_RANGE"):
            raise _Ended from None
        raise trouble(path, error) or UserError(f"{path} cannot be read: {_reason(str(error))}") from None


def _reason(text: str) -> str:
    """TensorStore's message without its code and the details that follow in brackets."""
    return text.split(" [")[0].split(": ", 1)[-1][:200]
