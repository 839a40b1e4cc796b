"""Locks on folders and files: two processes never write the same one, and a killed process leaves no lock."""

import errno
import fcntl
import os
import socket
import sys
import time
import weakref
from pathlib import Path

_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
_held: "weakref.WeakSet[Lock]" = weakref.WeakSet()


class InUseError(ValueError):
    """Another process holds the lock."""


class Lock:
    """An exclusive lock, held from its creation until `release` or the end of the process, however that comes.

    The lock is the system's `flock` of a file; its text says who holds it. A process forked from the holder does not
    hold it.

    Args:
        path: The lock's file, which is removed in the end.
        what: What is locked, for messages.
        way_out: What else a person can do, for messages.

    Raises:
        InUseError: Another process, or another part of this one, holds it; names the file and the process.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path, what: str, way_out: str) -> None:
        self.path = path
        self._descriptor: int | None = None
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode(errors="replace") or "another process"
                os.close(descriptor)
                raise InUseError(
                    f"{what} is in use by {holder}, which holds {path}; wait for its end, or {way_out}"
                ) from None
            except OSError as error:
                os.close(descriptor)
                if error.errno not in _WITHOUT_LOCKS:
                    raise OSError(error.errno, f"cannot be locked, {error.strerror}", str(path)) from error
                print(
                    f"{path.parent} does not support locks: make sure that no other process writes there",
                    file=sys.stderr,
                )
                return
            if _is_at(descriptor, path):
                break
            os.close(descriptor)  # its holder has removed it meanwhile
        self._descriptor = descriptor
        _held.add(self)
        self._sign()

    def _sign(self) -> None:
        assert self._descriptor is not None
        text = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, text.encode(), 0)
        except OSError as error:
            self.release()
            raise OSError(error.errno, f"cannot be written, {error.strerror}", str(self.path)) from error

    def release(self) -> None:
        """Releases the lock; further calls do nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            if _is_at(descriptor, self.path):
                self.path.unlink()
            os.close(descriptor)

    def leave_to_parent(self) -> None:
        """Closes the copy of the lock in a forked process, so that it ends with the parent."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one under this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _in_child() -> None:
    for lock in list(_held):
        lock.leave_to_parent()


os.register_at_fork(after_in_child=_in_child)
