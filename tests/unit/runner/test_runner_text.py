"""Bytes of tokens to text: characters stay whole, stop strings stay in."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from appliance.runner.engine.text import TextStream


def run(pieces: list[bytes], stops: tuple[str, ...]) -> tuple[list[str], bool]:
    stream = TextStream(stops)
    sent = []
    for piece in pieces:
        sent.append(stream.feed(piece))
        if stream.stopped:
            return sent, True
    return [*sent, stream.finish()], stream.stopped


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(edges)]


places = st.lists(st.integers(0, 1000), max_size=30)
texts = st.text(alphabet="abé😀\n", max_size=60)
stop_lists = st.lists(st.text(alphabet="abé😀", min_size=1, max_size=5), max_size=4)


@given(st.text(max_size=60), places)
def test_no_character_is_split(text: str, where: list[int]) -> None:
    sent, _ = run(cut(text.encode(), where), ())
    assert "".join(sent) == text
    assert "\ufffd" not in "".join(sent).replace("\ufffd" if "\ufffd" in text else "", "")


@given(texts, stop_lists, places)
def test_stop_string_never_appears(text: str, stops: list[str], where: list[int]) -> None:
    sent, stopped = run(cut(text.encode(), where), tuple(stops))
    whole = "".join(sent)
    assert not any(stop in whole for stop in stops)
    assert text.startswith(whole)
    assert stopped == any(stop in text for stop in stops)
    if not stopped:
        assert whole == text


def test_text_that_cannot_become_a_stop_is_not_held_back() -> None:
    stream = TextStream(("###",))
    assert stream.feed(b"a#") == "a"
    assert stream.feed(b"b#") == "#b"
    assert stream.feed(b"#") == ""
    assert stream.finish() == "##"


def test_text_after_a_stop_is_not_sent() -> None:
    stream = TextStream(("END",))
    assert stream.feed(b"yes END no END") == "yes "
    assert stream.stopped
    assert stream.feed(b"more") == ""
    assert stream.finish() == ""


def test_bytes_that_are_no_text_do_not_pass() -> None:
    assert "".join(run([b"\xf0\x9f", b"a", b"\xff", b"\xe2\x82"], ())[0]) == "\ufffda\ufffd\ufffd"
