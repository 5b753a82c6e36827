"""``export``, ``import DIR`` and the progress bar: nothing half done, nothing ambiguous, nothing drawn for nobody."""

import io
import os
from pathlib import Path

import msgspec
import pytest

from appliance.cli import main as command
from appliance.cli import models, transfer
from appliance.cli.progress import Bar, line, readable
from appliance.core.manifest import TrustPolicy
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.models.keys import TrustedKeys, public_pem
from appliance.models.trust import Trust
from tests.support.adapter_files import small_adapter
from tests.support.gguf_files import small_model_bytes
from tests.support.signed_models import KEY, OTHER_KEY, signed
from tests.support.transfer import also_trusts_board, names_in, put_model, settings_in

MODEL = small_model_bytes("demo")
ADAPTER = small_adapter().build()


def exported(tmp_path: Path, name: str = "demo") -> Path:
    config = settings_in(tmp_path / "from")
    put_model(config, MODEL, name)
    transfer.export(config, name, tmp_path / "out")
    return tmp_path / "out"


def test_exported_directory_is_imported_elsewhere(tmp_path: Path) -> None:
    folder = exported(tmp_path, "demo:q4")
    assert {path.name for path in folder.iterdir()} == {"demo-q4.gguf", "demo-q4.gguf.sig"}
    assert (folder / "demo-q4.gguf").read_bytes() == MODEL
    config = settings_in(tmp_path / "to")
    assert models.import_model(config, folder, [], "copy").endswith("signed by acme")
    assert names_in(config) == ("copy",)


def test_import_says_what_the_model_will_take(tmp_path: Path) -> None:
    folder = exported(tmp_path, "demo:q4")
    config = settings_in(tmp_path / "to")
    assert "  needs " in models.import_model(config, folder, [], "copy")
    little = msgspec.structs.replace(config.models, memory_bytes=2**20)
    line = models.import_model(msgspec.structs.replace(config, models=little), folder, [], "another")
    assert "cannot be loaded here: it needs " in line
    assert names_in(config) == ("another", "copy")


def test_adapter_goes_the_way_of_a_model_and_is_called_what_it_is(tmp_path: Path) -> None:
    config = settings_in(tmp_path / "from")
    put_model(config, ADAPTER, "style:latest")
    assert models.listing(config) == (
        [f"style:latest  {Digest.of(ADAPTER)}  {len(ADAPTER)} bytes  a LoRA adapter  signed by acme"],
        True,
    )
    transfer.export(config, "style:latest", tmp_path / "out")
    other = settings_in(tmp_path / "to")
    line = models.import_model(other, tmp_path / "out", [], "copy")
    assert "  a LoRA adapter for llama models, 1 matrices, rank 4  signed by acme" in line
    models.remove(other, "copy")
    assert names_in(other) == ()


def test_model_of_two_signers_is_exported_and_imported_with_both(tmp_path: Path) -> None:
    config = also_trusts_board(settings_in(tmp_path / "from"))
    put_model(config, MODEL, "demo", signed(MODEL), signed(MODEL, OTHER_KEY))
    folder = tmp_path / "out"
    transfer.export(config, "demo", folder)
    assert {path.name for path in folder.iterdir()} == {"demo.gguf", "demo.gguf.sig", "demo.gguf.2.sig"}
    both = also_trusts_board(settings_in(tmp_path / "both"))
    assert models.import_model(both, folder, [], "copy").endswith("signed by acme and board")
    transfer.export(both, "copy", tmp_path / "again")
    assert (tmp_path / "again" / "copy.gguf.2.sig").read_bytes() == signed_by_board(folder)
    one = settings_in(tmp_path / "one")  # knows acme alone, and asks for no more
    assert models.import_model(one, folder, [], "copy").endswith("signed by acme")
    with pytest.raises(Refused, match="signer-unknown"):
        models.import_model(one, folder, [folder / "demo.gguf.sig", folder / "demo.gguf.2.sig"], "named")
    signed_by_board(folder, gone=True)
    with pytest.raises(Refused, match="signers-missing"):
        models.import_model(both, folder, [], "third")


def signed_by_board(folder: Path, *, gone: bool = False) -> bytes:
    path = folder / "demo.gguf.2.sig"
    data = path.read_bytes()
    if gone:
        path.unlink()
    return data


def test_signature_by_a_stranger_beside_the_model_vouches_for_nothing(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / "demo.gguf.sig").rename(folder / "demo.gguf.2.sig")
    (folder / "demo.gguf.sig").write_bytes(signed(MODEL, OTHER_KEY))
    config = settings_in(tmp_path / "to")
    assert models.import_model(config, folder, [], "copy").endswith("signed by acme")
    (folder / "demo.gguf.2.sig").unlink()
    with pytest.raises(Refused, match="signer-unknown"):
        models.import_model(config, folder, [], "copy")


def choose(*bundles: bytes, requires: int, names: tuple[str, ...] | None = None) -> tuple[bytes, ...]:
    keys = TrustedKeys({name: public_pem(key.public_key()) for name, key in (("acme", KEY), ("board", OTHER_KEY))})
    policy = TrustPolicy(required=requires, signers=None if names is None else frozenset(names))
    return transfer.acceptable_bundles(bundles, Digest.of(MODEL), Trust(keys, now_seconds=0, policy=policy))


ACME, AGAIN, BOARD, OTHER = signed(MODEL), signed(MODEL), signed(MODEL, OTHER_KEY), signed(MODEL + b"x", OTHER_KEY)


