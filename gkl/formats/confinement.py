"""A process that has lost what it does not need: for reading a file that may have been made to do harm. Linux.

What is left to it: so much memory, time and space on disk, threads, reading files, and writing into one directory. It
starts no process, opens no connection, touches no other process, and changes no file's rights, owner or time.
"""

from __future__ import annotations

import ctypes
import errno
import logging
import os
import platform
import resource
import signal
import struct
from dataclasses import dataclass
from pathlib import Path

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Limits:
    memory_bytes: int
    """Address space that may be taken beyond what the process has."""
    cpu_seconds: int
    """Processor time of the process, that before included."""
    file_bytes: int
    """Size of a file that it writes."""


def confine(limits: Limits, writable: Path) -> None:
    """For good, and for all that this process does from here on. Import first what it needs.

    Where the kernel offers a part of it no longer or not yet, a warning says so, and the rest holds.

    Args:
        limits: of memory, time and disk.
        writable: the directory in which it may make files.
    """
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    for what, value in (
        (resource.RLIMIT_AS, taken + limits.memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_seconds),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        allowed = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # At the hard limit of time the kernel's signal is that of any killer.
        above = _SECONDS_AFTER_WARNING if what == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(what, (allowed, allowed + above))
    libc = ctypes.CDLL(None, use_errno=True)
    # Nobody is left to wait for it when who started it is gone.
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        _warn("PR_SET_NO_NEW_PRIVS")
        return
    _forbid_writing(libc, writable)
    _forbid_calls(libc)


_SECONDS_AFTER_WARNING = 5
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38


def _warn(what: str) -> None:
    _log.warning(
        "the kernel refuses %s (%s): a file from a stranger is read with less around it",
        what,
        os.strerror(ctypes.get_errno()),
    )


# --- files: Landlock ---------------------------------------------------------------------------------------------

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
# Each version of the kernel's interface knows some more ways to change something.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}


def _forbid_writing(libc: ctypes.CDLL, writable: Path) -> None:
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        _warn("Landlock")
        return
    changes = _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))] & ~(_EXECUTE | _READ_FILE | _READ_DIR)
    handled = ctypes.create_string_buffer(struct.pack("<Q", changes), 8)
    rules = libc.syscall(_LANDLOCK_CREATE, handled, ctypes.c_size_t(8), 0)
    directory = os.open(writable, os.O_PATH | os.O_DIRECTORY)
    try:
        below = ctypes.create_string_buffer(struct.pack("<Qi", changes, directory), 12)
        if (
            rules < 0
            or libc.syscall(_LANDLOCK_ADD, rules, 1, below, 0) != 0
            or libc.syscall(_LANDLOCK_RESTRICT, rules, 0) != 0
        ):
            _warn("Landlock")
    finally:
        os.close(directory)
        if rules >= 0:
            os.close(rules)


# --- system calls: seccomp ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Machine:
    audit: int
    """The kernel's number of it, in whose sense calls are numbered."""
    seccomp: int
    clone: int
    tgkill: int
    denied: dict[str, int]


