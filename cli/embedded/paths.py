"""Folders and files of the embedded services, made so that nobody else can read or replace them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import secrets
import stat
from pathlib import Path

from cli.process import Account
from cli.service import StartError

# Literally /tmp, not $TMPDIR: another shell, with another $TMPDIR, must find the same sockets.
SOCKET_BASE = Path("/tmp")  # nosec B108 # noqa: S108 - `socket_dir` verifies what it finds there
MAX_SOCKET_PATH_BYTES = 107


def folder_id(data_dir: Path) -> str:
    """16 hex digits that stand for this data folder."""
    return hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:16]


def make_data_dir(data_dir: Path) -> Path:
    """The absolute data folder, made if missing. An existing folder's permissions are left alone."""
    data_dir = data_dir.resolve()
    # As root the database runs as another user, who must pass through but not list. What is in it is 600.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        try:
            data_dir.mkdir()
            data_dir.chmod(mode)  # mkdir's own mode is subject to the umask
        except FileExistsError:
            if not data_dir.is_dir():
                raise StartError(f"the data folder {data_dir} is a file") from None
    except OSError as fault:
        raise StartError(f"the data folder {data_dir} can't be made: {fault.strerror}") from fault
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise StartError(f"the data folder {data_dir} is not writable for this user (uid {os.geteuid()})")
    return data_dir


def socket_dir_path(data_dir: Path, uid: int) -> Path:
    return SOCKET_BASE / f"hookwright-{uid}-{folder_id(data_dir)}"


def make_socket_dir(data_dir: Path, account: Account | None = None) -> Path:
    """The folder for sockets, mode 700. Anyone may make a folder of this name in /tmp, so it is verified."""
    uid = os.geteuid() if account is None else account.uid
    path = socket_dir_path(data_dir, uid)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass
    else:
        path.chmod(0o700)
        if account is not None:
            # The folder is root's until here and /tmp is sticky: nobody could have replaced it.
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
    verify_socket_dir(path, uid)
    return path


def remove_socket_dir(data_dir: Path, uid: int) -> None:
    """Removes the folder for sockets if it is ours and nothing is in it. Call it with a lock of the data folder held:
    between another's start and its first socket, the folder is empty too."""
    path = socket_dir_path(data_dir, uid)
    with contextlib.suppress(OSError, StartError):  # it is gone, or the other service's socket is still in it
        verify_socket_dir(path, uid)
        path.rmdir()


def verify_socket_dir(path: Path, uid: int) -> None:
    found = path.lstat()
    fault = None
    if not stat.S_ISDIR(found.st_mode):
        fault = "is not a folder"
    elif found.st_uid != uid:
        fault = f"belongs to uid {found.st_uid}, not {uid}"
    elif stat.S_IMODE(found.st_mode) != 0o700:
        fault = f"has mode {stat.S_IMODE(found.st_mode):o}, not 700"
    if fault:
        raise StartError(
            f"the socket folder {path} {fault}, so another user could listen there in our place. "
            "Remove it and start again, or choose another data folder."
        )


class FolderLock:
    """Held while a service uses its folder; the kernel releases it however we end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self, what: str) -> None:
        if self._descriptor is not None:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StartError(
                f"{what} of {self.path.parent} is in use by another hookwright"
                + (f" (process {holder})" if holder else "")
                + ". Stop that one, or choose another data folder with --data-dir."
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    @property
    def held(self) -> bool:
        return self._descriptor is not None

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def write_secret_once(path: Path, text: str) -> None:
    """Makes the file with mode 600, whole and on disk or not at all; an existing one is left as it is."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike rename, it fails where another was first
    finally:
        draft.unlink()
    fsync_dir(path.parent)


def replace_secret(path: Path, text: str) -> None:
    """The file with another content, mode 600: whole and on disk, or as it was."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    fsync_dir(path.parent)


def read_secret(path: Path) -> str:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as fault:
        raise StartError(f"{path} can't be read: {fault}") from fault
    if not text:
        raise StartError(f"{path} is empty; put back the copy from your backup")
    return text


def fsync_dir(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
