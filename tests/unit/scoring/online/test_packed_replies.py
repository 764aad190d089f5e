"""The values of replies are found where hiredis finds them, however the bytes arrive."""

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scoring.feast_plugins.packed_values import PackedValues
from scoring.online.packed_replies import PackedReplies, UnusualReply

Reply = list[bytes | None]
BETWEEN = b"\r\n*2\r\n"


def sent(replies: list[Reply]) -> bytes:
    """As Redis sends them."""
    parts = []
    for reply in replies:
        parts.append(b"*%d\r\n" % len(reply))
        parts += [b"$-1\r\n" if value is None else b"$%d\r\n%b\r\n" % (len(value), value) for value in reply]
    return b"".join(parts)


def found_in(values: PackedValues) -> list[Reply]:
    columns = [
        [None if size < 0 else values.content[start : start + size] for start, size in zip(*places, strict=True)]
        for places in zip(values.starts.tolist(), values.lengths.tolist(), strict=True)
    ]
    return [list(reply) for reply in zip(*columns, strict=True)]


def received_in_parts(content: bytes, cuts: list[int], count: int, width: int) -> tuple[list[Reply], int] | None:
    finder, received, found = PackedReplies(count, width), bytearray(), None
    for cut in [*sorted(cut for cut in cuts if cut < len(content)), len(content)]:
        received += content[len(received) : cut]
        found = found or finder.find(received)
    return None if found is None else (found_in(found[0]), found[1])


plain = st.none() | st.binary(max_size=99).filter(lambda value: b"\r" not in value and not value.startswith(b"-"))
widths = st.integers(1, 4)
many = widths.flatmap(lambda width: st.lists(st.lists(plain, min_size=width, max_size=width), min_size=1, max_size=20))
cuts = st.lists(st.integers(0, 2000), max_size=6)


@given(replies=many, cuts=cuts, following=st.binary(max_size=30))
def test_they_are_those_that_were_sent(replies: list[Reply], cuts: list[int], following: bytes) -> None:
    content = sent(replies)
    found = received_in_parts(content + following, cuts, len(replies), len(replies[0]))
    assert found == (replies, len(content))


delimiters = st.lists(
    st.sampled_from([b"\r\n", b"*2", b"$1", b"$-1", b"\r\n-", BETWEEN, b"$99", b"a"]), max_size=5
).map(b"".join)
pairs = st.lists(st.lists(st.none() | delimiters, min_size=2, max_size=2), min_size=1, max_size=6)


@given(replies=pairs, cuts=cuts)
def test_values_that_look_like_replies_are_left_to_hiredis(replies: list[Reply], cuts: list[int]) -> None:
    content = sent(replies)
    try:
        found = received_in_parts(content, cuts, len(replies), 2)
    except UnusualReply:
        return
    reader = hiredis.Reader()
    reader.feed(content)
    assert found == ([reader.gets() for _ in replies], len(content)), "it does not wait for more"


@pytest.mark.parametrize("bad", [BETWEEN + b"$9\r\n", BETWEEN + b"$99\r\n", BETWEEN + b"$9999\r\n"])
def test_a_value_that_looks_like_an_unfinished_reply_is_not_waited_for(bad: bytes) -> None:
    with pytest.raises(UnusualReply):
        PackedReplies(3, 2).find(bytearray(sent([[b"a", b"b"], [b"a", bad], [b"a", b"b"]])))


@pytest.mark.parametrize("place", [0, 2])
def test_a_long_value_is_left_to_hiredis_before_it_has_arrived(place: int) -> None:
    unfinished = sent([[b"a", b"b"]] * place) + b"*2\r\n$1000000\r\n" + b"a" * 1000
    with pytest.raises(UnusualReply):
        PackedReplies(3, 2).find(bytearray(unfinished))


@pytest.mark.parametrize(
    "content",
    [
        b"-LOADING the dataset in memory\r\n", b"+OK\r\n", b":1\r\n", b"$-1\r\n", b"*-1\r\n", b"*3\r\n", b"HTTP/1.1",
        sent([[b"a", b"b"]]) + b"-WRONGTYPE\r\n" + sent([[b"a", b"b"]]),
        sent([[b"a", b"b"]] * 2) + b"-WRONGTYPE\r\n",
        b"*2\r\n:1\r\n:2\r\n" * 3,
        b"*2\r\n*0\r\n*0\r\n" * 3,
        b"*2\r\n$-1\r\n$-1\r\n" * 2 + b"*2\r\n$" + b"9" * 5000 + b"\r\n",
        sent([[b"a", b"b"], [b"a", b"b", b"c"], [b"a", b"b"]]) + sent([[b"a", b"b"]]),
        sent([[b"a" * 100, b"b"]] * 3),
        sent([[b"a", b"b"]] * 2) + b"*2\r\n$1\r\nab\r\n$1\r\nb\r\n",
    ],
)  # fmt: skip
def test_other_replies_are_left_to_hiredis(content: bytes) -> None:
    with pytest.raises(UnusualReply):
        PackedReplies(3, 2).find(bytearray(content))


def test_words_can_be_read_at_each_place() -> None:
    found = PackedReplies(1, 1).find(bytearray(sent([[b"abcdefghi"]])))
    assert found is not None
    values = found[0]
    start = int(values.starts[0, 0])
    assert np.array(values.words[start], "<u8").tobytes() == b"abcdefgh"
    assert values.words[start + 9 + 8] == 0
