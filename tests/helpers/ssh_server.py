"""A real sshd on the loopback, with keys, a port and a configuration of its own in a temporary folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from runs import WITHIN_S

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")
_PRIVILEGES = Path("/run/sshd")  # sshd insists on this folder if root starts it
# Where the folder is missing: mount another /run that only this sshd and its sessions see.
_OWN_RUN = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs run /run && mkdir /run/sshd && exec "$@"', "sh")

CONFIG = """
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
PrintLastLog no
"""


def why_not() -> str | None:
    """Why no sshd can be started here, or None."""
    if SSHD is None or not all(map(shutil.which, ("ssh", "ssh-keygen"))):
        return "needs OpenSSH: sshd, ssh and ssh-keygen"
    if os.getuid() == 0 and not _PRIVILEGES.is_dir():
        probe = (*_OWN_RUN, "true")
        if not shutil.which("unshare") or subprocess.run(probe, capture_output=True, check=False).returncode:
            return f"sshd needs the folder {_PRIVILEGES}"
    return None


class SshServer:
    """An sshd that accepts this user. `command` is a command that runs words on it in a terminal."""

    def __init__(self, folder: Path) -> None:
        assert SSHD is not None
        for name in ("host_key", "user_key"):
            make = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
            subprocess.run(make, check=True, stdin=subprocess.DEVNULL)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder, self.log = folder, folder / "sshd.log"
        (folder / "config").write_text(CONFIG.format(port=self.port, folder=folder))
        command = [SSHD, "-D", "-e", "-f", str(folder / "config")]
        if os.getuid() == 0 and not _PRIVILEGES.is_dir():
            command = [*_OWN_RUN, *command]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self._wait()

    def _wait(self) -> None:
        end_s = time.monotonic() + WITHIN_S
        while time.monotonic() < end_s:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port), timeout=WITHIN_S).close()
                return
            time.sleep(0.02)
        raise AssertionError("sshd never listened")

    def command(self, *words: str) -> list[str]:
        options = {
            "IdentityFile": self.folder / "user_key",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self.folder / "known_hosts",
            "StrictHostKeyChecking": "accept-new",
            "LogLevel": "ERROR",
        }
        given = [text for name, value in options.items() for text in ("-o", f"{name}={value}")]
        return [
            *("ssh", "-F", "none", "-tt", "-p", str(self.port), *given),
            *(f"{getpass.getuser()}@127.0.0.1", *words),
        ]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(WITHIN_S)


@contextlib.contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    server = SshServer(folder)
    try:
        yield server
    finally:
        server.close()
