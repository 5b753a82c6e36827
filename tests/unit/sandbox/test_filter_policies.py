"""The two policies as data: small, explained, and without the calls that would make them pointless."""

import re
from pathlib import Path

import pytest

from appliance.sandbox import seccomp
from appliance.sandbox.bpf import PolicyError
from appliance.sandbox.syscalls import X86_64

STAGES = ("stage1", "stage2")
NEVER = re.compile(
    r"open|creat|exec|socket|fork|connect|bind|listen|accept|ptrace|kill|unshare|setns|mount|memfd|io_uring|bpf"
)


@pytest.mark.parametrize(("stage", "most"), [("stage1", 40), ("stage2", 30)])
def test_filter_allows_no_more_calls_than_promised(stage: seccomp.Stage, most: int) -> None:
    assert len(seccomp.load_policy(stage).allowed) <= most


@pytest.mark.parametrize("stage", STAGES)
def test_filter_names_no_call_that_opens_starts_or_connects(stage: seccomp.Stage) -> None:
    allowed = set(seccomp.load_policy(stage).allowed) - {"tgkill", "epoll_wait"}  # tgkill: own process only, see below
    assert [name for name in allowed if NEVER.search(name)] == []


def test_validators_filter_is_tiny_and_bound_to_two_descriptors() -> None:
    policy = seccomp.load_policy("validate")
    assert len(policy.allowed) <= 11
    assert [name for name in policy.allowed if NEVER.search(name)] == []
    assert not {"read", "clone", "seccomp", "fcntl", "lseek", "sendto", "mprotect"} & set(policy.allowed)
    for rule in policy.rules:
        if rule.syscall in {"pread64", "fstat", "newfstatat", "write"}:
            assert (rule.when[0].argument, rule.when[0].mask) == (0, "0xffffffffffffffff")
            assert rule.when[0].equals == ("1" if rule.syscall == "write" else "0")


def test_stage_2_allows_nothing_that_stage_1_does_not() -> None:
    first, second = seccomp.load_policy("stage1"), seccomp.load_policy("stage2")
    assert set(second.rules) <= set(first.rules)


def test_stage_2_starts_no_thread_and_maps_no_descriptor() -> None:
    assert not {"clone", "clone3", "seccomp", "fcntl", "newfstatat", "lseek"} & set(
        seccomp.load_policy("stage2").allowed
    )


@pytest.mark.parametrize("stage", STAGES)
def test_signals_go_only_to_the_own_process(stage: seccomp.Stage) -> None:
    (rule,) = [rule for rule in seccomp.load_policy(stage).rules if rule.syscall == "tgkill"]
    assert [(c.argument, c.equals, c.mask) for c in rule.when] == [(0, "pid", "0xffffffffffffffff")]


@pytest.mark.parametrize("stage", [*STAGES, "validate"])
def test_no_rule_is_without_a_reason(stage: seccomp.Stage) -> None:
    for rule in seccomp.load_policy(stage).rules:
        assert rule.reason.endswith("."), rule.syscall
        assert len(rule.reason) > 20, rule.syscall


def test_digest_names_the_release_and_not_the_process() -> None:
    one, other = seccomp.prepare(1), seccomp.prepare(4711)
    assert one.digest == other.digest
    assert one.stage2 != other.stage2


def test_damaged_policy_file_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "_FOLDER", tmp_path)
    with pytest.raises(PolicyError, match="stage1"):
        seccomp.load_policy("stage1")
    (tmp_path / "stage1.json").write_text('{"architecture": "x86_64", "default": "allow", "about": "x", "rules": []}')
    with pytest.raises(PolicyError, match="stage1"):
        seccomp.load_policy("stage1")


def test_other_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(PolicyError, match="no filter for aarch64"):
        seccomp.prepare(1)


def test_empty_program_is_never_installed() -> None:
    with pytest.raises(OSError, match="protects nothing"):
        seccomp.install(b"")


def test_numbers_are_those_of_this_machines_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers here")
    numbers = {name: int(n) for name, n in re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())}
    assert {name: numbers.get(name, number) for name, number in X86_64.items()} == X86_64
