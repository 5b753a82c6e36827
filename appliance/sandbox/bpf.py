"""A syscall policy (data) -> a classic BPF program (bytes) for seccomp. Pure: no I/O, no system call.

A policy lists rules. A rule allows one system call, perhaps only with certain arguments, or answers it with an error,
or says that it ends the process. A call that rules name and none of them fits ends the whole process
(``SECCOMP_RET_KILL_PROCESS``); so does another architecture's or an x32 call. A call that no rule names gets the
policy's default. See seccomp(2) and Linux ``Documentation/networking/filter.rst`` for the instruction set.

Trusts: the policy, which ships with the package.
Promises: the program allows what the rules say and nothing else; a condition is over all 64 bits of its argument.
Not here: reading the policy files and installing the program (``seccomp``).
"""

import errno
from dataclasses import dataclass
from struct import pack
from typing import Annotated, Final, Literal

from msgspec import Meta

from appliance.core.values import Value
from appliance.sandbox.syscalls import X86_64

AUDIT_ARCH_X86_64: Final = 0xC000003E
X32_BIT: Final = 0x40000000

RET_KILL_PROCESS: Final = 0x80000000
RET_ERRNO: Final = 0x00050000
RET_ALLOW: Final = 0x7FFF0000

# struct seccomp_data: u32 nr, u32 arch, u64 instruction_pointer, u64 args[6]; x86-64 is little-endian.
_OFFSET_NR: Final = 0
_OFFSET_ARCH: Final = 4
_OFFSET_ARGS: Final = 16

_LOAD_WORD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND: Final = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP: Final = 0x05  # BPF_JMP | BPF_JA
_JUMP_IF_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_IF_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K

_MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
_MAX_SHORT_JUMP: Final = 255  # jt and jf are one byte each

_WORD: Final = 0xFFFFFFFF
_U64: Final = 0xFFFFFFFFFFFFFFFF


class PolicyError(Exception):
    """The policy cannot be compiled: the process that needs it must not start."""


Text = Annotated[str, Meta(min_length=1)]


class Condition(Value, frozen=True, kw_only=True):
    """``(argument & mask) == equals``, over 64 bits. Numbers are text: ``0x…``, decimal, or a parameter."""

    argument: Annotated[int, Meta(ge=0, le=5)]
    equals: Text
    mask: Text = "0xffffffffffffffff"


class Rule(Value, frozen=True, kw_only=True):
    """One system call and why it is needed. It is allowed if every condition holds, or answered with ``errno``; with
    ``kill`` it ends the process, which only differs from silence where the policy's default is an error."""

    syscall: Text
    reason: Annotated[str, Meta(min_length=10)]
    when: tuple[Condition, ...] = ()
    errno: Text | None = None
    kill: bool = False


class Policy(Value, frozen=True, kw_only=True):
    """One stage of the filter. Several rules for one call are alternatives, tried in their order; the last may be
    without conditions, to answer what fits none of the others with an error instead of the process's end.

    ``extends`` names a policy whose rules hold for the calls that these do not name (``seccomp.load_policy``).
    """

    architecture: Literal["x86_64"]
    default: Literal["kill-process", "errno EPERM"]
    about: Text
    extends: Literal["service"] | None = None
    rules: Annotated[tuple[Rule, ...], Meta(min_length=1)]

    @property
    def allowed(self) -> tuple[str, ...]:
        """Names of the calls that some rule lets through, sorted."""
        return tuple(sorted({rule.syscall for rule in self.rules if rule.errno is None and not rule.kill}))


@dataclass(frozen=True)
class _Instruction:
    """One BPF instruction whose jumps still name labels. ``if_true`` of None on a conditional jump falls through."""

    code: int
    k: int = 0
    if_true: str | None = None
    if_false: str | None = None


_Item = _Instruction | str  # an instruction, or the label of the next one


def compile_policy(policy: Policy, parameters: dict[str, int]) -> bytes:
    """Policy -> BPF program, 8 bytes per instruction. ``parameters`` fill in names used by conditions (``pid``).

    Raises ``PolicyError`` for an unknown call, number or parameter, a repeated plain rule, or too long a program.
    """
    program: list[_Item] = [
        _Instruction(_LOAD_WORD, _OFFSET_ARCH),
        _Instruction(_JUMP_IF_EQUAL, AUDIT_ARCH_X86_64, None, "kill"),
        _Instruction(_LOAD_WORD, _OFFSET_NR),
        _Instruction(_JUMP_IF_AT_LEAST, X32_BIT, "kill", None),
    ]
    for name, rules in _by_syscall(policy).items():
        program += _call(name, rules, parameters)
    if policy.default == "errno EPERM":
        program.append(_Instruction(_RETURN, RET_ERRNO | errno.EPERM))
    program += ["kill", _Instruction(_RETURN, RET_KILL_PROCESS), "allow", _Instruction(_RETURN, RET_ALLOW)]
    return _assemble(program)


def _by_syscall(policy: Policy) -> dict[str, list[Rule]]:
    grouped: dict[str, list[Rule]] = {}
    for rule in policy.rules:
        grouped.setdefault(rule.syscall, []).append(rule)
    for name, rules in grouped.items():
        *first, last = rules
        if not all(map(_allows_some, first)) or (first and not last.when and last.errno is None):
            raise PolicyError(f"{name}: only rules with conditions can be alternatives of each other")
    return grouped


