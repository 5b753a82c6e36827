"""The compiled filters, run on an interpreter: what each rule lets through, and what a changed bit does to it."""

import errno

import pytest

from appliance.sandbox import seccomp
from appliance.sandbox.bpf import (
    RET_ALLOW,
    RET_ERRNO,
    RET_KILL_PROCESS,
    Condition,
    Policy,
    PolicyError,
    Rule,
    compile_policy,
)
from appliance.sandbox.syscalls import X86_64
from tests.support.bpf_machine import ARCH_I386, run, seccomp_data
from tests.support.filter_rules import PID, arguments_that_fit, fits_another, one_bit_away

STAGES = ("stage1", "stage2")
RULES = [(stage, index) for stage in STAGES for index in range(len(seccomp.load_policy(stage).rules))]


def program(stage: seccomp.Stage) -> bytes:
    return compile_policy(seccomp.load_policy(stage), {"pid": PID})


@pytest.mark.parametrize(("stage", "index"), RULES)
def test_rule_lets_its_call_through(stage: seccomp.Stage, index: int) -> None:
    rule = seccomp.load_policy(stage).rules[index]
    expected = RET_ALLOW if rule.errno is None else RET_ERRNO | getattr(errno, rule.errno)
    assert run(program(stage), seccomp_data(X86_64[rule.syscall], tuple(arguments_that_fit(rule)))) == expected


@pytest.mark.parametrize(("stage", "index"), RULES)
def test_rule_does_not_let_a_changed_argument_through(stage: seccomp.Stage, index: int) -> None:
    policy = seccomp.load_policy(stage)
    rule = policy.rules[index]
    code = program(stage)
    for arguments in one_bit_away(rule):
        if not fits_another(rule, policy, arguments):
            assert run(code, seccomp_data(X86_64[rule.syscall], tuple(arguments))) == RET_KILL_PROCESS, arguments


@pytest.mark.parametrize("stage", STAGES)
def test_no_other_number_is_let_through(stage: seccomp.Stage) -> None:
    code = program(stage)
    named = {X86_64[rule.syscall] for rule in seccomp.load_policy(stage).rules}
    for other in set(range(1024)) - named | {2**31, 2**32 - 1}:
        assert run(code, seccomp_data(other)) == RET_KILL_PROCESS


@pytest.mark.parametrize("stage", STAGES)
def test_other_entries_to_the_kernel_are_not_let_through(stage: seccomp.Stage) -> None:
    code = program(stage)
    for rule in seccomp.load_policy(stage).rules:
        arguments = tuple(arguments_that_fit(rule))
        call = X86_64[rule.syscall]
        assert run(code, seccomp_data(call, arguments, arch=ARCH_I386)) == RET_KILL_PROCESS
        assert run(code, seccomp_data(call | 0x40000000, arguments)) == RET_KILL_PROCESS


@pytest.mark.parametrize("call", ["mmap", "mprotect"])
@pytest.mark.parametrize("stage", STAGES)
def test_executable_memory_is_not_let_through(stage: seccomp.Stage, call: str) -> None:
    code = program(stage)
    for protection in range(256):
        if protection & 4:
            for flags in (0x22, 0x1, 0x4022, 0x32):
                assert run(code, seccomp_data(X86_64[call], (0, 0, protection, flags))) == RET_KILL_PROCESS


def test_long_programs_jump_as_far_as_they_must() -> None:
    """Every block is farther from the end than one byte of distance can say."""
    conditions = tuple(Condition(argument=a, equals="7", mask="0xff") for a in range(6))
    alternatives = tuple(
        Rule(
            syscall="ioctl",
            reason="one of many alternatives",
            when=(*conditions[:5], Condition(argument=5, equals=str(n))),
        )
        for n in range(100)
    )
    policy = Policy(
        architecture="x86_64",
        default="kill-process",
        about="long",
        rules=(*alternatives, Rule(syscall="getpid", reason="behind all of them")),
    )
    code = compile_policy(policy, {})
    assert len(code) // 8 > 1000
    assert run(code, seccomp_data(X86_64["getpid"])) == RET_ALLOW
    assert run(code, seccomp_data(X86_64["gettid"])) == RET_KILL_PROCESS
    assert run(code, seccomp_data(X86_64["getpid"], arch=ARCH_I386)) == RET_KILL_PROCESS
    for last in (0, 50, 99):
        assert run(code, seccomp_data(X86_64["ioctl"], (7, 7, 7, 7, 7, last))) == RET_ALLOW
        assert run(code, seccomp_data(X86_64["ioctl"], (7, 7, 8, 7, 7, last))) == RET_KILL_PROCESS
    assert run(code, seccomp_data(X86_64["ioctl"], (7, 7, 7, 7, 7, 100))) == RET_KILL_PROCESS


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ((Rule(syscall="no_such_call", reason="it does not exist"),), "unknown system call"),
        ((Rule(syscall="read", reason="an error nobody has", errno="ENOSUCH"),), "unknown error"),
        (
            (Rule(syscall="read", reason="said twice over"), Rule(syscall="read", reason="said twice over")),
            "alternatives",
        ),
        (
            (Rule(syscall="read", reason="never true at all", when=(Condition(argument=0, mask="1", equals="2"),)),),
            "never equal",
        ),
        (
            (Rule(syscall="read", reason="number too large", when=(Condition(argument=0, equals=hex(2**64)),)),),
            "64 bits",
        ),
        ((Rule(syscall="read", reason="unknown parameter", when=(Condition(argument=0, equals="uid"),)),), "parameter"),
    ],
)
def test_wrong_policy_is_not_compiled(rules: tuple[Rule, ...], complaint: str) -> None:
    policy = Policy(architecture="x86_64", default="kill-process", about="wrong", rules=rules)
    with pytest.raises(PolicyError, match=complaint):
        compile_policy(policy, {"pid": PID})


def test_program_longer_than_the_kernel_takes_is_not_compiled() -> None:
    rules = tuple(
        Rule(syscall="ioctl", reason="one of too many", when=(Condition(argument=1, equals=str(n)),))
        for n in range(1000)
    )
    with pytest.raises(PolicyError, match="more than the kernel takes"):
        compile_policy(Policy(architecture="x86_64", default="kill-process", about="long", rules=rules), {})
