"""Bytes into frames: any portions give the same frames, any bytes give frames or one clear error."""

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.nri.frames import LARGEST, Decoder, Frame, Kind, ProtocolError, Service, encode

frames = st.builds(
    Frame,
    service=st.sampled_from(Service),
    stream=st.integers(0, 2**31 - 1).map(lambda number: 2 * number + 1),
    kind=st.sampled_from(Kind),
    message=st.binary(max_size=200),
)


def decode(portions: Iterable[bytes]) -> list[Frame]:
    decoder = Decoder()
    found = [frame for portion in portions for frame in decoder.feed(portion)]
    assert not decoder.partial
    return found


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    ends = [*sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(st.lists(frames, max_size=5), st.lists(st.integers(0), max_size=12))
def test_frames_come_out_as_they_went_in_whatever_the_portions(sent: list[Frame], places: list[int]) -> None:
    assert decode(cut(b"".join(map(encode, sent)), places)) == sent


@given(st.lists(frames, max_size=4), st.lists(st.tuples(st.sampled_from(Service), st.integers(0, 40)), max_size=20))
def test_pieces_of_two_services_may_be_mixed(sent: list[Frame], turns: list[tuple[Service, int]]) -> None:
    queues = {service: b"".join(encode(frame)[8:] for frame in sent if frame.service is service) for service in Service}
    mixed = b""
    for service, size in (*turns, *((service, len(queues[service])) for service in Service)):
        mixed += piece(service, queues[service][:size])
        queues[service] = queues[service][size:]
    found = decode([mixed])
    assert sorted(found, key=lambda frame: frame.service) == sorted(sent, key=lambda frame: frame.service)


@given(st.lists(st.binary(max_size=64), max_size=8))
def test_any_bytes_are_frames_or_one_error(portions: list[bytes]) -> None:
    decoder = Decoder()
    try:
        for portion in portions:
            list(decoder.feed(portion))
    except ProtocolError as error:
        assert str(error).isprintable()  # noqa: PT017  # only if there is one


def piece(service: int, data: bytes, length: int | None = None) -> bytes:
    return struct.pack(">II", service, len(data) if length is None else length) + data


def header(length: int, stream: int = 1, kind: int = 1) -> bytes:
    return struct.pack(">IIBB", length, stream, kind, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(
            piece(1, b"", LARGEST + 11), "a piece of 4194315 bytes: at most 4194314 are allowed", id="a piece too long"
        ),
        pytest.param(
            piece(9, b"", 2**32 - 1),
            "a piece of 4294967295 bytes: at most 4194314 are allowed",
            id="a piece too long for nobody",
        ),
        pytest.param(
            piece(1, header(LARGEST + 1)),
            "a message of 4194305 bytes: at most 4194304 are allowed",
            id="a message too long",
        ),
        pytest.param(
            piece(2, header(2**32 - 1)), "a message of 4294967295 bytes: at most 4194304 are allowed", id="far too long"
        ),
        pytest.param(
            piece(1, header(0, stream=2)), "a frame of kind 1 on stream 2: no such frame is a runtime's", id="even"
        ),
        pytest.param(
            piece(1, header(0, kind=3)), "a frame of kind 3 on stream 1: no such frame is a runtime's", id="a stream's"
        ),
        pytest.param(
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            "a piece of 791752241 bytes: at most 4194314 are allowed",
            id="somebody else's protocol",
        ),
    ],
)
def test_what_no_runtime_sends_is_refused_at_its_header(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError) as error:
        list(Decoder().feed(data))
    assert str(error.value) == message


def test_the_largest_message_is_taken() -> None:
    frame = Frame(Service.PLUGIN, 1, Kind.REQUEST, b"x" * LARGEST)
    assert decode([encode(frame)]) == [frame]


def test_pieces_for_services_that_nobody_opened_are_dropped() -> None:
    frame = Frame(Service.PLUGIN, 1, Kind.REQUEST, b"hello")
    assert decode([piece(0, b"abc"), piece(3, b"x" * 100_000), encode(frame), piece(2**32 - 1, b"")]) == [frame]


@pytest.mark.parametrize(
    ("data", "partial"),
    [
        pytest.param(b"", False, id="nothing"),
        pytest.param(b"\0", True, id="a part of a header"),
        pytest.param(piece(1, b"", 10), True, id="a header"),
        pytest.param(piece(1, header(1)), True, id="both headers"),
        pytest.param(piece(3, b"", 10), True, id="a header for nobody"),
        pytest.param(piece(1, header(0)), False, id="a whole frame"),
    ],
)
def test_it_is_known_whether_something_is_missing(data: bytes, partial: bool) -> None:  # noqa: FBT001  # a case
    decoder = Decoder()
    list(decoder.feed(data))
    assert decoder.partial is partial
