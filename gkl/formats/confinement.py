"""Confines a process before it reads a file that may be malicious. Linux only.

A confined process has limited memory, processor time and file size. It may start threads, read files, and write into
one directory. It cannot start processes, open connections, reach into other processes, or change a file's mode, owner
or times.
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
    """Address space beyond what the process already has."""
    cpu_seconds: int
    """Processor time of the process, including the time before."""
    file_bytes: int
    """Size of each file that it writes."""


def confine(limits: Limits, writable: Path) -> None:
    """Confine this process for the rest of its life. Import everything it needs first.

    If the kernel lacks a part of the confinement, a warning says so and the rest still applies.

    Args:
        limits: limits of memory, time and disk.
        writable: the only directory in which the process may create files.
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
        # At the soft limit of processor time the kernel sends SIGXCPU, which says why; at the hard limit SIGKILL.
        above = _SECONDS_AFTER_WARNING if what == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else 0
        resource.setrlimit(what, (allowed, allowed + above))
    libc = ctypes.CDLL(None, use_errno=True)
    # If the parent process dies, nobody waits for the result.
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
        "the kernel refuses %s (%s): an untrusted file is read with less protection",
        what,
        os.strerror(ctypes.get_errno()),
    )


# --- files: Landlock ---------------------------------------------------------------------------------------------

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 2, 1 << 3
# Each version of the interface controls more kinds of changes.
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
    """The kernel's AUDIT_ARCH_* constant of the architecture, which decides what the numbers of system calls mean."""
    seccomp: int
    clone: int
    tgkill: int
    denied: dict[str, int]


# io_uring opens connections without the system calls for sockets; most others here reach into other processes.
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
    # Changes that Landlock, or its first versions, do not control.
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

# Instructions of a classic BPF filter: load a word, jump, return.
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _ANSWER = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets of the call's number, its architecture and its first argument.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_X32_CALLS, _CLONE_THREAD = 0x40000000, 0x00010000
_FOR_ALL_THREADS = 1


def _forbid_calls(libc: ctypes.CDLL) -> None:
    machine = _MACHINES.get(platform.machine())
    if machine is None:
        _log.warning("there is no system call filter for %s: an untrusted file is read without one", platform.machine())
        return
    program = _filter(machine)
    instructions = ctypes.create_string_buffer(program, len(program))
    described = ctypes.create_string_buffer(
        struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions)), 16
    )
    if libc.syscall(machine.seccomp, 1, _FOR_ALL_THREADS, described) != 0:
        _warn("a system call filter")


def _filter(machine: _Machine) -> bytes:
    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", code, then, otherwise, value)

    refuse = step(_ANSWER, _REFUSE | errno.EPERM)
    steps = [
        step(_LOAD, _ARCHITECTURE),
        step(_IF_EQUAL, machine.audit, then=1),
        step(_ANSWER, _KILL),
        step(_LOAD, _NUMBER),
        # The x32 calls of x86_64: the same calls with 32-bit pointers, under other numbers.
        step(_IF_AT_LEAST, _X32_CALLS, otherwise=1),
        refuse,
    ]
    for number in machine.denied.values():
        steps += [step(_IF_EQUAL, number, otherwise=1), refuse]
    steps += [
        # A filter cannot read clone3's arguments. At ENOSYS the C library uses the older clone instead.
        step(_IF_EQUAL, _CLONE3, otherwise=1),
        step(_ANSWER, _REFUSE | errno.ENOSYS),
        # clone may start a thread, but no process.
        step(_IF_EQUAL, machine.clone, otherwise=3),
        step(_LOAD, _FIRST_ARGUMENT),
        step(_IF_ANY_BIT, _CLONE_THREAD, then=1),
        refuse,
        # It may send a signal to itself only, as `abort` does.
        step(_LOAD, _NUMBER),
        step(_IF_EQUAL, machine.tgkill, otherwise=3),
        step(_LOAD, _FIRST_ARGUMENT),
        step(_IF_EQUAL, os.getpid(), then=1),
        refuse,
        step(_ANSWER, _ALLOW),
    ]
    return b"".join(steps)
