"""What an operator takes back is not loaded any more, and what is loaded is found out; on the command line too."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.assemble import TrustingStore
from appliance.cli.main import main
from appliance.core.records import reference
from appliance.core.refusals import Refused
from appliance.core.values import Digest
from appliance.model_store import begin_starter
from appliance.models.catalogue import IGNORED
from appliance.models.keys import key_fingerprint, private_pem, public_pem
from appliance.settings import Settings, parse
from appliance.warden.starter_client import Starter
from tests.support.certificates import Party
from tests.support.gguf_files import small_model_bytes
from tests.support.refusals import code_of
from tests.support.signed_models import KEY, OTHER_KEY

MODEL = small_model_bytes("demo")


class Desk:
    """An operator's state directory, and the command line over it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.version = folder, 0
        self.settings_file = folder / "paddock.toml"
        document = {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")}
        self.settings_file.write_text("".join(f'{key} = "{value}"\n' for key, value in document.items()))
        self.config: Settings = parse(document)
        self.starter: Starter
        for directory in (self.config.trust_dir, self.config.models_dir):
            directory.mkdir(parents=True, mode=0o700)
        self.write("model.gguf", MODEL)
        for name, key in (("acme", KEY), ("board", OTHER_KEY)):
            self.write(f"{name}.key", private_pem(key))
            (self.config.trust_dir / f"{name}.pem").write_bytes(public_pem(key.public_key()))

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def paddock(self, *words: str, config: bool = True) -> int:
        return main([*words, *(("--config", str(self.settings_file)) if config else ())])

    def sign(self, who: str, *options: str) -> str:
        bundle, key = self.folder / f"{who}.sig", self.folder / f"{who}.key"
        words = ["models", "sign", str(self.folder / "model.gguf"), "--key", str(key), "--bundle", str(bundle)]
        done = self.paddock(*words, *options, config=False)
        assert done == 0
        return str(bundle)

    def load(self, *who: str) -> int:
        bundles = [word for one in who for word in ("--bundle", self.sign(one))]
        return self.paddock("models", "import", str(self.folder / "model.gguf"), "--name", "demo", *bundles)

    def publish(self, **entry: Any) -> None:
        """A new version of the catalogue, signed by acme on the command line."""
        self.version += 1
        later = int(time.time()) + 1000
        listed = {"name": "demo", "version": 1, "digest": str(Digest.of(MODEL)), "signer": "acme",
                  "minimum_seal": "ro-store", "expires_at_seconds": later} | entry  # fmt: skip
        models = [] if entry.get("name") == "none" else [listed]
        text = json.dumps({"version": self.version, "expires_at_seconds": later, "models": models})
        document, envelope = self.write("catalogue.in", text.encode()), self.folder / f"catalogue-{self.version}"
        keys = self.config.trust_dir / "catalogue-keys"
        keys.mkdir(mode=0o700, exist_ok=True)
        (keys / "acme.pem").write_bytes(public_pem(KEY.public_key()))
        done = self.paddock("models", "catalogue", "sign", str(document), str(envelope), "--key",
                            str(self.folder / "acme.key"), config=False)  # fmt: skip
        assert done == 0
        envelope.rename(self.config.trust_dir / "catalogue.json")


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    one = Desk(tmp_path)
    with begin_starter(one.config) as one.starter:
        yield one


def take_back_key(desk: Desk) -> None:
    (desk.config.trust_dir / "acme.pem").unlink()


def revoke_key(desk: Desk) -> None:
    (desk.config.trust_dir / "revoked.txt").write_text(str(key_fingerprint(KEY.public_key())))


def ask_for_two(desk: Desk) -> None:
    (desk.config.trust_dir / "policy.toml").write_text("required_signers = 2\n")


CHANGES: list[tuple[Callable[[Desk], object], str]] = [
    (take_back_key, "signer-unknown"),
    (revoke_key, "signer-revoked"),
    (ask_for_two, "signers-missing"),
    (lambda desk: desk.publish(name="none"), "not-in-catalogue"),
    (lambda desk: desk.publish(digest=str(Digest.of(b"x"))), "catalogue-digest"),
    (lambda desk: desk.publish(signer="board"), "catalogue-signer"),
    (lambda desk: desk.publish(expires_at_seconds=1), "catalogue-entry-expired"),
    (lambda desk: (desk.publish(), (desk.config.trust_dir / "catalogue.json").unlink()), "catalogue-missing"),
]


@pytest.mark.parametrize(("change", "code"), CHANGES)
def test_what_is_taken_back_ends_what_is_loaded_and_is_not_loaded_again(
    desk: Desk, change: Callable[[Desk], object], code: str
) -> None:
    assert desk.load("acme") == 0
    store = TrustingStore(desk.config, desk.starter)
    with store.open_verified("demo") as opened:
        assert store.reference("demo") == reference(opened.model)
        before = store.stamp("demo")
        change(desk)
        assert store.stamp("demo") != before
        assert code_of(lambda: store.reference("demo")) == code
    assert code_of(lambda: store.open_verified("demo")) == code


STRICTER: list[tuple[dict[str, str], str]] = [
    ({"minimum_seal": "sealed-memfd"}, "seal-too-weak"),
    ({"chat_template_digest": str(Digest.of(b"another"))}, "catalogue-template"),
]


@pytest.mark.parametrize(("entry", "code"), STRICTER)
def test_stricter_entry_ends_what_is_loaded(desk: Desk, entry: dict[str, str], code: str) -> None:
    desk.load("acme")
    desk.publish()
    paths = {"state_dir": str(desk.config.state_dir), "runtime_dir": str(desk.config.runtime_dir)}
    store = TrustingStore(parse(paths | {"models": {"seal_mode": "ro-store"}}), desk.starter)
    with store.open_verified("demo") as opened:
        before = store.stamp("demo")
        assert store.reference("demo") == reference(opened.model)
        desk.publish(**entry)
        assert store.stamp("demo") != before
        assert code_of(lambda: store.reference("demo")) == code
        desk.publish()
        assert store.reference("demo") == reference(opened.model)


@pytest.mark.parametrize("what", ["catalogue", "entry"])
def test_expiry_is_noticed_when_it_comes(desk: Desk, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    hour = 500_000 * 3600
    monkeypatch.setattr(time, "time", lambda: hour)
    desk.load("acme")
    desk.publish(**({"expires_at_seconds": hour + 500} if what == "entry" else {}))
    end = hour + (500 if what == "entry" else 1000)
    store = TrustingStore(desk.config, desk.starter)
    store.reference("demo")
    before = store.stamp("demo")
    monkeypatch.setattr(time, "time", lambda: end - 1)
    assert store.stamp("demo") == before
    store.reference("demo")
    monkeypatch.setattr(time, "time", lambda: end)
    assert store.stamp("demo") != before
    assert code_of(lambda: store.reference("demo")) in {"catalogue-expired", "catalogue-entry-expired"}


def test_further_signature_that_is_touched_is_found_out(desk: Desk) -> None:
    assert desk.load("acme", "board") == 0
    store = TrustingStore(desk.config, desk.starter)
    before = store.stamp("demo")
    entry = json.loads((desk.config.models_dir / "models" / "demo.json").read_bytes())
    (desk.config.models_dir / "bundles" / "sha256" / entry["cosigned"][0].removeprefix("sha256:")).unlink()
    assert store.stamp("demo") != before
    assert code_of(lambda: store.reference("demo")) == "unsigned"


def test_catalogue_that_nobody_may_sign_is_not_ignored_in_silence(
    desk: Desk, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    desk.load("acme")
    (desk.config.trust_dir / "catalogue.json").write_bytes(b"{}")
    store = TrustingStore(desk.config, desk.starter)
    for _ in range(3):
        store.reference("demo")
    assert [record.getMessage() for record in caplog.records].count(IGNORED) == 1
    capsys.readouterr()
    assert desk.paddock("models", "catalogue", "show") == 0
    assert f"warning: {IGNORED}" in capsys.readouterr().out


def test_model_that_was_replaced_is_found_out(desk: Desk) -> None:
    desk.load("acme")
    store = TrustingStore(desk.config, desk.starter)
    with store.open_verified("demo"):
        desk.paddock("models", "remove", "demo")
        with pytest.raises(Refused, match="no model"):
            store.reference("demo")


def test_configured_verity_is_never_replaced_by_a_weaker_seal(desk: Desk) -> None:
    """On a host or for a model without fs-verity; one that has it is in ``tests/integration/models``."""
    desk.load("acme")
    config = parse({"state_dir": str(desk.config.state_dir), "models": {"seal_mode": "verity"}})
    store = TrustingStore(config, desk.starter)
    assert store.reference("demo").name == "demo"
    assert code_of(lambda: store.open_verified("demo")) in {"seal-mode-unsupported", "verity-missing"}


def test_catalogue_that_lists_the_model_lets_it_load(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    desk.load("acme")
    desk.publish(minimum_seal="sealed-memfd")
    with TrustingStore(desk.config, desk.starter).open_verified("demo") as opened:
        assert opened.seal_mode == "sealed-memfd"
    capsys.readouterr()
    assert desk.paddock("models", "catalogue", "show") == 0
    assert "demo  version 1" in capsys.readouterr().out


def test_catalogue_of_an_older_version_is_refused_on_the_command_line(desk: Desk) -> None:
    desk.publish()
    old = (desk.config.trust_dir / "catalogue.json").read_bytes()
    desk.publish()
    assert desk.paddock("models", "catalogue", "show") == 0
    (desk.config.trust_dir / "catalogue.json").write_bytes(old)
    assert desk.paddock("models", "catalogue", "show") == 1


def test_two_signers_import_together(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    ask_for_two(desk)
    assert desk.load("acme") == 1
    (desk.folder / "acme.sig").unlink()
    assert desk.load("acme", "board") == 0
    assert "signed by acme and board" in capsys.readouterr().out


def test_certificate_chain_signs_and_is_trusted(desk: Desk) -> None:
    now = int(time.time())
    root = Party("root", begins=now - 60, ends=now + 600)
    leaf = Party("release", root, begins=now - 60, ends=now + 600)
    (desk.config.trust_dir / "roots").mkdir(mode=0o755)
    (desk.config.trust_dir / "roots" / "ca.pem").write_bytes(root.pem)
    desk.write("leaf.key", private_pem(leaf.key))
    bundle = desk.sign("leaf", "--chain", str(desk.write("chain.pem", leaf.pem)), "--shards")
    assert desk.paddock("models", "import", str(desk.folder / "model.gguf"), "--name", "demo", "--bundle", bundle) == 0
    assert TrustingStore(desk.config, desk.starter).verify("demo").signer.name == "ca:CN=release,O=Acme"
