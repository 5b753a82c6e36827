"""Pull and push against Debian's docker-registry, through the command's own functions and its own process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.cli import transfer
from appliance.core.refusals import Fault, Refused
from appliance.core.values import Digest
from appliance.models.transfer import media
from appliance.models.transfer.jobs import Access
from tests.support.adapter_files import small_adapter
from tests.support.gguf_files import small_model_bytes
from tests.support.oci_registry import PASSWORD, USER, OciRegistry
from tests.support.signed_models import OTHER_KEY, signed
from tests.support.transfer import also_trusts_board, names_in, put_model, settings_in

MODEL = small_model_bytes("demo")
OPEN = Access()


def push_from(folder: Path, registry: OciRegistry, repository: str, how: Access = OPEN, data: bytes = MODEL) -> str:
    config = settings_in(folder)
    put_model(config, data, "demo")
    return transfer.push(config, "demo", f"{registry.host}/{repository}:v1", how)


def test_pushed_model_is_pulled_and_verified(tmp_path: Path, registry: OciRegistry) -> None:
    said = push_from(tmp_path / "from", registry, "models/demo")
    config = settings_in(tmp_path / "to")
    line = transfer.pull(config, f"{registry.host}/models/demo:v1", "copy", OPEN)
    assert line == f"copy  {Digest.of(MODEL)}  signed by acme"
    assert names_in(config) == ("copy",)
    assert list((config.models_dir / "incoming").iterdir()) == []
    pinned = said.split()[0]
    assert transfer.pull(config, pinned, "pinned", OPEN).startswith("pinned  ")


def test_adapter_is_pushed_and_pulled_as_a_model_is(tmp_path: Path, registry: OciRegistry) -> None:
    data = small_adapter().build()
    push_from(tmp_path / "from", registry, "adapters/style", data=data)
    config = settings_in(tmp_path / "to")
    line = transfer.pull(config, f"{registry.host}/adapters/style:v1", "style", OPEN)
    assert line == f"style  {Digest.of(data)}  signed by acme"


def test_signature_is_found_by_the_referrers_tag(tmp_path: Path, registry: OciRegistry) -> None:
    """Version 2.8 of the registry has no referrers API."""
    said = push_from(tmp_path / "from", registry, "models/tagged")
    digest = said.split()[0].partition("@sha256:")[2]
    index = registry.get(f"/v2/models/tagged/manifests/sha256-{digest}", media.INDEX)
    assert media.BUNDLE.encode() in index


def test_second_push_keeps_other_referrers(tmp_path: Path, registry: OciRegistry) -> None:
    """Another signature of the same model: both stay, and whoever trusts either can pull."""
    push_from(tmp_path / "one", registry, "models/twice")
    config = settings_in(tmp_path / "two")
    put_model(config, MODEL, "demo", signed(MODEL, path="other-name.gguf"))
    said = transfer.push(config, "demo", f"{registry.host}/models/twice:v1", OPEN)
    digest = said.split()[0].partition("@sha256:")[2]
    index = registry.get(f"/v2/models/twice/manifests/sha256-{digest}", media.INDEX)
    assert index.count(b'"artifactType"') == 2


def publish(registry: OciRegistry, repository: str, layers: list[tuple[str, bytes]]) -> str:
    described = []
    for kind, data in [("application/vnd.oci.image.config.v1+json", b"{}"), *layers]:
        digest = str(Digest.of(data))
        registry.put_blob(repository, data, digest)
        described.append({"mediaType": kind, "digest": digest, "size": len(data)})
    registry.put_manifest(
        repository,
        "v1",
        {"schemaVersion": 2, "mediaType": media.MANIFEST, "config": described[0], "layers": described[1:]},
    )
    return f"{registry.host}/{repository}:v1"


@pytest.mark.parametrize("kind", sorted(media.MODELS))
def test_signature_as_a_layer_is_taken(tmp_path: Path, registry: OciRegistry, kind: str) -> None:
    reference = publish(
        registry,
        "layers/" + kind.split("/")[1].replace(".", "-"),
        [(kind, MODEL), ("application/vnd.ollama.image.license", b"free"), (media.BUNDLE, signed(MODEL))],
    )
    config = settings_in(tmp_path)
    assert transfer.pull(config, reference, "demo", OPEN).endswith("signed by acme")


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ([(media.MODELPACK_WEIGHT, MODEL)], "unsigned"),
        ([(media.MODELPACK_WEIGHT, MODEL), (media.BUNDLE, signed(MODEL, OTHER_KEY))], "signer-unknown"),
        ([(media.MODELPACK_WEIGHT, MODEL), (media.BUNDLE, signed(b"another"))], "digest-mismatch"),
        ([(media.MODELPACK_WEIGHT, MODEL), (media.BUNDLE, b"{}")], "bundle-malformed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_model_without_an_acceptable_signature_is_not_even_fetched(
    tmp_path: Path, registry: OciRegistry, layers: list[tuple[str, bytes]], reason: str
) -> None:
    reference = publish(registry, f"unsigned/{reason}", layers)
    config = settings_in(tmp_path)
    with pytest.raises(Refused) as caught:
        transfer.pull(config, reference, "demo", OPEN)
    assert caught.value.detail.startswith(f"{reason}: ")
    assert not (config.models_dir / "incoming").exists()


@pytest.mark.parametrize(
    "kind",
    [
        "application/vnd.cncf.model.weight.v1.tar",
        "application/vnd.cncf.model.weight.v1.tar+gzip",
        "application/vnd.cncf.model.weight.v1.tar+zstd",
        "application/vnd.cncf.model.code.v1.raw",
        "application/vnd.cncf.model.code.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.ollama.image.adapter",
        "application/vnd.ollama.image.projector",
        "application/vnd.docker.ai.gguf.v3.mmproj",
    ],
)
def test_cve_2024_45436_cve_2024_12886_archive_or_code_layer_is_refused(
    tmp_path: Path, registry: OciRegistry, kind: str
) -> None:
    name = kind.split("/")[1].replace(".", "-").replace("+", "-")
    reference = publish(registry, f"refused/{name}", [(media.MODELPACK_WEIGHT, MODEL), (kind, b"layer")])
    with pytest.raises(Fault, match=r"^layer-refused: "):
        transfer.pull(settings_in(tmp_path), reference, "demo", OPEN)


def test_model_of_two_signers_is_pulled_with_both(tmp_path: Path, registry: OciRegistry) -> None:
    config = also_trusts_board(settings_in(tmp_path / "from"))
    put_model(config, MODEL, "demo", signed(MODEL), signed(MODEL, OTHER_KEY))
    transfer.push(config, "demo", f"{registry.host}/models/two:v1", OPEN)
    both = also_trusts_board(settings_in(tmp_path / "both"))
    said = transfer.pull(both, f"{registry.host}/models/two:v1", "demo", OPEN)
    assert set(said.split("signed by ")[1].split(" and ")) == {"acme", "board"}
    one = settings_in(tmp_path / "one")
    assert transfer.pull(one, f"{registry.host}/models/two:v1", "demo", OPEN).endswith("signed by acme")
    push_from(tmp_path / "single", registry, "models/single")
    with pytest.raises(Refused, match="signers-missing"):
        transfer.pull(both, f"{registry.host}/models/single:v1", "other", OPEN)


def test_absent_reference_is_not_found(tmp_path: Path, registry: OciRegistry) -> None:
    with pytest.raises(Fault, match=r"^not-found: "):
        transfer.pull(settings_in(tmp_path), f"{registry.host}/no/such:model", "demo", OPEN)


def test_bytes_that_changed_in_the_registry_are_refused(tmp_path: Path, registry: OciRegistry) -> None:
    data = small_model_bytes("changed")
    push_from(tmp_path / "from", registry, "models/changed", data=data)
    hex_digest = Digest.of(data).hex
    stored = registry.storage / f"docker/registry/v2/blobs/sha256/{hex_digest[:2]}/{hex_digest}/data"
    stored.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    config = settings_in(tmp_path / "to")
    with pytest.raises(Fault, match=r"^digest-mismatch: "):
        transfer.pull(config, f"{registry.host}/models/changed:v1", "demo", OPEN)
    assert names_in(config) == ()
    assert [path.stat().st_size for path in (config.models_dir / "incoming").iterdir()] == [0]


def test_interrupted_download_goes_on_where_it_stopped(tmp_path: Path, registry: OciRegistry) -> None:
    push_from(tmp_path / "from", registry, "models/resumed")
    config = settings_in(tmp_path / "to")
    (config.models_dir / "incoming").mkdir(parents=True, mode=0o700)
    config.models_dir.chmod(0o700)
    part = config.models_dir / "incoming" / f"{Digest.of(MODEL).hex}.part"
    part.write_bytes(MODEL[: len(MODEL) // 2])
    assert transfer.pull(config, f"{registry.host}/models/resumed:v1", "demo", OPEN).endswith("signed by acme")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OciRegistry]:
    """TLS with a certificate of its own, and a password."""
    running = OciRegistry(tmp_path_factory.mktemp("guarded"), tls=True, password=True)
    yield running
    running.stop()


def guarded_access(tmp_path: Path, guarded: OciRegistry, secret: str = f"{USER}:{PASSWORD}") -> Access:
    file = tmp_path / "credentials"
    file.write_text(secret + "\n")
    file.chmod(0o600)
    return transfer.access(settings_in(tmp_path / "unused"), ca=guarded.ca, credentials=file, auth_origins=())


def test_registry_with_pinned_certificate_and_password_is_used(tmp_path: Path, guarded: OciRegistry) -> None:
    how = guarded_access(tmp_path, guarded)
    push_from(tmp_path / "from", guarded, "models/demo", how)
    config = settings_in(tmp_path / "to")
    assert transfer.pull(config, f"{guarded.host}/models/demo:v1", "demo", how).endswith("signed by acme")


def test_wrong_password_is_refused_at_once(tmp_path: Path, guarded: OciRegistry) -> None:
    how = guarded_access(tmp_path, guarded, f"{USER}:wrong")
    with pytest.raises(Fault, match=r"^unauthorized: "):
        transfer.pull(settings_in(tmp_path / "to"), f"{guarded.host}/models/demo:v1", "demo", how)


def test_missing_password_is_refused(tmp_path: Path, guarded: OciRegistry) -> None:
    how = Access(ca_pem=guarded.ca.read_text())
    with pytest.raises(Fault, match=r"^unauthorized: .*--credentials"):
        transfer.pull(settings_in(tmp_path / "to"), f"{guarded.host}/models/demo:v1", "demo", how)


def test_certificate_of_another_authority_is_refused(
    tmp_path: Path, guarded: OciRegistry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from tests.support.oci_registry import self_signed

    how = Access(ca_pem=self_signed()[0].decode())
    with pytest.raises(Fault, match=r"^certificate-invalid: "):
        transfer.pull(settings_in(tmp_path), f"{guarded.host}/models/demo:v1", "demo", how)


def test_credentials_that_others_can_read_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "credentials"
    file.write_text("user:secret")
    file.chmod(0o640)
    with pytest.raises(Fault, match="chmod 600"):
        transfer.access(settings_in(tmp_path / "state"), ca=None, credentials=file, auth_origins=())


def test_nothing_is_left_open(tmp_path: Path, registry: OciRegistry) -> None:
    push_from(tmp_path / "from", registry, "models/open")
    config = settings_in(tmp_path / "to")
    before = len(os.listdir("/proc/self/fd"))
    transfer.pull(config, f"{registry.host}/models/open:v1", "demo", OPEN)
    assert len(os.listdir("/proc/self/fd")) == before
