"""Durable files: atomic writes, manifests with sha256, directory locks. Used by every writer, never written twice.

An atomic write is: temporary file beside the target, write, fsync, rename, fsync of the folder. A reader sees the old
content or the new content, never a part.
"""

import concurrent.futures
import contextlib
import glob
import hashlib
import json
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

from imagen_video_jax import leases
from imagen_video_jax.errors import UserError

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
# Bytes of a name: file systems take 255, and what is made beside a file is named by it and more.
_LONG_NAME = 80
_LONG_SUFFIX = 16


def user_cache() -> pathlib.Path:
    """The folder for what can be made again: $XDG_CACHE_HOME/imagen_video_jax, by default under ~/.cache.

    UserError where neither is known, as in a container whose user has no home.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    except RuntimeError:
        raise UserError("this user has no home folder; set XDG_CACHE_HOME to a folder that can be written") from None
    return pathlib.Path(base) / "imagen_video_jax"


def local_path(path: str | os.PathLike) -> pathlib.Path:
    """`path`, to be written; UserError for an address such as gs://bucket/x, which would become a folder `gs:` here."""
    text = os.fspath(path)
    # A path that was one already has lost a slash.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise UserError(f"cannot write to {re.sub(':/+', '://', text, count=1)}: outputs must be local folders")
    return pathlib.Path(path)


def temporary_name(path: pathlib.Path) -> pathlib.Path:
    """A name beside `path` that no reader takes for content, unique to this process and call."""
    return path.with_name(f".{_short_name(path)}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def left_behind(path: pathlib.Path) -> list[pathlib.Path]:
    """The temporary files and folders of `path`, whoever made them."""
    return list(path.parent.glob(f".{glob.escape(_short_name(path))}.tmp-*"))


def _short_name(path: pathlib.Path) -> str:
    """The name of `path`, a long one as its beginning and a hash; UserError where it has none."""
    if not local_path(path).name:
        raise UserError(f"cannot write to {path}: a file or folder with a name of its own is wanted")
    name = os.fsencode(path.name)
    if len(name) <= _LONG_NAME:
        return path.name
    return f"{name[: _LONG_NAME - 17].decode(errors='ignore')}-{hashlib.sha256(name).hexdigest()[:16]}"


def sync_folder(path: pathlib.Path) -> None:
    """fsync of a folder, so that renames inside it survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary file name; when the body ends well the file becomes `path`, else it is removed."""
    path = pathlib.Path(path)
    temporary = temporary_name(path)
    # Container formats choose themselves by ending, so the temporary name keeps it.
    if len(os.fsencode(path.suffix)) <= _LONG_SUFFIX:
        temporary = temporary.with_name(temporary.name + path.suffix)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        # The kernel names no file where a disk is full, and a person knows nothing of the temporary one, which PyAV
        # names as a URL.
        if error.errno is not None and (error.filename is None or temporary.name in str(error.filename)):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike, data: bytes) -> None:
    """Writes `data` to `path` atomically and durably."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike, value) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: str | os.PathLike):
    """The value in a JSON file; a missing or malformed file is a UserError that names it."""
    try:
        return json.loads(pathlib.Path(path).read_text())
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read as JSON: nested too deeply") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None


@contextlib.contextmanager
def claim(path: pathlib.Path) -> Iterator[bool]:
    """Claims the making of file `path`; False where another live process is at it.

    The claim is a kernel lock (flock) on a note beside the file: it ends with the process, however that ends, and what
    a killed maker left half-written is removed by the next one. Where the file system has no locks everybody gets the
    claim; then work may be done twice, which atomic writes make harmless.
    """
    import fcntl

    note = path.with_name(f".{_short_name(path)}.claim")
    killed = note.exists()
    with open(note, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            killed = False
        if killed:
            for part in left_behind(path):
                part.unlink(missing_ok=True)
        try:
            yield True
        finally:
            note.unlink(missing_ok=True)


def write_once(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that every process would write alike: one does it, the others wait until it is there."""
    while not path.exists():
        with claim(path) as mine:
            if mine and not path.exists():
                write_bytes(path, data)
        if not path.exists():
            time.sleep(0.05)


def clear_claims(folder: pathlib.Path) -> None:
    """Removes the notes and half-written files of makers that were killed."""
    for note in folder.glob(".*.claim"):
        with claim(folder / note.name[1 : -len(".claim")]):
            pass


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary folder; when the body ends well it is synced and becomes `path` by one rename.

    `path` must not exist (a committed folder is never rewritten).
    """
    path = pathlib.Path(path)
    temporary = temporary_name(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for name in files:
                with open(os.path.join(folder, name), "rb") as file:
                    os.fsync(file.fileno())
            sync_folder(pathlib.Path(folder))
        os.rename(temporary, path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: str | os.PathLike) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def remembered_sha256(file: pathlib.Path) -> str:
    """Hex sha256 of a file's content, from the note of an earlier time where the file has not changed."""
    return remembered([file], "sha256", lambda: sha256_file(file))


