"""Ogg pages as RFC 3533 has them, taken apart without any of the project's code."""

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class Page:
    """One page. flags: 1 goes on a packet, 2 begins a stream, 4 ends it. packets: lengths of those that end in it."""

    flags: int
    granule: int
    serial: int
    number: int
    checks: bool
    packets: tuple[bytes, ...]


def pages(stream: bytes) -> list[Page]:
    """All pages of a stream; fails at bytes that belong to none."""
    found = []
    at = 0
    while at < len(stream):
        assert stream[at : at + 4] == b"OggS", f"no page at byte {at}"
        _, flags, granule, serial, number, checksum, segments = struct.unpack_from("<BBqIIIB", stream, at + 4)
        lacing = stream[at + 27 : at + 27 + segments]
        end = at + 27 + segments + sum(lacing)
        assert end <= len(stream), "the last page is not whole"
        content, packets, start, length = stream[at + 27 + segments : end], list[bytes](), 0, 0
        for lace in lacing:
            length += lace
            if lace < 255:
                packets.append(content[start : start + length])
                start, length = start + length, 0
        blank = stream[at : at + 22] + bytes(4) + stream[at + 26 : end]
        found.append(Page(flags, granule, serial, number, crc(blank) == checksum, tuple(packets)))
        at = end
    return found


def crc(data: bytes) -> int:
    """The checksum of pages: polynomial 0x04c11db7, nothing reflected, from 0."""
    value = 0
    for byte in data:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ 0x04C11DB7 if value & 0x80000000 else value << 1) & 0xFFFFFFFF
    return value
