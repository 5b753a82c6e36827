"""A live runner as the host sees it, and how it ends."""

import asyncio
import os
import select
import socket
import sys
from pathlib import Path

import pytest

from appliance.ipc.frames import MAX_FRAME_BYTES, encode
from appliance.ipc.messages import Fenced, Load, LoadFailed, Ready, Reset, ResetDone
from appliance.runner import main as runner_main
from appliance.sandbox import layers, seccomp
from appliance.warden.commands import RUNNER_COMMAND, RUNNER_ENVIRONMENT
from tests.support.live_runner import (
    DEMO_MODEL,
    LIMIT_SECONDS,
    LOAD,
    hand_over,
    inner_pid,
    launched,
    load,
    receive,
    send,
    status,
    threads,
    within_limit,
)

SIGKILL = 9
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a non-dumpable process")


# --- what it is ------------------------------------------------------------------------------------------------------


def test_runner_does_not_serve_without_every_layer() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            fenced = await receive(runner)
            assert isinstance(fenced, Fenced)
            assert {*fenced.layers, layers.SECCOMP_STAGE_1, layers.SECCOMP_STAGE_2} == set(layers.LAYERS)
            assert fenced.degraded == ()
            assert fenced.filter_digest == seccomp.prepare(1).digest
            assert isinstance(await hand_over(runner), Ready)
            for thread in threads(inner_pid(runner)):
                seen = status(inner_pid(runner), thread)
                assert (seen["Seccomp"], seen["Seccomp_filters"], seen["NoNewPrivs"]) == ("2", "2", "1")
                assert {seen[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
                assert seen["NSpid"].split()[-1] == "1" or thread != inner_pid(runner)

    within_limit(scenario)


@as_root
def test_runner_shares_no_namespace_with_the_host() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            await load(runner)
            for kind in ("user", "pid", "net", "mnt", "ipc", "uts", "cgroup"):
                assert os.readlink(f"/proc/{inner_pid(runner)}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind

    within_limit(scenario)


@as_root
def test_runner_sees_no_file_and_holds_no_foreign_descriptor() -> None:
    leak = os.open("/etc/passwd", os.O_RDONLY)
    os.set_inheritable(leak, True)

    async def scenario() -> None:
        async with launched() as runner:
            await load(runner)
            inside = Path(f"/proc/{inner_pid(runner)}")
            held = {int(fd.name): os.readlink(fd).split(":")[0] for fd in (inside / "fd").iterdir()}
            assert held == {
                0: "/dev/null",
                1: "pipe",
                2: "pipe",
                3: "socket",
                4: "anon_inode",  # the channel's epoll
                5: "anon_inode",  # the engine's wake-up
            }
            assert os.listdir(inside / "root") == []
            guardian = Path(f"/proc/{runner.pid}/fd")
            assert [os.readlink(fd) for fd in guardian.iterdir()] == ["anon_inode:[pidfd]"]

    try:
        within_limit(scenario)
    finally:
        os.close(leak)


@as_root
def test_environment_and_arguments_carry_nothing_of_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PADDOCK_TEST_SECRET", "hunter2")

    async def scenario() -> None:
        async with launched() as runner:
            await load(runner)
            inside = Path(f"/proc/{inner_pid(runner)}")
            entries = (inside / "environ").read_text().rstrip("\0").split("\0")
            assert dict(entry.split("=", 1) for entry in entries) == runner_main.ENVIRONMENT
            arguments = (inside / "cmdline").read_text().removesuffix("\0").split("\0")
            *fixed, channel, degraded, nothing = arguments
            assert fixed == [*RUNNER_COMMAND, "--channel-fd"]
            assert channel.isdecimal()
            assert (degraded, nothing) == ("--degraded", "")

    within_limit(scenario)


@as_root
def test_limits_leave_no_room() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            await load(runner)
            lines = Path(f"/proc/{inner_pid(runner)}/limits").read_text().splitlines()[1:]
            limits = {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}
            for name in ("core file size", "file size", "locked memory", "msgqueue size"):
                assert limits[f"Max {name}"] == ("0", "0"), name
            assert limits["Max open files"] == ("32", "32")
            assert limits["Max processes"] == ("288", "288")

    within_limit(scenario)


def test_launcher_and_runner_agree_on_the_environment() -> None:
    assert RUNNER_ENVIRONMENT == runner_main.ENVIRONMENT


@as_root
def test_foreign_environment_is_not_kept_in_memory() -> None:
    """An init system adds variables: the runner starts itself again without them."""
    command = ("/usr/bin/env", "INVOCATION_ID=hunter2", *RUNNER_COMMAND)

    async def scenario() -> None:
        async with launched(command=command) as runner:
            assert isinstance(await load(runner), Ready)
            assert b"hunter2" not in Path(f"/proc/{inner_pid(runner)}/environ").read_bytes()

    within_limit(scenario)


def test_channel_on_standard_input_is_not_taken_for_a_terminal() -> None:
    """As systemd starts an instance: the connection is standard input, and the environment is not ours."""

    async def scenario() -> int:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        process = await asyncio.create_subprocess_exec(
            *RUNNER_COMMAND, "--channel-fd", "0", stdin=theirs, stderr=asyncio.subprocess.DEVNULL, env={"USER": "x"}
        )
        theirs.close()
        with ours, DEMO_MODEL.open("rb") as model:
            socket.send_fds(ours, [encode(LOAD)], [model.fileno()])
            assert b"Fenced" in await asyncio.get_running_loop().sock_recv(ours, MAX_FRAME_BYTES)
            assert b"Ready" in await asyncio.get_running_loop().sock_recv(ours, MAX_FRAME_BYTES)
        return await process.wait()

    assert within_limit(scenario) == runner_main.EXIT_CHANNEL_CLOSED


def test_many_threads_do_not_need_more_than_the_filter_allows() -> None:
    message = Load(runner_id="test", context_tokens=256, slots=8, threads=8, batch_tokens=64)

    async def scenario() -> None:
        async with launched() as runner:
            assert isinstance(await load(runner, message=message), Ready)
            send(runner, Reset(nonce="n"))
            assert await receive(runner) == ResetDone(nonce="n")

    within_limit(scenario)


# --- how it ends -----------------------------------------------------------------------------------------------------


def test_closed_channel_ends_the_runner_cleanly() -> None:
    async def scenario() -> int:
        async with launched() as runner:
            await load(runner)
            runner.channel.close()
            return await runner.wait()

    assert within_limit(scenario) == runner_main.EXIT_CHANNEL_CLOSED


def test_channel_closed_before_the_load_ends_the_runner_cleanly() -> None:
    async def scenario() -> int:
        async with launched() as runner:
            runner.channel.close()
            return await runner.wait()

    assert within_limit(scenario) == runner_main.EXIT_CHANNEL_CLOSED


def test_killed_runner_is_gone_when_its_launcher_says_so() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            await load(runner)
            inner = os.pidfd_open(inner_pid(runner))
            runner.kill()
            assert await runner.wait() == -SIGKILL
            assert select.select([inner], [], [], 0)[0], "the runner outlived its guardian"
            os.close(inner)
            runner.kill()  # no effect on one that has ended

    within_limit(scenario)


def test_guardian_ends_as_its_runner_ended() -> None:
    async def scenario() -> int:
        async with launched() as runner:
            await load(runner)
            os.kill(inner_pid(runner), SIGKILL)
            return await runner.wait()

    assert within_limit(scenario) == -SIGKILL


def test_runner_does_not_outlive_a_killed_guardian() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            await load(runner)
            inner = os.pidfd_open(inner_pid(runner))
            os.kill(runner.pid, SIGKILL)
            await runner.wait()
            assert select.select([inner], [], [], LIMIT_SECONDS)[0]
            os.close(inner)

    within_limit(scenario)


WARDEN = """
import asyncio, socket, sys
from tests.support.live_runner import inner_pid, launched, load

async def main():
    async with launched() as runner:
        await load(runner)
        ours = socket.socket(fileno=int(sys.argv[1]))
        socket.send_fds(ours, [str(inner_pid(runner)).encode()], [runner.channel.fileno()])
        await asyncio.sleep(60)

asyncio.run(main())
"""


def test_runner_does_not_outlive_the_warden() -> None:
    """Even while somebody else, as the gateway does, holds the channel open."""

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        warden = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            WARDEN,
            str(theirs.fileno()),
            pass_fds=[theirs.fileno()],
            cwd=Path(__file__).parents[2],
        )
        theirs.close()
        try:
            while not select.select([ours], [], [], 0)[0]:
                await asyncio.sleep(0.01)
            pid, (channel,), _, _ = socket.recv_fds(ours, 32, 1)
            inner = os.pidfd_open(int(pid))
        finally:
            warden.kill()
            await warden.wait()
        assert select.select([inner], [], [], LIMIT_SECONDS)[0]
        for descriptor in (inner, channel):
            os.close(descriptor)
        ours.close()

    within_limit(scenario)


# --- what it refuses -------------------------------------------------------------------------------------------------


def test_damaged_model_is_refused_with_a_reason(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(DEMO_MODEL.read_bytes()[:1000])

    async def scenario() -> int:
        async with launched() as runner:
            answer = await load(runner, damaged)
            assert isinstance(answer, LoadFailed)
            assert answer.reason == "model-invalid"
            return await runner.wait()

    assert within_limit(scenario) == runner_main.EXIT_LOAD_FAILED


@pytest.mark.parametrize(
    "case", ["no descriptor", "two descriptors", "a pipe", "a folder", "not a load", "not a message"]
)
def test_anything_but_one_load_with_one_file_ends_the_runner(case: str) -> None:
    async def scenario() -> int:
        async with launched() as runner:
            with DEMO_MODEL.open("rb") as file:
                model = file.fileno()
                reader, writer = os.pipe()
                folder = os.open("/", os.O_RDONLY)
                match case:
                    case "no descriptor":
                        send(runner, LOAD)
                    case "two descriptors":
                        send(runner, LOAD, (model, model))
                    case "a pipe":
                        send(runner, LOAD, (reader,))
                    case "a folder":
                        send(runner, LOAD, (folder,))
                    case "not a load":
                        send(runner, Reset(nonce="n"), (model,))
                    case "not a message":
                        runner.channel.send(b"\xc1 hello")
                for descriptor in (reader, writer, folder):
                    os.close(descriptor)
            return await runner.wait()

    assert within_limit(scenario) == runner_main.EXIT_CHANNEL_INVALID


@pytest.mark.parametrize(
    "arguments",
    [[], ["--channel-fd"], ["--channel-fd", "x"], ["--channel-fd", "3", "--no-seccomp"]]
    + [["--channel-fd", "3", "--degraded", name] for name in sorted(layers.INDISPENSABLE)],
)
def test_wrong_or_disarming_arguments_are_refused(arguments: list[str]) -> None:
    async def scenario() -> int | None:
        process = await asyncio.create_subprocess_exec(*RUNNER_COMMAND, *arguments, stderr=asyncio.subprocess.DEVNULL)
        return await process.wait()

    assert within_limit(scenario) == runner_main.EXIT_USAGE
