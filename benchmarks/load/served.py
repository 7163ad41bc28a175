"""`adapterhub serve` as a process of its own: its address, what it takes of the machine, how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

START_SECONDS = 180.0
STOP_SECONDS = 120.0


@dataclass(frozen=True)
class Sample:
    """What a process takes at a time, in seconds since it was watched: resident set in MB, open files, threads."""

    at: float
    resident: float
    files: int
    threads: int


@dataclass
class Served:
    """A server that runs. `said` holds its last lines; `samples` grow once a second while it is watched."""

    process: subprocess.Popen[str]
    port: int = 0
    said: deque[str] = field(default_factory=lambda: deque(maxlen=400))
    samples: list[Sample] = field(default_factory=list)
    begun: float = field(default_factory=time.perf_counter)
    _ready: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Read what the server says until it ends."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            if line.startswith("adapterhub: ready: http://"):
                self.port = int(line.rsplit(":", 1)[1])
                self._ready.set()
        self._ready.set()

    def wait_until_ready(self) -> None:
        """Block until it answers; raises RuntimeError with what it said where it does not."""
        self._ready.wait(START_SECONDS)
        if not self.port:
            raise RuntimeError("the server did not start:\n" + "\n".join(self.said))

    def sample(self) -> Sample:
        """Return what the process takes now."""
        proc = Path(f"/proc/{self.process.pid}")
        pages = int((proc / "statm").read_text().split()[1])
        files, threads = (sum(1 for _ in (proc / name).iterdir()) for name in ("fd", "task"))
        return Sample(time.perf_counter() - self.begun, pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads)

    def watch(self, stop: threading.Event) -> None:
        """Take a sample a second until `stop` is set or the process ends."""
        while not stop.wait(1.0):
            try:
                self.samples.append(self.sample())
            except OSError:
                return

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)


@contextmanager
def served(options: Sequence[str], cpus: str | None = None) -> Iterator[Served]:
    """Start a server on a free port and wait until it is ready; whatever happens, it is gone after the block.

    `cpus` is a list for taskset, such as "0-1".
    """
    command = [sys.executable, "-m", "adapterhub", "serve", "--port", "0", *options]
    if cpus is not None:
        command = ["taskset", "--cpu-list", cpus, *command]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    server = Served(process)
    listener = threading.Thread(target=server.listen, daemon=True)
    listener.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        listener.join(10)
        assert process.stderr is not None
        process.stderr.close()