def _allows_some(rule: Rule) -> bool:
    return bool(rule.when) and rule.errno is None and not rule.kill


def _call(name: str, rules: list[Rule], parameters: dict[str, int]) -> list[_Item]:
    """The block of one system call. The accumulator holds the call's number on entry and when the block is skipped."""
    if name not in X86_64:
        raise PolicyError(f"unknown system call {name}")
    after = f"after {name}"
    block: list[_Item] = [_Instruction(_JUMP_IF_EQUAL, X86_64[name], None, after)]
    for index, rule in enumerate(rules):
        alternative = f"{name} {index}"
        for condition in rule.when:
            block += _condition(condition, parameters, alternative)
        block += [_Instruction(_RETURN, _verdict(rule)), alternative]
    if rules[-1].when:
        block.append(_Instruction(_RETURN, RET_KILL_PROCESS))
    return [*block, after]


def _verdict(rule: Rule) -> int:
    if rule.kill:
        if rule.errno is not None or rule.when:
            raise PolicyError(f"{rule.syscall}: a rule that kills has no conditions and no error")
        return RET_KILL_PROCESS
    if rule.errno is None:
        return RET_ALLOW
    number = getattr(errno, rule.errno, None)
    if not isinstance(number, int):
        raise PolicyError(f"{rule.syscall}: unknown error {rule.errno}")
    return RET_ERRNO | number


def _condition(condition: Condition, parameters: dict[str, int], otherwise: str) -> list[_Item]:
    """Both 32-bit halves of ``(argument & mask) == equals``; BPF has no 64-bit registers."""
    mask, equals = _number(condition.mask, parameters), _number(condition.equals, parameters)
    if equals & ~mask:
        raise PolicyError(f"argument {condition.argument} could never equal {equals:#x} under mask {mask:#x}")
    offset = _OFFSET_ARGS + 8 * condition.argument
    items: list[_Item] = []
    for half, shift in ((offset, 0), (offset + 4, 32)):
        items.append(_Instruction(_LOAD_WORD, half))
        if mask >> shift & _WORD != _WORD:
            items.append(_Instruction(_AND, mask >> shift & _WORD))
        items.append(_Instruction(_JUMP_IF_EQUAL, equals >> shift & _WORD, None, otherwise))
    return items


def _number(text: str, parameters: dict[str, int]) -> int:
    if text in parameters:
        number = parameters[text]
    else:
        try:
            number = int(text, 0)
        except ValueError:
            raise PolicyError(f"{text!r} is neither a number nor a parameter") from None
    if not 0 <= number <= _U64:
        raise PolicyError(f"{text} does not fit 64 bits")
    return number


def _assemble(program: list[_Item]) -> bytes:
    """Labels -> distances. A conditional jump that cannot reach its label is widened into one with two plain jumps.

    Widening moves everything behind it, so placing is repeated until no jump needs it any more.
    """
    wide: set[int] = set()
    while True:
        labels, positions = _place(program, wide)
        too_far = {
            index
            for index, item in enumerate(program)
            if isinstance(item, _Instruction)
            and index not in wide
            and _reach(item, positions[index], labels) > _MAX_SHORT_JUMP
        }
        if not too_far:
            break
        wide |= too_far
    code = b"".join(
        _encode(item, positions[index], labels, wide=index in wide)
        for index, item in enumerate(program)
        if isinstance(item, _Instruction)
    )
    if len(code) // 8 > _MAX_INSTRUCTIONS:
        raise PolicyError(f"{len(code) // 8} instructions are more than the kernel takes")
    return code


def _place(program: list[_Item], wide: set[int]) -> tuple[dict[str, int], dict[int, int]]:
    """Where each label and each instruction (by its index in the list) ends up."""
    labels: dict[str, int] = {}
    positions: dict[int, int] = {}
    position = 0
    for index, item in enumerate(program):
        if isinstance(item, str):
            labels[item] = position
        else:
            positions[index] = position
            position += 3 if index in wide else 1
    return labels, positions


def _reach(item: _Item, position: int, labels: dict[str, int]) -> int:
    if isinstance(item, str):
        return 0
    targets = [labels[label] for label in (item.if_true, item.if_false) if label is not None]
    return max((target - position - 1 for target in targets), default=0)


def _encode(instruction: _Instruction, position: int, labels: dict[str, int], *, wide: bool) -> bytes:
    """One ``struct sock_filter``: u16 code, u8 jt, u8 jf, u32 k. A wide jump is three of them."""

    def distance(label: str | None, origin: int, fall_through: int) -> int:
        return fall_through if label is None else labels[label] - origin - 1

    if not wide:
        jump_true = distance(instruction.if_true, position, 0)
        jump_false = distance(instruction.if_false, position, 0)
        return pack("<HBBI", instruction.code, jump_true, jump_false, instruction.k)
    jump_true = distance(instruction.if_true, position + 1, 1)
    jump_false = distance(instruction.if_false, position + 2, 0)
    return (
        pack("<HBBI", instruction.code, 0, 1, instruction.k)
        + pack("<HBBI", _JUMP, 0, 0, jump_true)
        + pack("<HBBI", _JUMP, 0, 0, jump_false)
    )
