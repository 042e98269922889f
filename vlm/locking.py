"""Locks on files, so that two processes do not write where one is meant to."""

from typing import IO, Any


def lock(file: IO[Any]) -> bool:
    """Take an open file for this process until it is closed or the process ends, however it ends; whether it worked.

    Windows has no such locks: there it always works.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