def test_as_many_signatures_are_taken_as_are_required() -> None:
    assert choose(ACME, BOARD, requires=1) == (ACME,)
    assert choose(b"junk", OTHER, BOARD, ACME, requires=1) == (BOARD,)
    assert choose(b"junk", ACME, AGAIN, OTHER, BOARD, requires=2) == (ACME, BOARD)
    assert choose(ACME, BOARD, requires=1, names=("board",)) == (ACME, BOARD)


@pytest.mark.parametrize(
    ("bundles", "requires", "code"),
    [
        ((), 1, "unsigned"),
        ((b"junk",), 1, "bundle-malformed"),
        ((OTHER,), 1, "digest-mismatch"),
        ((ACME,), 2, "signers-missing"),
        ((ACME, AGAIN), 2, "signers-missing"),
        ((ACME, OTHER, b"junk"), 2, "signers-missing"),
    ],
)
def test_too_few_signatures_are_refused_before_anything_is_fetched(
    bundles: tuple[bytes, ...], requires: int, code: str
) -> None:
    with pytest.raises(Refused, match=f": {code}: "):
        choose(*bundles, requires=requires)


def test_more_signatures_than_a_registry_takes_are_not_pushed() -> None:
    with pytest.raises(Fault, match="5 signatures"):
        transfer._few((b"x",) * 5)


def test_export_of_a_model_that_is_replaced_meanwhile_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings_in(tmp_path / "from")
    put_model(config, MODEL, "demo")
    copy = transfer.copy_and_observe

    def replace_and_copy(source: int, target: int) -> object:
        put_model(config, small_model_bytes("newer"), "demo")
        return copy(source, target)

    monkeypatch.setattr(transfer, "copy_and_observe", replace_and_copy)
    with pytest.raises(Fault, match="replaced"):
        transfer.export(config, "demo", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"from"}


def test_command_takes_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = exported(tmp_path)
    config = settings_in(tmp_path / "to")
    file = tmp_path / "paddock.toml"
    file.write_text(f'state_dir = "{config.state_dir}"\nruntime_dir = "/run/unused"\n')
    assert command.main(["models", "import", "--config", str(file), str(folder), "--name", "copy"]) == 0
    assert command.main(["models", "export", "--config", str(file), "copy", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "copy.gguf").exists()
    assert command.main(["models", "pull", "--config", str(file), "demo:v1", "--name", "x"]) == 1
    assert "no default registry" in capsys.readouterr().err


@pytest.mark.parametrize("count", [0, 2])
def test_directory_with_no_model_or_another_is_refused(tmp_path: Path, count: int) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.gguf").write_bytes(MODEL)
        (folder / f"{number}.gguf.sig").write_bytes(signed(MODEL))
    with pytest.raises(Fault, match=f"holds {count} GGUF files"):
        models.import_model(settings_in(tmp_path / "to"), folder, [], "copy")


def test_link_and_pipe_in_a_directory_are_not_taken_for_models(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "link.gguf").symlink_to("/etc/passwd")
    os.mkfifo(folder / "pipe.gguf")
    with pytest.raises(Fault, match="holds 0 GGUF files"):
        models.only_model(folder)


def test_directory_without_a_signature_is_refused(tmp_path: Path) -> None:
    folder = exported(tmp_path)
    (folder / "demo.gguf.sig").unlink()
    with pytest.raises(Fault, match="has no signature"):
        models.import_model(settings_in(tmp_path / "to"), folder, [], "copy")


def test_export_overwrites_nothing(tmp_path: Path) -> None:
    config = settings_in(tmp_path / "from")
    put_model(config, MODEL, "demo")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine")
    with pytest.raises(Fault, match="is not empty"):
        transfer.export(config, "demo", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_export_of_what_does_not_verify_leaves_nothing(tmp_path: Path) -> None:
    config = settings_in(tmp_path / "from")
    put_model(config, MODEL, "demo")
    (blob,) = (config.models_dir / "blobs" / "sha256").iterdir()
    blob.chmod(0o600)
    blob.write_bytes(MODEL[:-1] + b"x")
    blob.chmod(0o444)
    with pytest.raises(Refused):
        transfer.export(config, "demo", tmp_path / "out")
    with pytest.raises(Refused):
        transfer.export(config, "absent", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"from"}


def test_export_that_breaks_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings_in(tmp_path / "from")
    put_model(config, MODEL, "demo")

    def full(_fd: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        transfer.export(config, "demo", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"from"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_is_drawn_on_a_terminal_only() -> None:
    for stream, drawn in ((io.StringIO(), False), (Terminal(), True)):
        bar = Bar("pulling demo", 4096, stream)
        bar.show(1024)
        bar.show(2048)  # too soon to be drawn again
        bar.end()
        assert ("25%" in stream.getvalue()) is drawn
        assert "50%" not in stream.getvalue()
        assert bool(stream.getvalue()) is drawn


@pytest.mark.parametrize(("done", "total"), [(0, 0), (5, 0), (-3, 10), (20, 10), (2**60, 1)])
def test_bar_stays_in_its_frame(done: int, total: int) -> None:
    text = line("x", done, total, 1.0, 10)
    assert len(text.partition("[")[2].partition("]")[0]) == 10


def test_sizes_are_readable() -> None:
    assert [readable(n) for n in (0, 1023, 1536, 5 * 1024**3, 2**60)] == [
        "0 B", "1023 B", "1.5 KiB", "5.0 GiB", "1048576.0 TiB",
    ]  # fmt: skip
