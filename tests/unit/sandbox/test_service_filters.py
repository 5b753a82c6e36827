"""The services' filters, run on an interpreter: what each rule lets through, and what comes of everything else."""

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

INSIDE: tuple[seccomp.Role, ...] = ("gateway", "notary", "warden")
ROLES: tuple[seccomp.Role, ...] = (*INSIDE, "liaison")
RULES = [(role, index) for role in ROLES for index in range(len(seccomp.load_policy(role).rules))]
EPERM = RET_ERRNO | errno.EPERM


def program(role: seccomp.Role) -> bytes:
    return compile_policy(seccomp.load_policy(role), {"pid": PID})


def verdict(rule: Rule) -> int:
    if rule.kill:
        return RET_KILL_PROCESS
    return RET_ALLOW if rule.errno is None else RET_ERRNO | getattr(errno, rule.errno)


def otherwise(policy: Policy, call: str) -> int:
    """What comes of a call that rules name and none of their conditions fits."""
    last = [rule for rule in policy.rules if rule.syscall == call][-1]
    return RET_KILL_PROCESS if last.when else verdict(last)


@pytest.mark.parametrize(("role", "index"), RULES)
def test_rule_says_what_comes_of_its_call(role: seccomp.Role, index: int) -> None:
    rule = seccomp.load_policy(role).rules[index]
    arguments = arguments_that_fit(rule) if rule.when or verdict(rule) == RET_ALLOW else [2**64 - 1] * 6
    assert run(program(role), seccomp_data(X86_64[rule.syscall], tuple(arguments))) == verdict(rule)


@pytest.mark.parametrize(("role", "index"), RULES)
def test_rule_does_not_let_a_changed_argument_through(role: seccomp.Role, index: int) -> None:
    policy = seccomp.load_policy(role)
    rule = policy.rules[index]
    code, wanted = program(role), otherwise(policy, rule.syscall)
    assert not rule.when or wanted != RET_ALLOW
    for arguments in one_bit_away(rule):
        if not fits_another_with_conditions(rule, policy, arguments):
            assert run(code, seccomp_data(X86_64[rule.syscall], tuple(arguments))) == wanted, arguments


def fits_another_with_conditions(rule: Rule, policy: Policy, arguments: list[int]) -> bool:
    conditional = Policy(
        architecture=policy.architecture,
        default=policy.default,
        about=policy.about,
        rules=tuple(other for other in policy.rules if other.when),
    )
    return fits_another(rule, conditional, arguments)


@pytest.mark.parametrize("role", ROLES)
def test_no_other_number_is_let_through(role: seccomp.Role) -> None:
    code = program(role)
    named = {X86_64[rule.syscall] for rule in seccomp.load_policy(role).rules}
    for other in set(range(1024)) - named | {2**30 - 1}:
        assert run(code, seccomp_data(other)) == EPERM


@pytest.mark.parametrize("role", ROLES)
def test_other_entries_to_the_kernel_end_the_process(role: seccomp.Role) -> None:
    code = program(role)
    for rule in seccomp.load_policy(role).rules:
        arguments = tuple(arguments_that_fit(rule))
        call = X86_64[rule.syscall]
        assert run(code, seccomp_data(call, arguments, arch=ARCH_I386)) == RET_KILL_PROCESS
        assert run(code, seccomp_data(call | 0x40000000, arguments)) == RET_KILL_PROCESS


@pytest.mark.parametrize("call", ["mmap", "mprotect"])
@pytest.mark.parametrize("role", ROLES)
def test_memory_is_never_executable(role: seccomp.Role, call: str) -> None:
    code = program(role)
    for protection in range(4, 256):
        if protection & 4:
            for flags in (0x22, 0x1, 0x2, 0x4022, 0x32):
                data = seccomp_data(X86_64[call], (0, 0, protection, flags))
                assert run(code, data) == RET_ERRNO | errno.EACCES