# io_uring makes connections without any of the calls for them; the others reach into other processes.
_EVERYWHERE = {
    **{"pidfd_send_signal": 424, "io_uring_setup": 425, "pidfd_open": 434, "pidfd_getfd": 438},
    **{"process_madvise": 440, "process_mrelease": 448, "fchmodat2": 452},
}
_CLONE3 = 435
_X86_64 = {
    **{"socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50, "socketpair": 53, "accept4": 288},
    **{"fork": 57, "vfork": 58, "execve": 59, "execveat": 322},
    **{"kill": 62, "tkill": 200, "rt_sigqueueinfo": 129, "ptrace": 101, "process_vm_readv": 310},
    **{"process_vm_writev": 311, "mount": 165, "unshare": 272, "setns": 308, "bpf": 321, "userfaultfd": 323},
    **{"add_key": 248, "request_key": 249, "keyctl": 250, "perf_event_open": 298, "prlimit64": 302},
    **{"rt_tgsigqueueinfo": 297, "setpriority": 141, "ioprio_set": 251, "sched_setparam": 142},
    **{"sched_setscheduler": 144, "sched_setaffinity": 203, "sched_setattr": 314},
    # What Landlock does not know of, or its first versions did not.
    **{"truncate": 76, "chmod": 90, "fchmod": 91, "fchmodat": 268, "chown": 92, "fchown": 93, "lchown": 94},
    **{"fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188},
    **{"lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199},
}
_AARCH64 = {
    **{"socket": 198, "connect": 203, "accept": 202, "bind": 200, "listen": 201, "socketpair": 199, "accept4": 242},
    **{"execve": 221, "execveat": 281},
    **{"kill": 129, "tkill": 130, "rt_sigqueueinfo": 138, "ptrace": 117, "process_vm_readv": 270},
    **{"process_vm_writev": 271, "mount": 40, "unshare": 97, "setns": 268, "bpf": 280, "userfaultfd": 282},
    **{"add_key": 217, "request_key": 218, "keyctl": 219, "perf_event_open": 241, "prlimit64": 261},
    **{"rt_tgsigqueueinfo": 240, "setpriority": 140, "ioprio_set": 30, "sched_setparam": 118},
    **{"sched_setscheduler": 119, "sched_setaffinity": 122, "sched_setattr": 274},
    **{"truncate": 45, "fchmod": 52, "fchmodat": 53, "fchownat": 54, "fchown": 55, "utimensat": 88, "setxattr": 5},
    **{"lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15, "fremovexattr": 16},
}
_MACHINES = {
    "x86_64": _Machine(0xC000003E, seccomp=317, clone=56, tgkill=234, denied=_X86_64 | _EVERYWHERE),
    "aarch64": _Machine(0xC00000B7, seccomp=277, clone=220, tgkill=131, denied=_AARCH64 | _EVERYWHERE),
}

# Instructions of the classic packet filter: load a word, jump, answer.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Where the call's number, its machine and its first argument stand.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32_CALLS, _CLONE_THREAD = 0x40000000, 0x00010000
_FOR_ALL_THREADS = 1


def _forbid_calls(libc: ctypes.CDLL) -> None:
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        _log.warning("no filter of system calls is known for %s; strangers' files are read without", platform.machine())
        return
    program = _filter(machine)
    instructions = ctypes.create_string_buffer(program, len(program))
    described = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions)), 16
    )
    if libc.syscall(machine.seccomp, 1, _FOR_ALL_THREADS, described) != 0:
        _warn("a filter of system calls")


def _filter(machine: _Machine) -> bytes:
    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", code, then, otherwise, value)

    refuse = step(_ANSWER, _REFUSE | errno.EPERM)
    steps = [
        step(_LOAD, _ARCHITECTURE),
        step(_IF_EQUAL, machine.audit, then=1),
        step(_ANSWER, _KILL),
        step(_LOAD, _NUMBER),
        # On x86_64 the same calls with 32-bit pointers, under other numbers.
        step(_IF_AT_LEAST, _X32_CALLS, otherwise=1),
        refuse,
    ]
    for number in machine.denied.values():
        steps += [step(_IF_EQUAL, number, otherwise=1), refuse]
    steps += [
        # Its arguments cannot be looked at; told that it does not exist, the C library takes the older one.
        step(_IF_EQUAL, _CLONE3, otherwise=1),
        step(_ANSWER, _REFUSE | errno.ENOSYS),
        # A thread, but no process.
        step(_IF_EQUAL, machine.clone, otherwise=3),
        step(_LOAD, _FIRST_ARGUMENT),
        step(_IF_ANY_BIT, _CLONE_THREAD, then=1),
        refuse,
        # A signal to itself, as `abort` sends.
        step(_LOAD, _NUMBER),
        step(_IF_EQUAL, machine.tgkill, otherwise=3),
        step(_LOAD, _FIRST_ARGUMENT),
        step(_IF_EQUAL, os.getpid(), then=1),
        refuse,
        step(_ANSWER, _ALLOW),
    ]
    return b"".join(steps)
