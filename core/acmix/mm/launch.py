"""Telling a process that torchrun started again from one of a new launch.

torchrun's own count of restarts is kept by each machine: it is 0 on all of them after a machine
came back that the others still waited for.
"""

import json
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from acmix.mm.files import write_text

RECORD = "launch.json"


def launcher() -> str | None:
    """The torchrun process that started this one, in words that no other has; ``None`` if none."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        status = Path("/proc", str(os.getppid()), "stat").read_text()
    except OSError:  # not Linux: unique at least where torchrun makes up the name
        return f"{socket.gethostname()} {os.getppid()} {os.environ['TORCHELASTIC_RUN_ID']}"
    started = status.rpartition(")")[2].split()[19]
    return f"{boot} {os.getppid()} {started}"


class LaunchRecord:
    """What a work dir says of the launch that trains in it.

    Args:
        folder: The work dir.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / RECORD

    def enter(self, launchers: list[str], checkpoints: Iterable[Path]) -> set[str] | None:
        """Take this launch down, unless it is.

        Args:
            launchers: The torchrun processes of all machines.
            checkpoints: Those in the work dir now.

        Returns:
            Names of the checkpoints that this launch wrote so far, if its processes were started
            again; ``None`` in its first start.
        """
        own, earlier = set(launchers), {path.name: path.stat().st_mtime_ns for path in checkpoints}
        written = None
        known, before = self._read()
        if own & known:
            written = {name for name, time in earlier.items() if before.get(name) != time}
            earlier = before
        write_text(self.path, json.dumps({"launchers": sorted(own), "earlier": earlier}))
        return written

    def _read(self) -> tuple[set[str], dict[str, int]]:
        try:
            record = json.loads(self.path.read_text())
            return set(record["launchers"]), dict(record["earlier"])
        except (OSError, ValueError, KeyError, TypeError):
            return set(), {}