NEVER = (
    "execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "tkill", "bpf",
    "io_uring_setup", "io_uring_enter", "mount", "umount2", "pivot_root", "unshare", "setns", "keyctl", "add_key",
    "userfaultfd", "perf_event_open", "init_module", "pidfd_getfd", "open_by_handle_at", "setuid", "capset",
)  # fmt: skip


@pytest.mark.parametrize("call", NEVER)
@pytest.mark.parametrize("role", ROLES)
def test_what_only_an_intruder_tries_ends_the_process(role: seccomp.Role, call: str) -> None:
    assert run(program(role), seccomp_data(X86_64[call])) == RET_KILL_PROCESS


@pytest.mark.parametrize("role", ROLES)
def test_only_threads_are_started(role: seccomp.Role) -> None:
    code = program(role)
    thread = 0x3D0F00
    assert run(code, seccomp_data(X86_64["clone"], (thread,))) == RET_ALLOW
    for flags in (17, 0x4111, thread | 0x10000000, thread | 0x20000000, thread & ~0x10000, thread | 2**32):
        assert run(code, seccomp_data(X86_64["clone"], (flags,))) == RET_KILL_PROCESS
    assert run(code, seccomp_data(X86_64["clone3"])) == RET_ERRNO | errno.ENOSYS


@pytest.mark.parametrize("call", ["kill", "memfd_create", "bind", "listen", "socketpair", "connect", "sendmsg"])
def test_what_one_service_needs_is_not_there_for_the_others(call: str) -> None:
    allowed = {role: call in seccomp.load_policy(role).allowed for role in ROLES}
    needed = {
        "kill": set(), "bind": set(), "memfd_create": {"warden"}, "socketpair": {"warden"}, "sendmsg": {"warden"},
        "listen": {"gateway"}, "connect": {"gateway", "warden", "liaison"},
    }  # fmt: skip
    assert {role for role in ROLES if allowed[role]} == needed[call]


def test_own_rules_stand_instead_of_the_shared_ones_for_a_call() -> None:
    own = {rule.syscall for rule in seccomp.load_policy("service").rules} & {"fcntl", "mmap", "ioctl", "kill"}
    assert own == {"fcntl", "mmap", "ioctl", "kill"}
    for call in own:
        rules = [rule for rule in seccomp.load_policy("warden").rules if rule.syscall == call]
        assert rules
        assert len({rule.reason for rule in rules}) == len(rules)


def test_memory_that_the_warden_makes_cannot_be_executed() -> None:
    code = program("warden")
    for flags in (1, 2, 3, 8, 11):
        assert run(code, seccomp_data(X86_64["memfd_create"], (0, flags))) == RET_ALLOW
    for flags in (0x10, 0x13, 4, 2**32):
        assert run(code, seccomp_data(X86_64["memfd_create"], (0, flags))) == RET_KILL_PROCESS


def test_gateway_makes_unix_sockets_only_and_the_notary_none() -> None:
    for kind in (5, 5 | 0x80000, 5 | 0x80800):
        assert run(program("gateway"), seccomp_data(X86_64["socket"], (1, kind, 0))) == RET_ALLOW
        assert run(program("notary"), seccomp_data(X86_64["socket"], (1, kind, 0))) == RET_KILL_PROCESS
    for family in (0, 2, 3, 10, 16, 17, 38, 40, 1 | 2**32):
        for kind in (1, 2, 3, 5):
            data = seccomp_data(X86_64["socket"], (family, kind, 0))
            assert {run(program(role), data) for role in INSIDE} == {RET_KILL_PROCESS}


