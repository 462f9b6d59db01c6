"""One writer for an output directory: a lock that the system takes away when its process ends, however it ends.

It is a POSIX record lock on a file in the directory. Such a lock belongs to one process: those that it has forked or
started (loaders of rows, workers) neither keep it alive nor let it go. On NFS all hosts see it: version 4 keeps it at
the server, which forgets it one lease (90 s by default) after a host has crashed; version 3 needs lockd on both sides,
and a mount with ``nolock`` or ``local_lock`` keeps only the processes of one host apart. Where a file system takes no
locks, a warning on stderr says so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shlex
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

#: Name of the lock in the directory. It is hidden, so whatever reads data or weights there leaves it alone.
LOCK = ".lock"
#: Seconds that a process which was killed has to let its memory go, or its GPU, and a stopped one to save.
PATIENCE = 10.0
#: Seconds between two looks.
_LOOK_EVERY = 0.1
#: Characters of a command that are shown.
_SHOWN = 200

#: Locks of this process. To open and close one again would let it go.
_held: set[Path] = set()


@contextlib.contextmanager
def only_writer(
    folder: Path, flag: str = "--output_dir", *, file: Path | None = None, patience: float | None = None
) -> Iterator[None]:
    """Inside, no other process that asks for it writes to ``folder``, which is made if need be.

    ``flag`` is how the user names the folder, ``file`` the lock where it cannot lie in it. A lock that another process
    has is waited for, ``patience`` seconds (None: ``PATIENCE``), as that process may be about to end; a note says so
    unless the wait is endless. Within one process the lock may be taken again. Raises ``ValueError``, one line that
    names the other process, or says why the folder cannot be written to.
    """
    name = f"{flag} {folder}"
    from training_run.hub import local_path  # which takes its time, and commands answer at once

    file = (file or local_path(folder) / LOCK).absolute()
    if file in _held:
        yield
        return
    made = [parent for parent in file.parents if not parent.exists()]
    handle = _acquire(file, name, PATIENCE if patience is None else patience)
    _held.add(file)
    try:
        yield
    finally:
        _held.discard(file)
        file.unlink(missing_ok=True)  # while it is locked, so that nobody has it yet
        os.close(handle)
        with contextlib.suppress(OSError):  # where something was written
            for parent in made:
                parent.rmdir()


def _acquire(file: Path, name: str, patience: float) -> int:
    """Descriptor of the locked ``file``; errors of ``only_writer``."""
    until, told = time.monotonic() + patience, patience == math.inf
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise ValueError(f"{name} cannot be written to: {error.strerror or error}") from error
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                sys.stderr.write(f"warning: {name}: no lock was got ({error.strerror}): let no other run write there\n")
                return handle
            holder = _holder(handle)
            if time.monotonic() >= until:
                os.close(handle)
                raise ValueError(
                    f"{name} is being written by {holder}: wait until it has ended, or name another folder"
                ) from None
            if not told:
                sys.stderr.write(f"note: {name} is being written by {holder}: waiting {patience:g} s for it to end\n")
                told = True
        else:
            if _is_at(file, handle):  # its last holder may have removed it after it was opened here
                with contextlib.suppress(OSError):  # on a full disk it is a lock without a name
                    os.ftruncate(handle, 0)
                    os.write(handle, json.dumps(_this_process()).encode())
                return handle
        os.close(handle)
        time.sleep(_LOOK_EVERY)


def _is_at(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(file.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _this_process() -> dict[str, str | int]:
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "command": command}


def _holder(handle: int) -> str:
    """What the process that has the lock says of itself; at its very beginning it has not yet."""
    try:
        facts = json.loads(os.pread(handle, 2**16, 0))
        command = str(facts["command"])
        shown = command if len(command) <= _SHOWN else f"{command[:_SHOWN]}..."
        said = f"process {facts['pid']} on {facts['host']} (since {facts['since']}: {shown})"
        return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in said)  # others write it
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
