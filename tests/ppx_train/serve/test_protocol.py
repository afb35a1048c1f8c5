"""Messages byte by byte, as the page's decoder and other clients read them."""

import json

from ppx_train.serve.protocol import (
    HANDSHAKE,
    Close,
    Kind,
    Message,
    audio_message,
    error_message,
    event_message,
    read_message,
    text_message,
)
from tests.refusals import refused


def test_messages_are_the_bytes_that_other_servers_send() -> None:
    assert HANDSHAKE == b"\x00"
    assert audio_message(b"OggS") == b"\x01OggS"
    assert text_message(" né") == b"\x02 n\xc3\xa9"
    assert error_message("Full.") == b"\x05Full."
    made = event_message("queued", 1.23456, position=2)
    assert made[:1] == b"\x04" and json.loads(made[1:]) == {"type": "queued", "t": 1.235, "position": 2}
    assert [int(code) for code in Close] == [1000, 1003, 1007, 1008, 1009, 1011, 1012, 1013]


def test_handshakes_of_1_3_and_9_bytes_and_unknown_kinds_are_read() -> None:
    for length in (1, 3, 9):
        assert read_message(bytes(length)) == Message(Kind.HANDSHAKE, bytes(length - 1))
    assert read_message(b"\x09abc") == Message(9, b"abc")
    assert read_message(b"") is None
    assert Message(Kind.TEXT, b"a\xff").text == "a\ufffd"


def test_metadata_that_is_no_object_is_refused() -> None:
    for payload in (b"", b"[1]", b"{", b"[" * 100000):
        with refused("bad-answer"):
            _ = Message(Kind.METADATA, payload).event
