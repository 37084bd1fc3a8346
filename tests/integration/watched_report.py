"""Runs ``sensorlab report`` and prints what it writes below a directory: DIRECTORY then the command's arguments.

The interpreter's audit events see every file that Python opens, makes, renames or removes.
"""

import os
import sys

DIRECTORY = os.path.abspath(sys.argv[1])
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.truncate",
    "os.utime",
    "os.chmod",
    "os.link",
    "os.symlink",
}
touched: list[str] = []


def watch(event: str, arguments: tuple) -> None:
    if event == "open":
        path, _, flags = arguments
        writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        paths = [path] if writes else []
    elif event in _CHANGES or event == "sqlite3.connect":
        paths = list(arguments)
    else:
        return
    for path in paths:
        if not isinstance(path, str | bytes | os.PathLike):
            continue
        full = os.path.abspath(os.fsdecode(path))
        is_nothing = event == "os.mkdir" and os.path.isdir(full)  # "make it unless it is there"
        if full.startswith(DIRECTORY) and not is_nothing:
            touched.append(f"{event} {os.path.relpath(full, DIRECTORY)}")


sys.addaudithook(watch)

from sensorlab.cli import main  # noqa: E402

code = main(["report", *sys.argv[2:]])
print("touched:", sorted(set(touched)))
sys.exit(code)