def test_liaison_makes_sockets_of_the_internet_and_no_others() -> None:
    code = program("liaison")
    for family in (2, 10):
        for kind in (1, 2, 1 | 0x80800, 2 | 0x80000):
            assert run(code, seccomp_data(X86_64["socket"], (family, kind, 0))) == RET_ALLOW
        for kind in (3, 5, 1 | 2**32):
            data = seccomp_data(X86_64["socket"], (family, kind, 0))
            assert run(code, data) == RET_ERRNO | errno.EAFNOSUPPORT
    for family in (0, 1, 3, 16, 17, 38, 40, 2 | 2**32):
        data = seccomp_data(X86_64["socket"], (family, 1, 0))
        assert run(code, data) == RET_ERRNO | errno.EAFNOSUPPORT
    for family in (2, 10):  # what Landlock knows the ports of, and plain datagrams
        assert run(code, seccomp_data(X86_64["socket"], (family, 1, 6))) == RET_ALLOW
        for kind, protocol in ((1, 262), (1, 132), (1, 33), (1, 256), (2, 1), (2, 58), (2, 136), (2, 33)):
            data = seccomp_data(X86_64["socket"], (family, kind, protocol))
            assert run(code, data) == RET_ERRNO | errno.EAFNOSUPPORT


def test_liaison_sends_many_at_once_only_as_the_resolver_does() -> None:
    for flags, answer in ((0x4000, RET_ALLOW), (0, RET_ERRNO | errno.EPERM), (0x20004000, RET_ERRNO | errno.EPERM)):
        assert run(program("liaison"), seccomp_data(X86_64["sendmmsg"], (3, 0, 2, flags))) == answer


@pytest.mark.parametrize("flags", [1, 2, 0x40, 0x200, 0x400, 0x410000 | 1, 0x200000, 0x241])
def test_gateway_opens_nothing_for_writing(flags: int) -> None:
    data = seccomp_data(X86_64["openat"], (0, 0, flags | 0x80000))
    assert run(program("gateway"), data) == RET_ERRNO | errno.EACCES


@pytest.mark.parametrize("role", [*ROLES, "service"])
def test_no_rule_is_without_a_reason(role: seccomp.Stage) -> None:
    for rule in seccomp.load_policy(role).rules:
        assert rule.reason.endswith("."), rule.syscall
        assert len(rule.reason) > 20, rule.syscall


# --- what the compiler makes of an error as the default -------------------------------------------------------------


def policy(*rules: Rule) -> Policy:
    return Policy(architecture="x86_64", default="errno EPERM", about="a test", rules=rules)


FITS = (Condition(argument=0, equals="1"),)
SOME_READS = Rule(syscall="read", reason="one descriptor", when=FITS)


def test_call_that_is_named_and_does_not_fit_is_not_taken_for_an_unknown_one() -> None:
    code = compile_policy(policy(SOME_READS), {})
    assert run(code, seccomp_data(X86_64["read"], (1,))) == RET_ALLOW
    assert run(code, seccomp_data(X86_64["read"], (2,))) == RET_KILL_PROCESS
    assert run(code, seccomp_data(X86_64["write"], (1,))) == EPERM


def test_last_rule_answers_what_fits_no_other() -> None:
    code = compile_policy(policy(SOME_READS, Rule(syscall="read", reason="all the others", errno="EIO")), {})
    assert run(code, seccomp_data(X86_64["read"], (1,))) == RET_ALLOW
    assert run(code, seccomp_data(X86_64["read"], (2,))) == RET_ERRNO | errno.EIO


@pytest.mark.parametrize(
    ("rules", "complaint"),
    [
        ((Rule(syscall="read", reason="kills, or errs", kill=True, errno="EIO"),), "no conditions and no error"),
        ((Rule(syscall="read", reason="kills sometimes", kill=True, when=FITS),), "no conditions and no error"),
        ((Rule(syscall="read", reason="the last comes first", errno="EIO"), SOME_READS), "alternatives"),
        ((SOME_READS, Rule(syscall="read", reason="conditions for nothing")), "alternatives"),
        ((Rule(syscall="read", reason="said twice over", kill=True),) * 2, "alternatives"),
    ],
)  # fmt: skip
def test_policy_that_says_two_things_is_not_compiled(rules: tuple[Rule, ...], complaint: str) -> None:
    with pytest.raises(PolicyError, match=complaint):
        compile_policy(policy(*rules), {})
