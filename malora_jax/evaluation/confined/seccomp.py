"""A seccomp filter for system calls: the process may only compute and read files.

Linux's seccomp needs no privileges, and a process cannot remove its filter. A system call that is
not in `_ALLOWED` fails as on a kernel without that call (ENOSYS). The process therefore cannot
start processes or threads, open sockets, signal, trace or limit other processes, mount file
systems, or change, create or remove files. Opening a file for writing fails as on a read-only file
system (EROFS).
"""

import ctypes
import errno
import os
import struct
from typing import NamedTuple

from . import libc

# Each call with its numbers on x86_64 and aarch64 (asm/unistd_64.h, asm-generic/unistd.h). A '-'
# means that the architecture does not have the call.
_ALLOWED = """
    access 21 -                 brk 12 214                  clock_getres 229 114
    clock_gettime 228 113       clock_nanosleep 230 115     close 3 57
    exit 60 93                  exit_group 231 94           faccessat 269 48
    faccessat2 439 439          fstat 5 80                  futex 202 98
    getcwd 79 17                getdents64 217 61           getegid 108 177
    geteuid 107 175             getgid 104 176              getpid 39 172
    getrandom 318 278           getrusage 98 165            gettid 186 178
    gettimeofday 96 169         getuid 102 174              lseek 8 62
    lstat 6 -                   madvise 28 233              mmap 9 222
    mprotect 10 226             mremap 25 216               munmap 11 215
    nanosleep 35 101            newfstatat 262 79           pread64 17 67
    read 0 63                   readlink 89 -               readlinkat 267 78
    readv 19 65                 restart_syscall 219 128     rt_sigaction 13 134
    rt_sigprocmask 14 135       rt_sigreturn 15 139         sched_getaffinity 204 123
    sched_yield 24 124          sigaltstack 131 132         stat 4 -
    statx 332 291               sysinfo 99 179              time 201 -
    times 100 153               uname 63 160                write 1 64
    writev 20 66
"""


class _Machine(NamedTuple):
    audit: int  # AUDIT_ARCH_… of linux/audit.h.
    column: int  # Column of `_ALLOWED`.
    open_calls: tuple[tuple[int, int], ...]  # open and openat: number, and index of the flags.
    fcntl: int


# Architectures by their name in uname. Both are little-endian, which `_allow_unless` relies on.
_MACHINES = {
    'x86_64': _Machine(0xC000003E, 1, ((2, 1), (257, 2)), 72),
    'aarch64': _Machine(0xC00000B7, 2, ((56, 2),), 25),
}

# linux/filter.h, linux/seccomp.h (struct seccomp_data, actions), linux/prctl.h, linux/capability.h
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NR_OFFSET, _ARCH_OFFSET, _ARGS_OFFSET = 0, 4, 16
_KILL, _FAIL, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2
_CAPABILITY_VERSION_3 = 0x20080522

_Instruction = tuple[int, int, int, int]  # Operation, jumps if true and if false, operand.


def apply() -> None:
    """Irrevocably give up all privileges, and all system calls except the allowed ones.

    `PR_SET_NO_NEW_PRIVS` must be set before.

    Raises:
        OSError: The system has no seccomp filters, or the numbers of the allowed system calls are
            not known for this processor architecture.
    """
    machine = _MACHINES.get(os.uname().machine)
    if machine is None:
        raise OSError(errno.ENOSYS, f'no list of system calls for {os.uname().machine}')
    # A root process stays root, because root owns the interpreter's files, but loses its
    # capabilities.
    libc.call('capset', struct.pack('Ii', _CAPABILITY_VERSION_3, 0), bytes(24))
    instructions = [struct.pack('HBBI', *instruction) for instruction in _program(machine)]
    program = ctypes.create_string_buffer(b''.join(instructions))
    length_and_address = struct.pack('HP', len(instructions), ctypes.addressof(program))
    libc.call('prctl', _PR_SET_SECCOMP, _MODE_FILTER, length_and_address, 0, 0)


def _program(machine: _Machine) -> list[_Instruction]:
    """Return the filter as instructions of the kernel's classic BPF."""
    # Kill processes that make calls of another architecture, such as 32-bit ones: the numbers of
    # these calls have other meanings.
    program = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_EQUAL, 1, 0, machine.audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR_OFFSET),
    ]
    for allowed in _ALLOWED.split()[machine.column :: 3]:
        if allowed != '-':
            program += [(_EQUAL, 0, 1, int(allowed)), (_RETURN, 0, 0, _ALLOW)]
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
    for number, flags in machine.open_calls:
        program += _allow_unless(_ANY_BIT, writing, number, flags, errno.EROFS)
    # The first four fcntl commands (0 to 3) duplicate descriptors and read flags. Others are
    # blocked, because F_SETOWN could signal any process of the user.
    program += _allow_unless(_GREATER, 3, machine.fcntl, 1, errno.ENOSYS)
    return [*program, (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]


def _allow_unless(
    test: int, value: int, number: int, argument: int, error: int
) -> list[_Instruction]:
    """Return instructions that allow a call unless a test of one of its arguments is true.

    Args:
        test: BPF operation that compares the argument.
        value: Operand of the test.
        number: Number of the system call.
        argument: Index of the argument, whose low 32 bits are tested.
        error: Error number with which the call fails if the test is true.
    """
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGS_OFFSET + 8 * argument),
        (test, 0, 1, value),
        (_RETURN, 0, 0, _FAIL | error),
        (_RETURN, 0, 0, _ALLOW),
    ]
