"""What went wrong on a POSIX device, in one line: it cannot be reached, or a program there failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath

__all__ = [
    "CHANGED_KEY",
    "NOT_LET_IN",
    "NO_HOST",
    "NO_SFTP",
    "REFUSED",
    "SILENT",
    "UNKNOWN_KEY",
    "program",
    "reason",
]

UNKNOWN_KEY = (
    "its host key ({offered}) is not known: run 'ssh {login}' once, compare the fingerprint that it shows with "
    "'ssh-keygen -lf' there of /etc/ssh/ssh_host_*_key.pub, and answer yes"
)
CHANGED_KEY = (
    "its host key has CHANGED (to {offered}): if it was set up anew, run 'ssh-keygen -R {entry}' and 'ssh "
    "{login}' once; if not, something else answers in its place"
)
NOT_LET_IN = (
    "it lets in none of your keys ({error}): 'ssh-copy-id {login}' adds one there, 'ssh-add' opens one that has a "
    "passphrase"
)
NO_HOST = "no host is called {host}: check the name, or write its address"
REFUSED = "it refuses connections: is sshd running there, and on this port?"
SILENT = "no answer within {timeout_s:g} s: is it switched on and in this network?"
NO_SFTP = (
    "its sshd has no sftp: install openssh-sftp-server there, or add 'Subsystem sftp internal-sftp' to its "
    "sshd_config"
)

_NOT_STARTED = (2, 126, 127)
"""Codes of shells that could not start a program: dash reads a foreign one as a script, and so ends with 2."""

_DIAGNOSE = """
cd -- "$1" || exit 0
machine() { od -An -tx1 -j4 -N1 "$1"; od -An -tx1 -j18 -N2 "$1"; }
[ -e "$2" ] || { echo missing; exit 0; }
[ "$(od -An -tx1 -N4 "$2" | tr -d ' ')" = 7f454c46 ] || exit 0
if [ "$(machine "$2")" = "$(machine /proc/self/exe)" ]; then echo loader; else echo foreign; fi
"""

_WHY = {
    "missing": "is not installed",
    "foreign": "was built for another processor: build it for this device",
    "loader": "did not start: is the loader, or a library that it was linked with, missing there?",
}


def program(argv: Sequence[str]) -> str:
    """What messages call a command: the script that an interpreter runs, or the program."""
    return PurePosixPath(argv[1] if len(argv) > 1 else argv[0]).name


def reason(argv: Sequence[str], code: int, message: str, *, folder: str, script: Callable[..., str]) -> str:
    """Why `argv` ended with `code`; `script` runs a shell script with arguments, to look at the program."""
    if code in _NOT_STARTED:
        # A name without a folder was searched for on the PATH.
        why = script("looking why", _DIAGNOSE, folder, argv[0]).strip() if "/" in argv[0] else ""
        why = "missing" if code == 127 and "/" not in argv[0] else why
        if why in ("missing", "foreign") or (why and code != 2):
            return f"{argv[0]} {_WHY[why]}"
    if code == 137:
        return f"{program(argv)} was killed (code 137): is the memory full?"
    return f"{program(argv)} ended with code {code}: {message}"
