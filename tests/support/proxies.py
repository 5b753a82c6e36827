"""Debian's nginx and HAProxy on the sample configurations of docs/, with this machine's paths and ports."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parents[2] / "docs" / "reverse-proxy"
LIMIT_SECONDS = 20.0
NGINX_AROUND = """\
daemon off;
{user}
pid {folder}/nginx.pid;
error_log stderr warn;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/site.conf;
}}
"""


def need(program: str) -> str:
    """Its path. CI always has it."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def sample(name: str, **changes: str) -> str:
    """A sample with each of these texts replaced, which must be in it."""
    text = (SAMPLES / name).read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{name} does not say {old!r}"
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(folder: Path, site: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(exist_ok=True)
    (folder / "site.conf").write_text(site)
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(NGINX_AROUND.format(user=user, folder=folder))
    command = [need("nginx"), "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", "stderr"]
    with _running(command, folder, port) as process:
        yield process


@contextmanager
def haproxy(folder: Path, configuration: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    folder.mkdir(exist_ok=True)
    (folder / "haproxy.cfg").write_text(configuration)
    with _running([need("haproxy"), "-db", "-f", str(folder / "haproxy.cfg")], folder, port) as process:
        yield process


@contextmanager
def _running(command: list[str], folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Until it accepts connections; ended with whatever it holds open."""
    log = folder / "log"
    with (
        log.open("ab") as stderr,
        subprocess.Popen(command, stdout=stderr, stderr=stderr, cwd=folder, env={"HOME": str(folder)}) as process,
    ):
        try:
            deadline = time.monotonic() + LIMIT_SECONDS
            while not _accepts(port):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(LIMIT_SECONDS)


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
