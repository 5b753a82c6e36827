"""What follows from several settings together."""

import pytest

from appliance import assemble
from appliance.settings import parse


@pytest.mark.parametrize("load_seconds", [120, 3600])
def test_no_reservation_expires_while_its_model_is_loaded_and_its_answer_made(load_seconds: int) -> None:
    """One that expires is charged in full, and its caller gets nothing back."""
    config = parse({"models": {"load_timeout_seconds": load_seconds}})
    budget = assemble._budget(config)
    assert budget.hold_seconds > load_seconds + config.gateway.request_timeout_seconds
