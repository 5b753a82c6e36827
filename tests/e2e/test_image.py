"""The image, as it leaves ``image/build``: what is in it, that it is the same for everybody, and that it runs.

Needs Debian 12, buildah, podman and the engine wheel in the cache; elsewhere these tests are skipped by name.
"""

import json
import os
import pwd
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import image_build
from tests.support.image_build import CACHE, PYTHON, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

USER = "paddock-image-test"


@dataclass(frozen=True)
class Image:
    figures: dict
    config: dict
    members: dict[str, tarfile.TarInfo]

    @property
    def archive(self) -> Path:
        return Path(self.figures["archive"])


@pytest.fixture(scope="module")
def wheel() -> Path:
    return image_build.engine_wheel(("buildah", "podman"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy of the working tree for all builds, so that an editor in between changes nothing."""
    return image_build.copy_sources(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def image(sources: Path, wheel: Path) -> Image:
    figures = image_build.build(image_build.command(sources, wheel))
    return Image(figures, *opened(Path(figures["archive"])))


def opened(archive_path: Path) -> tuple[dict, dict[str, tarfile.TarInfo]]:
    """The configuration and, by path, every entry of every layer of an OCI archive."""
    with tarfile.open(archive_path) as archive:

        def blob(digest: str):
            return archive.extractfile("blobs/" + digest.replace(":", "/"))

        manifest = json.load(blob(json.load(archive.extractfile("index.json"))["manifests"][0]["digest"]))
        members = {}
        for layer in manifest["layers"]:
            with tarfile.open(fileobj=blob(layer["digest"]), mode="r|*") as entries:
                members |= {"/" + entry.name.strip("/"): entry for entry in entries}
        return json.load(blob(manifest["config"]["digest"])), members


# --- contents ---------------------------------------------------------------------------------------------------------


def test_nothing_in_the_image_can_be_written_by_its_user(image: Image, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():  # figures that CI shows
        print(f"\n{json.dumps(image.figures)}")
    modes = {path: stat.S_IMODE(entry.mode) for path, entry in image.members.items() if not entry.issym()}
    writable = {path: mode for path, mode in modes.items() if mode & 0o022}
    assert writable == {"/tmp": 0o1777}  # where a tmpfs goes; the root itself is read-only
    owned = {path for path, entry in image.members.items() if (entry.uid, entry.gid) != (0, 0)}
    assert owned == {"/var/lib/paddock"}  # where the state volume goes


def test_nothing_in_the_image_raises_privilege(image: Image) -> None:
    assert [path for path, entry in image.members.items() if entry.mode & (stat.S_ISUID | stat.S_ISGID)] == []
    assert all(entry.isfile() or entry.isdir() or entry.issym() for entry in image.members.values())


def test_only_python_and_our_command_can_be_executed(image: Image) -> None:
    programs = {path for path, entry in image.members.items() if entry.isfile() and entry.mode & 0o111}
    assert {path for path in programs if ".so" not in path} == {"/usr/bin/python3.11", "/usr/lib/paddock/bin/paddock"}
    assert {Path(path).parent for path in image.members if "/bin/" in path or "/sbin/" in path} == {
        Path("/usr/bin"),
        Path("/usr/lib/paddock/bin"),
    }


def test_no_installer_and_no_code_that_runs_at_every_start(image: Image) -> None:
    names = {Path(path).name for path in image.members}
    assert names.isdisjoint({"sh", "bash", "dash", "busybox", "apt", "dpkg", "pip", "ensurepip", "sitecustomize.py"})
    assert [path for path in image.members if path.endswith(".pth")] == []


def test_every_module_has_bytecode_so_none_need_be_written(image: Image) -> None:
    sources = [Path(path) for path, entry in image.members.items() if path.endswith(".py") and entry.isfile()]
    compiled = {str(path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc") for path in sources}
    assert compiled - set(image.members) == set()


def test_the_image_does_not_run_as_root(image: Image) -> None:
    config = image.config["config"]
    assert config["User"] == "10001:10001"
    assert config["Entrypoint"][:2] == ["/usr/lib/paddock/bin/python3", "-I"]
    assert config["StopSignal"] == "SIGTERM"
    assert not any("home" in value.lower() for value in config["Env"])


def test_the_engine_is_there_once(image: Image) -> None:
    libraries = [path for path, entry in image.members.items() if "/libllama.so" in path and entry.isfile()]
    assert len(libraries) == 1
    assert [path for path in image.members if "llama_cpp/server" in path or "libllama-common" in path] == []


# --- the same for everybody -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], Path]]:
    """How to run a command as an ordinary user, and a folder of that user's."""
    if os.geteuid() != 0:
        yield [], tmp_path_factory.mktemp("user")
        return
    subprocess.run(["userdel", "--remove", USER], capture_output=True, timeout=60, check=False)
    subprocess.run(["useradd", "--create-home", USER], check=True, timeout=60)
    home = Path(pwd.getpwnam(USER).pw_dir)
    (home / "run").mkdir(mode=0o700)
    os.chown(home / "run", pwd.getpwnam(USER).pw_uid, -1)
    become = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups", "env", "-i"]
    become += [f"HOME={home}", f"XDG_RUNTIME_DIR={home}/run", "PATH=/usr/bin:/usr/sbin:/bin"]
    yield become, home
    # Files of subordinate uids belong to the user's namespace: only from there can they be removed without guessing.
    subprocess.run([*become, "podman", "unshare", "rm", "-rf", f"{home}/.local"], cwd="/", timeout=60, check=False)
    subprocess.run([*become, "podman", "system", "migrate"], cwd="/", timeout=60, check=False, capture_output=True)
    subprocess.run(["userdel", "--remove", "--force", USER], capture_output=True, timeout=60, check=True)


def test_another_user_at_another_time_does_not_get_another_image(
    image: Image, sources: Path, wheel: Path, user
) -> None:
    become, home = user
    repository, cache = home / "repository", home / "cache"
    shutil.copytree(sources, repository)
    for part in ("debs", "image-wheels"):
        shutil.copytree(CACHE / part, cache / part)
    shutil.copy(wheel, home)
    if become:
        subprocess.run(["chown", "-R", f"{USER}:", str(home)], check=True, timeout=60)
    command = [PYTHON, f"{repository}/image/build", "--fresh", "--cache", str(cache), "--wheel", str(home / wheel.name)]
    figures = image_build.build([*become, *command], cwd=home)
    assert figures["manifest_digest"] == image.figures["manifest_digest"]
    assert figures["image_id"] == image.figures["image_id"]


def test_the_demonstration_does_not_need_more_than_a_locked_rootless_container(image: Image, user) -> None:
    become, home = user
    archive, script = home / "image.tar", home / "run-demo"
    shutil.copy(image.archive, archive)
    shutil.copy(REPOSITORY / "image" / "run-demo", script)
    archive.chmod(0o644)
    script.chmod(0o755)
    done = subprocess.run(
        [*become, str(script), str(archive)], cwd=home, stdout=subprocess.PIPE, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    report = json.loads(done.stdout)
    assert report["ok"] is True
    layers = next(outcome for outcome in report["outcomes"] if outcome["name"] == "runner-sandbox")
    assert layers["detail"]["degraded"] == []
    assert {"user-namespace", "empty-root", "landlock", "seccomp-stage-2"} <= set(layers["detail"]["layers"])
