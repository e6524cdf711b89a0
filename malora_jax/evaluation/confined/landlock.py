"""Landlock rules that restrict reads to the standard library, system libraries and time zones.

Linux's Landlock needs no privileges, and a process cannot remove its restrictions. The rest of the
disk, the memory of other processes under /proc, and installed packages cannot be read. Benchmark
answers and secrets are thus out of reach. The process can still see whether a file exists.
"""

import os
import struct
import sys
from collections.abc import Iterable, Iterator

from . import libc

# System call numbers, which are the same on every architecture, and rights (linux/landlock.h).
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULE_PATH_BENEATH = 1
_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
_ALL_OF_FIRST_VERSION = (1 << 13) - 1

_LIBRARIES = ('/lib', '/lib64', '/usr/lib', '/usr/lib64', '/etc/ld.so.cache')
# Directories that zoneinfo searches, besides /usr/lib.
_TIME_ZONES = ('/usr/share/zoneinfo', '/usr/share/lib/zoneinfo', '/etc/zoneinfo')
# Names of the directories of installed packages inside the standard library's directory.
_PACKAGES = ('site-packages', 'dist-packages')


def apply() -> None:
    """Irrevocably give up all access to files, except reading libraries and time zones.

    `PR_SET_NO_NEW_PRIVS` must be set before.

    Raises:
        OSError: The system has no Landlock.
    """
    handled = struct.pack('Q', _ALL_OF_FIRST_VERSION)
    rules = libc.call('syscall', _CREATE_RULESET, handled, len(handled), 0)
    for path, rights in _rules():
        descriptor = os.open(path, os.O_PATH)
        beneath = struct.pack('=Qi', rights, descriptor)
        libc.call('syscall', _ADD_RULE, rules, _RULE_PATH_BENEATH, beneath, 0)
        os.close(descriptor)
    libc.call('syscall', _RESTRICT_SELF, rules, 0)
    os.close(rules)


def _rules() -> Iterator[tuple[str, int]]:
    """Yield each path that remains readable, with its access rights."""
    yield '.', _READ_DIRECTORY
    for folder in filter(os.path.isdir, sys.path):
        # A rule covers everything below its path, so packages can only be excluded by listing all
        # other entries.
        yield folder, _READ_DIRECTORY
        yield from _full_read_rules(
            entry.path for entry in os.scandir(folder) if entry.name not in _PACKAGES
        )
    yield from _full_read_rules(_LIBRARIES)
    yield from _full_read_rules(_TIME_ZONES)
    own = os.path.join(sys.base_prefix, 'lib')
    yield from _full_read_rules(entry.path for entry in os.scandir(own) if '.so' in entry.name)


def _full_read_rules(paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield each existing path, with the right to read everything below it."""
    for path in filter(os.path.exists, paths):
        yield path, _READ_FILE | (_READ_DIRECTORY if os.path.isdir(path) else 0)
