"""A host that lacks a layer: refused, unless the layer is named; and then the rest still holds.

The lack is simulated inside the runner's own process: the call that a poorer kernel or a strict profile would refuse
is replaced by one that fails as there.
"""

import sys

import pytest

from appliance.ipc.messages import Fenced, LoadFailed, Probe, Ready
from appliance.runner import main as runner_main
from appliance.sandbox import layers
from tests.support.live_runner import hand_over, launched, load, receive, send, within_limit

POORER = """
import errno, os, sys
from appliance.runner import main
from appliance.sandbox import layers, libc
lacking = {lacking!r}
real = libc.syscall
def syscall(number, *arguments):
    if number == 157 and arguments[0] == 65 and "mdwe" in lacking:
        raise OSError(errno.EINVAL, "Invalid argument")
    if number == 444 and "landlock" in lacking:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")
    if number == 272 and "namespaces" in lacking:
        raise OSError(errno.EPERM, "Operation not permitted")
    if number == 317 and "seccomp" in lacking:
        raise OSError(errno.EINVAL, "Invalid argument")
    return real(number, *arguments)
libc.syscall = syscall
def chroot(path):
    if "chroot" in lacking:
        raise PermissionError(errno.EPERM, "Operation not permitted")
    return real_chroot(path)
real_chroot, os.chroot = os.chroot, chroot
main.main(sys.argv[1:])
"""
NAMESPACES = frozenset(name for name in layers.LAYERS if name.endswith("-namespace"))


def poorer(*lacking: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-B", "-c", POORER.format(lacking=lacking))


@pytest.mark.parametrize("lacking", ["mdwe", "landlock"])
def test_missing_layer_is_refused_before_a_model_is_taken(lacking: str) -> None:
    async def scenario() -> int:
        async with launched(command=poorer(lacking)) as runner:
            answer = await receive(runner)
            assert isinstance(answer, LoadFailed)
            assert answer.reason == "layer-missing"
            assert answer.detail.startswith(f"{lacking}: ")
            assert answer.detail.endswith("name it in sandbox.allow_degraded")
            return await runner.wait()

    assert within_limit(scenario) == runner_main.EXIT_LAYER_MISSING


def test_every_missing_layer_is_named_at_once() -> None:
    async def scenario() -> str:
        async with launched(command=poorer("namespaces", "mdwe"), allow_degraded=frozenset({"mdwe"})) as runner:
            answer = await receive(runner)
            assert isinstance(answer, LoadFailed)
            return answer.detail

    detail = within_limit(scenario)
    for name in (*NAMESPACES, layers.EMPTY_ROOT):
        assert f"{name}: " in detail
    assert "mdwe" not in detail


def test_named_layer_may_be_missing_and_is_reported() -> None:
    async def scenario() -> None:
        async with launched(command=poorer("mdwe"), allow_degraded=frozenset({"mdwe", "landlock"})) as runner:
            fenced = await receive(runner)
            assert isinstance(fenced, Fenced)
            assert fenced.degraded == ("mdwe",)
            assert set(fenced.layers) == set(layers.LAYERS) - {"mdwe", layers.SECCOMP_STAGE_1, layers.SECCOMP_STAGE_2}
            assert isinstance(await hand_over(runner), Ready)

    within_limit(scenario)


def test_container_that_forbids_chroot_still_has_an_empty_root() -> None:
    async def scenario() -> None:
        async with launched(command=poorer("chroot")) as runner:
            fenced = await receive(runner)
            assert isinstance(fenced, Fenced)
            assert layers.EMPTY_ROOT in fenced.layers
            assert fenced.degraded == ()
            assert isinstance(await hand_over(runner), Ready)

    within_limit(scenario)


def test_strict_container_without_namespaces_still_lets_nothing_out() -> None:
    """No pid namespace means no guardian either: the runner itself is the warden's child."""
    allowed = NAMESPACES | {layers.EMPTY_ROOT}

    async def scenario() -> int:
        async with launched(command=poorer("namespaces"), allow_degraded=allowed) as runner:
            fenced = await receive(runner)
            assert isinstance(fenced, Fenced)
            assert set(fenced.degraded) == allowed
            assert isinstance(await hand_over(runner), Ready)
            await runner.inspect(frozenset(fenced.layers))
            send(runner, Probe(name="openat"))
            assert await receive(runner) is None
            return await runner.wait()

    assert within_limit(scenario) == -31


def test_filter_that_cannot_be_installed_ends_the_runner() -> None:
    async def scenario() -> int:
        async with launched(command=poorer("seccomp")) as runner:
            assert await load(runner) is None
            return await runner.wait()

    assert within_limit(scenario) == runner_main.EXIT_INTERNAL
