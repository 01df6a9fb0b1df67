"""Folders that another user can change, replace or read are refused; ours are created with mode 0700."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tui_descent import paths
from tui_descent.protocol import private_folder as module
from tui_descent.protocol.channel import ChannelError, listen
from tui_descent.protocol.launch import LAUNCH_FILE, Launch, module_command
from tui_descent.protocol.private_folder import private_folder, protected_folder

OTHER = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def folder(path: Path, bits: int = 0o700) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(bits)
    return path


@pytest.fixture
def umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.mark.parametrize("bits", [0o000, 0o022, 0o002, 0o077, 0o177, 0o777])
def test_new_folders_are_private_whatever_the_umask(bits: int, home: Path, umask: None) -> None:
    os.umask(bits)
    run, made = paths.new_run("x", str(home / "a" / "b"))
    socket = paths.socket_path(run)
    Launch(run=run, name="x", folder=str(made), socket=str(socket)).write()
    for path in (home / "a", home / "a" / "b", made, home / "sockets"):
        assert mode(path) == 0o700, path
    assert mode(made / LAUNCH_FILE) & 0o077 == 0


@pytest.mark.parametrize("bits", [0o777, 0o757, 0o702, 0o777 | stat.S_ISGID])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_folder_below_one_that_others_can_change_is_refused(bits: int, depth: int, home: Path) -> None:
    shared = folder(home / "shared", bits)
    below = folder(shared / "/".join("abc"[:depth]))
    shared.chmod(bits)
    if depth:
        with pytest.raises(ChannelError, match=rf"other users can change the folder {shared}; run chmod go-w on it"):
            private_folder(below)
    with pytest.raises(ChannelError, match=r"can change the folder .*shared; .*choose another with --runs-dir"):
        paths.new_run("x", str(below))


def test_a_group_that_others_belong_to_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = folder(home / "shared", 0o775)
    monkeypatch.setattr(module, "_is_own_group", lambda group: False)
    with pytest.raises(ChannelError, match="can change the folder"):
        protected_folder(shared / "x")
    assert list(shared.iterdir()) == []
    monkeypatch.setattr(module, "_is_own_group", lambda group: group == shared.stat().st_gid)
    protected_folder(shared / "x")


@needs_root
def test_a_group_is_ours_only_if_it_has_our_name_and_no_other_member(monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._is_own_group(0)
    assert not module._is_own_group(OTHER)
    assert not module._is_own_group(4_000_000_000)  # has no name


def test_a_shared_folder_with_the_sticky_bit_is_fine(home: Path) -> None:
    shared = folder(home / "shared", 0o1777)
    _, made = paths.new_run("x", str(shared))
    assert mode(made) == 0o700


def test_links_of_our_own_are_followed(home: Path) -> None:
    disk = folder(home / "disk")
    (home / "relative").symlink_to("disk")
    (home / "absolute").symlink_to(home / "relative")
    for path in (home / "relative" / "x", home / "absolute" / "y", home / "absolute" / ".." / "z"):
        private_folder(path)
        assert path.resolve().is_dir()
    assert sorted(path.name for path in disk.iterdir()) == ["x", "y"]
    open_to_all = folder(home / "open", 0o777)
    folder(open_to_all / "mine")
    (home / "into").symlink_to(open_to_all / "mine")
    with pytest.raises(ChannelError, match=f"other users can change the folder {open_to_all}"):
        private_folder(home / "into" / "x")


@pytest.mark.parametrize("target", ["/nosuch/x", "loop"])
def test_a_link_to_nothing_is_one_clear_error(target: str, home: Path) -> None:
    (home / "loop").symlink_to(target)
    with pytest.raises(ChannelError, match="loop is a broken link; set TUI_DESCENT_HOME"):
        private_folder(home / "loop" / "sockets")


@needs_root
@pytest.mark.parametrize("place", ["", "theirs", "theirs/a/b"])
def test_a_folder_of_another_user_is_refused(place: str, home: Path) -> None:
    theirs = folder(home / "theirs")
    below = folder(home / place) if place else theirs
    os.chown(theirs, OTHER, OTHER)
    with pytest.raises(ChannelError, match=f"the folder {theirs} belongs to another user; set TUI_DESCENT_HOME"):
        private_folder(below if place else theirs)
    with pytest.raises(ChannelError, match=r"theirs belongs to another user; choose another with --runs-dir"):
        paths.new_run("x", str(theirs / "runs"))


@needs_root
def test_a_link_of_another_user_is_refused_even_if_it_points_to_a_folder_of_ours(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = folder(home / "ours")
    link = home / "link"
    link.symlink_to(ours)
    os.lchown(link, OTHER, OTHER)
    for path in (link, link / "x"):
        with pytest.raises(ChannelError, match=f"the link {link} belongs to another user"):
            private_folder(path)
    with pytest.raises(ChannelError, match="belongs to another user"):
        listen(link / "a.sock")
    assert list(ours.iterdir()) == []
    indirect = home / "indirect"
    indirect.symlink_to(link)
    with pytest.raises(ChannelError, match=f"the link {link} belongs to another user"):
        private_folder(indirect)


@needs_root
def test_the_short_socket_folder_may_not_be_a_link_of_another_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = folder(home / "tmp", 0o1777) / "tui-descent-0"
    short.symlink_to(folder(home / "ours"))
    os.lchown(short, OTHER, OTHER)
    monkeypatch.setattr(paths, "SHORT", str(short.parent))
    monkeypatch.setenv("TUI_DESCENT_HOME", str(home / ("x" * 90)))
    with pytest.raises(ChannelError, match=r"the link .* belongs to another user"):
        paths.socket_path("r")


@needs_root
@pytest.mark.parametrize("how", ["owner", "mode", "link"])
def test_a_launch_file_that_another_user_can_have_written_is_not_run(how: str, home: Path) -> None:
    run, made = paths.new_run("x")
    mark = home / "mark"
    Launch(run=run, name="x", folder=str(made), socket=None, command=("touch", str(mark))).write()
    path = made / LAUNCH_FILE
    if how == "owner":
        os.chown(path, OTHER, OTHER)
    elif how == "mode":
        path.chmod(0o666)
    else:
        path.rename(home / "elsewhere")
        path.symlink_to(home / "elsewhere")
    with pytest.raises(OSError) as caught:
        Launch.read(made)
    assert caught.value.errno in (errno.EPERM, errno.ELOOP)
    done = subprocess.run(
        module_command("tui_descent.keeper.process", str(made)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("keeper: ")
    assert not mark.exists()


def test_unknown_owners_are_trusted_only_inside_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"/proc/self/uid_map": "0 1000 1", "/proc/sys/kernel/overflowuid": "65534"}
    monkeypatch.setattr(Path, "read_text", lambda path: texts[str(path)])
    assert module._trusted_owners() == {0, os.getuid(), 65534}
    texts["/proc/self/uid_map"] = f"0 0 {2**32 - 1}"
    assert module._trusted_owners() == {0, os.getuid()}
