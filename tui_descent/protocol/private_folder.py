"""Folders that other users cannot change. Someone who can rename a run's folder could make us run any command."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

MAX_LINKS = 40
ADVICE = "set TUI_DESCENT_HOME to one of yours"


class ChannelError(Exception):
    """A socket or folder cannot be used. The message says what to do."""


def private_folder(folder: Path, *, advice: str = ADVICE) -> None:
    """Create the folder with mode 0700. Raises `ChannelError` if another user can read it, change it or replace it.

    `advice` says how to choose another folder.
    """
    if os.path.isdir(folder) and (found := folder.stat()).st_uid == os.getuid() and found.st_mode & 0o077:
        raise ChannelError(f"the folder {folder} is open to other users; run chmod 700 on it")
    protected_folder(folder, advice=advice)
    if folder.stat().st_uid != os.getuid():
        raise ChannelError(f"the folder {folder} belongs to another user; {advice}")


def protected_folder(folder: Path, *, advice: str = ADVICE) -> None:
    """Create the folder and its missing parents with mode 0700, independent of the umask.

    Raises `ChannelError` if another user can change or replace the folder or one of its parents.
    """
    try:
        missing = [folder]
        while not os.path.lexists(missing[-1]):
            missing.append(missing[-1].parent)
        if not (found := missing.pop()).exists():
            raise FileNotFoundError(0, f"{found} is a broken link")
        _check(found, advice)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another run has just created it
                path.mkdir(mode=0o700)
                path.chmod(0o700)
        _check(folder, advice)
    except OSError as error:
        raise ChannelError(f"cannot create the folder {folder}: {error.strerror}; {advice}") from None


def _check(folder: Path, advice: str) -> None:
    """Raise `ChannelError` if another user can change or replace this folder, and `OSError` if it is not a folder."""
    for path, found in _components(folder):
        if found.st_uid not in _trusted_owners():
            kind = "link" if stat.S_ISLNK(found.st_mode) else "folder"
            raise ChannelError(f"the {kind} {path} belongs to another user; {advice}")
        if stat.S_ISDIR(found.st_mode) and _others_can_write(found):
            raise ChannelError(f"other users can change the folder {path}; run chmod go-w on it, or {advice}")
    if not folder.is_dir():
        raise NotADirectoryError(0, f"{folder} is not a folder")


def _components(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """The path's folders and links from the root on, following each link. Raises `OSError` if one is missing."""
    at, rest, links = Path(path.anchor), list(path.parts[1:]), 0
    yield at, at.lstat()
    while rest:
        part = rest.pop(0)
        if part == "..":
            at = at.parent
            continue
        found = (at / part).lstat()
        yield at / part, found
        if not stat.S_ISLNK(found.st_mode):
            at = at / part
        elif (links := links + 1) > MAX_LINKS:
            raise OSError(0, "too many links")
        else:
            target = Path(os.readlink(at / part))
            if target.is_absolute():
                at = Path(target.anchor)
            rest = [*target.parts[target.is_absolute() :], *rest]


def _trusted_owners() -> set[int]:
    """The users who may own a folder: this user and root. Inside a container, the root user outside may appear as an
    unknown user with a number of its own.
    """
    trusted = {0, os.getuid()}
    with contextlib.suppress(OSError, ValueError):
        if int(Path("/proc/self/uid_map").read_text().split()[2]) < 2**32 - 1:
            trusted.add(int(Path("/proc/sys/kernel/overflowuid").read_text()))
    return trusted


def _others_can_write(found: os.stat_result) -> bool:
    if found.st_mode & stat.S_ISVTX:  # as in /tmp: others can add files, but not rename or remove ours
        return False
    if found.st_mode & stat.S_IWOTH:
        return True
    return bool(found.st_mode & stat.S_IWGRP) and not _is_own_group(found.st_gid)


def _is_own_group(group: int) -> bool:
    """Whether this is the group that many systems create for each user, with that user alone."""
    try:
        me, found = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:
        return False
    return me.pw_gid == group and me.pw_name == found.gr_name and set(found.gr_mem) <= {me.pw_name}
