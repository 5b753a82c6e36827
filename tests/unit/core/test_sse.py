"""No data becomes more than one event, and no comment becomes any (WHATWG HTML, section 9.2.6)."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.core import sse


def read(stream: str) -> list[str]:
    """The data of each event, as the specification's own steps read them."""
    events: list[str] = []
    data: list[str] = []
    lines = re.split("\r\n|\r|\n", stream)
    for line in lines:
        if not line:
            if data:
                events.append("\n".join(data))
            data = []
        elif line.startswith(":"):
            continue
        elif line.partition(":")[0] == "data":
            data.append(line.partition(":")[2].removeprefix(" "))
    return events


@pytest.mark.parametrize("data", [b"a\nb", b"a\rb", b"\n", b"x\r\n", b"\n\ndata: forged"])
def test_line_break_in_data_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        sse.event(data)


def test_exact_bytes() -> None:
    assert sse.event(b'{"a":1}') == b'data: {"a":1}\n\n'
    assert sse.DONE == b"data: [DONE]\n\n"


def test_ping_is_no_event() -> None:
    assert read((sse.PING + sse.event(b"x") + sse.PING).decode()) == ["x"]


@given(st.text(st.characters(codec="utf-8")), st.booleans())
def test_any_text_comes_back_as_one_event(text: str, ascii_only: bool) -> None:
    data = json.dumps({"text": text}, ensure_ascii=ascii_only).encode()
    stream = (sse.PING + sse.event(data) + sse.DONE).decode()
    assert [json.loads(event)["text"] if event != "[DONE]" else event for event in read(stream)] == [text, "[DONE]"]
