"""How many tokens of prompts make a step worth having: learnt from what steps take on this machine.

A step costs something whatever is in it, to read the weights and to start the work, and something for each token. Two
prompts in one step share the first and wait for each other's second. So a further prompt belongs into a step only while
the step's tokens cost less than the step itself; beyond, the first prompt answers sooner if the second one waits, and
the second no later. A processor is there after a few tokens, an accelerator after hundreds.

Trusts: the times that it is told.
Promises: until it has seen both kinds of steps, all that fits is worth having.
Not here: whose prompt comes first (``engine.filling``).
"""

from collections import deque
from typing import Final

_REMEMBERED: Final = 16
_LEAST_DIFFERENCE: Final = 16
"""In tokens, between the two kinds of steps, or what lies between their times is chance."""


class Economy:
    """Of one engine. One thread only."""

    def __init__(self) -> None:
        self._plain: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)
        self._with_prompts: deque[tuple[int, float]] = deque(maxlen=_REMEMBERED)

    def learn(self, tokens: int, prompt_tokens: int, seconds: float) -> None:
        """A step of so many tokens, of which so many were of prompts."""
        if tokens and seconds > 0:
            (self._with_prompts if prompt_tokens else self._plain).append((tokens, seconds))

    def worthwhile(self, most: int) -> int:
        """Tokens of prompts, at most ``most``, up to which another prompt may join a step."""
        if not self._plain or not self._with_prompts:
            return most
        few, short = _means(self._plain)
        many, long = _means(self._with_prompts)
        if many - few < _LEAST_DIFFERENCE or long <= short:
            return most
        of_token = (long - short) / (many - few)
        of_step = max(0.0, short - few * of_token)
        return min(most, round(of_step / of_token))


def _means(steps: deque[tuple[int, float]]) -> tuple[float, float]:
    return sum(tokens for tokens, _ in steps) / len(steps), sum(seconds for _, seconds in steps) / len(steps)
