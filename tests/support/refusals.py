"""What an action that must be refused is refused for."""

from collections.abc import Callable

import pytest

from appliance.core.refusals import Reason, Refused


def code_of(action: Callable[[], object]) -> str:
    """The code of the ``MODEL_NOT_VERIFIED`` that ``action`` must end in; a detail for the operator follows it."""
    with pytest.raises(Refused) as caught:
        action()
    assert caught.value.reason is Reason.MODEL_NOT_VERIFIED
    code, _, detail = caught.value.detail.partition(": ")
    assert detail
    return code
