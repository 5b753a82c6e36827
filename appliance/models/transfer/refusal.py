"""The one way in which a transfer says no.

Trusts: nothing.
Promises: nothing beyond the type.
Not here: what an operator reads (``cli.transfer``).
"""


class TransferRefused(Exception):
    """The registry's answer is not acceptable, or it never came. ``reason`` is a kebab-case code.

    ``detail`` is text of ours: nothing that a server sent is ever repeated in it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
