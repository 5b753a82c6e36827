"""Arguments that a filter's rule lets through, and arguments that it must not."""

from collections.abc import Iterator

from appliance.sandbox.bpf import Policy, Rule

PID = 1


def number(text: str) -> int:
    return PID if text == "pid" else int(text, 0)


def arguments_that_fit(rule: Rule) -> list[int]:
    arguments = [0] * 6
    for condition in rule.when:
        arguments[condition.argument] = number(condition.equals)
    return arguments


def one_bit_away(rule: Rule) -> Iterator[list[int]]:
    """Every argument list that differs from a fitting one in one bit that a condition looks at, high words included."""
    for condition in rule.when:
        for bit in range(64):
            if number(condition.mask) >> bit & 1:
                arguments = arguments_that_fit(rule)
                arguments[condition.argument] ^= 1 << bit
                yield arguments


def fits_another(rule: Rule, policy: Policy, arguments: list[int]) -> bool:
    return any(
        all(arguments[c.argument] & number(c.mask) == number(c.equals) for c in other.when)
        for other in policy.rules
        if other.syscall == rule.syscall and other is not rule
    )
