"""Every row of the table of hostile input, over a raw socket at the real server: its status, its one trace, and that
the server lives on."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.gateway.tally import MAX_LINE_CHARACTERS
from tests.integration.gateway.hostile_scripts import SCRIPTS, Scene, Script, staged
from tests.integration.gateway.hostile_table import ALL_NUMBERS, ELSEWHERE, NOT_BUILT, ROWS, Row
from tests.support.hostile_tokens import subject_of
from tests.support.raw_http import RawAnswer, exchange

_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ \w+ [A-Z]+[ :]")
"""How each line of the log begins; what does not is the rest of one that was broken in two."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with staged(tmp_path_factory.mktemp("hostile")) as one:
        yield one


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.number}: {row.name}"[:70] for row in ROWS])
def test_hostile_request_gets_its_status_and_leaves_one_trace(scene: Scene, row: Row) -> None:
    server = scene.server
    token = row.token(scene.forge) if row.token else scene.token()
    log = len(server.log)
    data = row.data.replace(b"@PROOF@", row.proof(token).encode() if row.proof else b"")
    data = data.replace(b"@CLIENT@", scene.credentials)
    answer = exchange(scene.proxied if row.by_proxy else server.port, Scene.filled(data, server, token))
    assert answer.status == row.status, answer
    if row.code and not row.data.startswith(b"HEAD "):
        assert answer.code() == row.code
    _check_answer(row, answer)
    _check_trace(scene, row, token, log)
    assert server.request("GET", "/v1/models", token=scene.token()).status == 200


def _check_answer(row: Row, answer: RawAnswer) -> None:
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["vary"] == "Authorization"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers
    for name, begins in row.headers.items():
        assert begins is None if name not in answer.headers else answer.headers[name].startswith(begins or "\x00")
    if row.status == 401:
        has_error = "error=" in answer.headers["www-authenticate"]
        assert has_error is (row.code not in {"token-missing", "invalid_client"})
    if row.closes:
        assert answer.closed
    if row.param is not None:
        assert f'"param":"{row.param}"'.encode() in answer.body
    assert b"Traceback" not in answer.body
    assert b"/tmp" not in answer.body


def _check_trace(scene: Scene, row: Row, token: str, log: int) -> None:
    def told() -> list[str]:
        return [line for line in scene.server.log[log:].splitlines() if " gateway " in line]

    expected = bool(row.stripped) + (row.told == "line")
    scene.server.wait_until(lambda: len(told()) >= expected, "the lines")  # the wire answers before the gate tells
    lines = told()
    if row.stripped:
        stripped, *lines = lines
        assert stripped.endswith(": " + f"stripped from a request of 127.0.0.1: {row.stripped}"[:MAX_LINE_CHARACTERS])
    if row.told == "line":
        (line,) = lines
        assert f"refused: {row.reason or row.code}: " in line
        return
    assert lines == []
    subject = subject_of(token)
    if row.told in {"record", "closed"}:
        scene.server.wait_until(lambda: scene.traces(subject) != [], "the record")
    reasons = {"record": [row.code], "closed": ["refused"], "nothing": []}[row.told]
    assert [trace for trace in scene.traces(subject) if trace not in {"completed", "truncated"}] == reasons


@pytest.mark.timeout(180)
@pytest.mark.parametrize("script", SCRIPTS, ids=[f"{script.number}: {script.name}" for script in SCRIPTS])
def test_hostile_behaviour_gets_its_status_and_leaves_its_trace(scene: Scene, script: Script) -> None:
    script.play(scene)
    assert scene.server.request("GET", "/v1/models", token=scene.token()).status == 200


def test_nothing_of_it_broke_a_line_of_the_log_or_left_one_that_a_terminal_would_obey(scene: Scene) -> None:
    exchange(scene.server.port, b"GET /\xe2\x80\xa8\x1b[2J HTTP/1.1\r\n\r\n")
    for server in scene.servers:
        for line in server.log.split("\n")[:-1]:
            assert _LINE.match(line), line
            assert line.isprintable(), ascii(line)


def test_server_still_does_its_work(scene: Scene) -> None:
    for server in scene.servers:
        assert server.chat(scene.token(server), max_tokens=2).status == 200


def test_every_number_has_rows_or_says_what_it_waits_for() -> None:
    shown = {row.number for row in ROWS} | {script.number for script in SCRIPTS}
    assert shown | NOT_BUILT.keys() == ALL_NUMBERS
    assert ELSEWHERE.keys() <= ALL_NUMBERS
    for name, _, test in (place.partition("::") for place in ELSEWHERE.values()):
        assert f"def {test}(" in Path(__file__).with_name(name).read_text()
    assert len({(row.number, row.name) for row in ROWS}) == len(ROWS)
