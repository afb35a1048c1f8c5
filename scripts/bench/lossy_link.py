"""A network between two namespaces that delays and loses packets, in user space: for kernels without `tc netem`.

Each namespace has a TUN device of its own; a thread carries IP packets from one to the other. What the two sides do
about it, such as TCP's retransmissions, is the kernel's own work. It wants Linux, root and /dev/net/tun, and touches no
device, route or setting outside of its two namespaces, which are removed at the end.
"""

import os
import random
import select
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from model.errors import UserError

TUN = Path("/dev/net/tun")
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
ADDRESSES = ("198.18.0.1", "198.18.0.2")
"""Of the two ends, from the block that RFC 2544 sets aside for measuring networks."""
IDLE_SECONDS = 0.05
MOST_PACKET_BYTES = 2**16


class LossyLine:
    """One direction. delay: seconds that a packet takes. loss: the chance of each to be lost, on its own."""

    def __init__(self, delay: float, loss: float, seed: int) -> None:
        """Raises: UserError for a negative delay, or a loss that is no share below 1."""
        if not 0 <= delay < float("inf") or not 0 <= loss < 1:
            raise UserError(f"a delay of {delay} s and a loss of {loss}: give 0 or more, and 0 to 1", code="bad-value")
        self.delay, self.loss = delay, loss
        self.taken = self.lost = 0
        """Packets so far."""
        self._chance = random.Random(seed)
        self._waiting: deque[tuple[float, bytes]] = deque()

    def take(self, packet: bytes, now: float) -> None:
        """Sends a packet on its way, or loses it. now: seconds of a clock that never goes back."""
        self.taken += 1
        if self._chance.random() < self.loss:
            self.lost += 1
        else:
            self._waiting.append((now + self.delay, packet))

    @property
    def next_at(self) -> float:
        """When the next packet arrives; infinity while nothing is on the way."""
        return self._waiting[0][0] if self._waiting else float("inf")

    def arrived(self, now: float) -> Iterator[bytes]:
        """Yields the packets that have arrived by now, in the order of their sending."""
        while self.next_at <= now:
            yield self._waiting.popleft()[1]


class Link:
    """Two namespaces with a line each way, as a context manager; `set` changes the lines while it runs."""

    def __init__(self) -> None:
        self.spaces = tuple(f"ppx-ear-{os.getpid()}-{end}" for end in "ab")
        """Names of the namespaces, for `ip netns exec`."""
        self._lines = (LossyLine(0.0, 0.0, 0), LossyLine(0.0, 0.0, 1))
        self._devices: list[int] = []
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)

    def __enter__(self) -> "Link":
        """Raises: UserError without root or TUN, or if the namespaces cannot be made."""
        if not hasattr(os, "geteuid") or os.geteuid() != 0 or not TUN.exists():
            raise UserError(
                f"a network that loses packets wants root and {TUN}: run it so, or measure this machine alone with "
                "--here",
                code="no-access",
            )
        try:
            for end, (space, address) in enumerate(zip(self.spaces, ADDRESSES, strict=True)):
                _ip("netns", "add", space)
                # A number of the process tells devices apart while they are still outside of their namespaces.
                device = f"ear{os.getpid()}{'ab'[end]}"
                self._devices.append(_open_tun(device))
                _ip("link", "set", device, "netns", space)
                for words in (f"addr add {address}/30 dev {device}", f"link set {device} up", "link set lo up"):
                    _ip("-n", space, *words.split())
                # What TCP learned of one setting is not to be remembered in the next.
                _ip("netns", "exec", space, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save")
        except BaseException:
            self._remove()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        self._thread.join()
        self._remove()

    def set(self, round_trip: float, loss: float, seed: int) -> Sequence[LossyLine]:
        """Begins new lines: half of the round trip, in seconds, and the loss in each direction. Returns them."""
        self._lines = (LossyLine(round_trip / 2, loss, 2 * seed), LossyLine(round_trip / 2, loss, 2 * seed + 1))
        return self._lines

    def _carry(self) -> None:
        while not self._stops.is_set():
            wait = min(line.next_at for line in self._lines) - time.monotonic()
            ready, _, _ = select.select(self._devices, [], [], min(IDLE_SECONDS, max(0.0, wait)))
            lines = self._lines  # Perhaps new ones, begun while this thread waited.
            for device, line in zip(self._devices, lines, strict=True):
                if device in ready:
                    line.take(os.read(device, MOST_PACKET_BYTES), time.monotonic())
            for device, line in zip(reversed(self._devices), lines, strict=True):
                for packet in line.arrived(time.monotonic()):
                    os.write(device, packet)

    def _remove(self) -> None:
        for device in self._devices:
            os.close(device)
        for space in self.spaces:
            with suppress(UserError):
                _ip("netns", "del", space)


def _open_tun(name: str) -> int:
    import fcntl  # Only systems that have TUN have it.

    device = os.open(TUN, os.O_RDWR)
    try:
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError as why:
        os.close(device)
        raise UserError(f"{TUN}: no device can be made ({why.strerror}): measure with --here", "no-access") from why
    return device


def _ip(*words: str) -> None:
    try:
        done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise UserError("the program ip is not installed: apt-get install iproute2", code="program-failed") from None
    if done.returncode:
        raise UserError(f"ip {' '.join(words)}: {done.stderr.strip()}: measure with --here", code="program-failed")