def remembered(files: Sequence[pathlib.Path], what: str, compute: Callable[[], str]) -> str:
    """`compute()`, a hex sha256 of the content of `files`, noted in the user cache: weights can be gigabytes.

    The note is found again by `what` and the files' paths, sizes and modification times; a damaged one is made anew.
    """
    facts = [what, *((str(file.resolve()), (s := file.stat()).st_size, s.st_mtime_ns) for file in files)]
    note = user_cache() / "file_hashes" / hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        if re.fullmatch("[0-9a-f]{64}", noted := note.read_text()):
            return noted
    value = compute()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, value)
    except OSError:
        pass  # a cache that cannot be written only costs the next start a few seconds
    return value


def write_manifest(folder: pathlib.Path) -> None:
    """Writes `manifest.json`: size and sha256 of every file below `folder`, and a checksum of the manifest itself."""
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    files = dict(_in_threads(lambda name: (name, _facts(folder / name)), [n for n in names if n != MANIFEST]))
    write_text(folder / MANIFEST, _manifest_text(files))


def damaged_files(folder: pathlib.Path) -> list[str]:
    """One line per missing, cut, altered or unlisted file of a folder with a manifest; an empty list means intact."""
    try:
        text = (folder / MANIFEST).read_text()
        files = json.loads(text)["files"]
        # The exact bytes: a cut last character would still be JSON.
        if text != _manifest_text(files):
            return [f"{MANIFEST}: its checksum does not match its content"]
    except FileNotFoundError:
        return [f"{MANIFEST}: missing"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        return [f"{MANIFEST}: unreadable ({error})"]
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if not file.is_dir()}
    links = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_symlink())
    if links:
        return [f"{name}: is a link" for name in links]
    problems = [f"{name}: not listed in {MANIFEST}" for name in sorted(found.keys() - files.keys() - {MANIFEST})]
    return problems + [
        line for line in _in_threads(lambda n: _damage(n, found.get(n), files[n]), sorted(files)) if line
    ]


def _damage(name: str, file: pathlib.Path | None, expected: dict) -> str:
    if file is None:
        return f"{name}: missing"
    try:
        if (size := file.stat().st_size) != expected["size"]:
            return f"{name}: {size} bytes, expected {expected['size']}"
        return "" if sha256_file(file) == expected["sha256"] else f"{name}: content differs from its sha256"
    except OSError as error:
        return f"{name}: cannot be read ({error.strerror or error})"


def _facts(file: pathlib.Path) -> dict:
    return {"size": file.stat().st_size, "sha256": sha256_file(file)}


def _manifest_text(files: dict) -> str:
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    return json.dumps({"files": files, "sha256": digest}, indent=2, sort_keys=True) + "\n"


def _in_threads(function: Callable, items: Sequence) -> list:
    """[function(item)], several at once: hashing and reading let other threads run."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(function, items))


def writable_folder(path: str | os.PathLike) -> pathlib.Path:
    """Makes `path` if needed and checks that a file can be made in it; UserError with the reason if not."""
    path = local_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = temporary_name(path / "probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror or error}") from None
    return path


def check_writable(path: str | os.PathLike) -> None:
    """UserError where folder `path` cannot be made or written, told before long work; leaves nothing behind."""
    path = pathlib.Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"cannot write to {path}: {'it' if there == path else there} is no folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {path}: no right to write in {there}")


@contextlib.contextmanager
def directory_lock(folder: pathlib.Path, *, wait: bool = False) -> Iterator[None]:
    """Holds `folder` for this process; UserError naming the holder when another live process has it, or `wait` for it.

    On one machine the lock is the kernel's (flock): it ends with the process, however that ends. For other machines,
    and where the file system has no locks, there is a lease beside it (leases.py): what a killed process of another
    machine held is free after some seconds.
    """
    local_path(folder).mkdir(parents=True, exist_ok=True)
    note = folder / ".lock"
    descriptor = os.open(note, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        locked = _flock(descriptor, wait)
        before = leases.read(note)
        gone = locked and (not before or before.get("boot") == leases.boot_id())
        while locked is False or (before and not gone and leases.is_kept(note, before)):
            if not wait:
                holder = leases.describe(before)
                raise UserError(f"{folder} is in use by another process ({holder}); wait for it or stop it")
            before = leases.read(note)
        with leases.kept(note, descriptor, alone=bool(locked)):
            yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, wait: bool) -> bool | None:
    """Whether the kernel gave the lock; None where the file system has none."""
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
