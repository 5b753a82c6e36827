"""What an operator names, before the notary is asked."""

from typing import Any, cast

import pytest

from appliance.cli import tokens
from appliance.core.refusals import Fault
from appliance.settings import Settings


@pytest.mark.parametrize(
    "named",
    [
        {"token_id": "x y"},
        {"token_id": ""},
        {"token_id": "x" * 65},
        {"token_id": "\ud800"},
        {"client_id": ""},
        {"client_id": "x" * 256},
    ],
)
def test_text_that_is_no_id_is_not_sent_and_ends_no_connection(
    named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*_asked: Any) -> None:
        pytest.fail("the notary was asked")

    monkeypatch.setattr(tokens, "ask", ask)
    given: dict[str, Any] = {"token_id": None, "client_id": None} | named
    with pytest.raises(Fault, match="no id of a token, or of a client"):
        tokens.revoke(cast("Settings", None), **given)
