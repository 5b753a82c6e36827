"""A registry that lies, stalls, redirects and floods: each ends in a reason, in bounded time and memory."""

import json
import os
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance.core.values import Digest
from appliance.models.transfer import media
from appliance.models.transfer.client import Client, Pace
from appliance.models.transfer.download import fetch, resolve
from appliance.models.transfer.manifest import MAX_MANIFEST_BYTES
from appliance.models.transfer.origin import Origin, parse_url
from appliance.models.transfer.reference import parse_reference
from appliance.models.transfer.refusal import TransferRefused
from appliance.models.transfer.registry import Credentials, Registry
from tests.support.hostile_http import Asked, HostileServer, answer

BLOB = bytes(range(256)) * 1000
DIGEST = Digest.of(BLOB)
QUICK = Pace(connect_seconds=5, answer_seconds=2, window_seconds=1, window_bytes=64 * 1024)
LIMIT_SECONDS = 12.0
SECRET = Credentials(user="alice", password="hunter2")


def registry_at(server: HostileServer, *, secret: bool = True, named: tuple[str, ...] = ()) -> Registry:
    return Registry(
        Client(None, QUICK),
        parse_reference(f"{server.host}/models/demo:v1"),
        credentials=SECRET if secret else None,
        auth_origins=frozenset(parse_url(url).origin for url in named),
    )


@pytest.fixture(autouse=True)
def in_bounded_time_and_memory() -> Iterator[None]:
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert time.monotonic() - started < LIMIT_SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def refusal_of_resolve(server: HostileServer, **how: Any) -> str:
    with pytest.raises(TransferRefused) as caught:
        resolve(registry_at(server, **how), parse_reference(f"{server.host}/models/demo:v1"))
    return caught.value.reason


def refusal_of_fetch(server: HostileServer, path: Path, held: bytes = b"", **how: Any) -> str:
    path.write_bytes(held)
    fd = os.open(path, os.O_RDWR)
    try:
        with pytest.raises(TransferRefused) as caught:
            fetch(registry_at(server, **how), DIGEST, len(BLOB), fd, lambda _n: None)
    finally:
        os.close(fd)
    return caught.value.reason


def manifest_with(**fields: Any) -> bytes:
    layer = {"mediaType": media.MODELPACK_WEIGHT, "digest": str(DIGEST), "size": len(BLOB)}
    document = {"schemaVersion": 2, "mediaType": media.MANIFEST, "config": layer, "layers": [layer], **fields}
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode()


# --- manifests -------------------------------------------------------------------------------------------------------

LAYER = {"mediaType": media.MODELPACK_WEIGHT, "digest": str(DIGEST), "size": len(BLOB)}
BAD_DIGESTS = [
    "sha256:../../../../etc/passwd",
    "sha256:" + "a" * 63,
    "sha256:" + "a" * 65,
    "sha256:" + "A" * 64,
    "sha256-" + "a" * 64,
    "sha512:" + "a" * 128,
    "sha256:" + "a" * 62 + "%2e",
    "sha256:" + "a" * 63 + "\0",
    "sha256:" + "a" * 63 + "\n",
    "sha256:" + "a" * 63 + "\u0661",
    "../" + "a" * 64,
    "",
]


def drip(*pieces: bytes, forever: bytes = b"", every: float = 0.0, server: HostileServer) -> Iterable[bytes]:
    yield from pieces
    while forever and not server.ended.wait(every):
        yield forever


@pytest.mark.parametrize("digest", BAD_DIGESTS, ids=range(len(BAD_DIGESTS)))
def test_cve_2024_37032_digest_that_is_none_is_refused(server: HostileServer, digest: str) -> None:
    server.script = lambda _asked: [answer(200, manifest_with(layers=[{**LAYER, "digest": digest}]))]
    assert refusal_of_resolve(server) == "manifest-malformed"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (manifest_with(layers=[]), "manifest-malformed"),
        (manifest_with(layers=None), "manifest-malformed"),
        (manifest_with(layers=[LAYER] * 65), "manifest-malformed"),
        (manifest_with(layers=[LAYER, LAYER]), "model-ambiguous"),
        (manifest_with(layers=[{**LAYER, "size": -1}]), "manifest-malformed"),
        (manifest_with(layers=[{**LAYER, "size": 2**63}]), "manifest-malformed"),
        (manifest_with(layers=[{**LAYER, "size": 1.5}]), "manifest-malformed"),
        (manifest_with(layers=[{**LAYER, "size": "7"}]), "manifest-malformed"),
        (manifest_with(layers=[{**LAYER, "size": 0}]), "manifest-malformed"),
        (manifest_with(layers=[{"mediaType": media.MODELPACK_WEIGHT}]), "manifest-malformed"),
        (manifest_with(schemaVersion=1), "manifest-malformed"),
        (manifest_with(mediaType="text/plain"), "media-type-refused"),
        (manifest_with(mediaType=media.INDEX), "manifest-ambiguous"),
        (manifest_with(manifests=[]), "manifest-ambiguous"),
        (manifest_with(manifests=[], mediaType=None), "manifest-ambiguous"),
        (manifest_with(layers=None, manifests=[LAYER], mediaType=media.INDEX), "index-ambiguous"),
        (b"", "manifest-malformed"),
        (b"[]", "manifest-malformed"),
        (b'{"layers": 1, "layers": 2}', "manifest-malformed"),
        (b"[" * 100_000, "manifest-malformed"),
        (b"\xff" * 100, "manifest-malformed"),
    ],
    ids=range(21),
)
def test_cve_2025_1975_manifest_that_cannot_be_meant_is_refused(
    server: HostileServer, body: bytes, reason: str
) -> None:
    server.script = lambda _asked: [answer(200, body)]
    assert refusal_of_resolve(server) == reason


def test_cve_2025_0315_million_layers_are_refused_before_they_are_decoded(server: HostileServer) -> None:
    body = b'{"schemaVersion":2,"layers":[' + b"0," * 450_000 + b"0]}"
    assert len(body) < MAX_MANIFEST_BYTES
    server.script = lambda _asked: [answer(200, body)]
    assert refusal_of_resolve(server) == "manifest-malformed"


def test_cve_2025_0315_announced_ten_gigabytes_are_refused_unread(server: HostileServer) -> None:
    server.script = lambda _asked: drip(
        answer(200, Content_Length=str(10 * 1024**3)), forever=b" " * 65536, server=server
    )
    assert refusal_of_resolve(server) == "body-too-large"


def test_cve_2025_0315_endless_chunked_body_is_cut_off(server: HostileServer) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    head = answer(200, Content_Length="", Transfer_Encoding="chunked")
    server.script = lambda _asked: drip(head, forever=chunk, server=server)
    assert refusal_of_resolve(server) == "body-too-large"


def test_endless_body_without_a_length_is_cut_off(server: HostileServer) -> None:
    server.script = lambda _asked: drip(answer(200, Content_Length=""), forever=b" " * 65536, server=server)
    assert refusal_of_resolve(server) == "body-too-large"


def test_two_framings_of_one_body_are_refused(server: HostileServer) -> None:
    server.script = lambda _asked: [answer(200, b"0\r\n\r\n", Transfer_Encoding="chunked")]
    assert refusal_of_resolve(server) == "header-ambiguous"


def test_cve_2024_12886_compressed_body_is_refused_unread(server: HostileServer) -> None:
    server.script = lambda _asked: [answer(200, manifest_with(), Content_Encoding="gzip")]
    assert refusal_of_resolve(server) == "content-encoded"


def test_manifest_with_another_digest_than_asked_is_refused(server: HostileServer) -> None:
    server.script = lambda _asked: [answer(200, manifest_with())]
    with pytest.raises(TransferRefused) as caught:
        registry_at(server).manifest(DIGEST)
    assert caught.value.reason == "digest-mismatch"


def test_manifest_with_another_digest_than_announced_is_refused(server: HostileServer) -> None:
    server.script = lambda _asked: [answer(200, manifest_with(), Docker_Content_Digest=str(DIGEST))]
    assert refusal_of_resolve(server) == "digest-mismatch"


def test_bundle_larger_than_a_signature_can_be_is_not_fetched(server: HostileServer) -> None:
    layers = [LAYER, {**LAYER, "mediaType": media.BUNDLE, "size": 10 * 1024**3}]
    server.script = lambda _asked: [answer(200, manifest_with(layers=layers))]
    assert refusal_of_resolve(server) == "body-too-large"
    assert len(server.asked) == 1


@pytest.mark.parametrize("subject", [None, {**LAYER, "digest": str(Digest.of(b"other"))}])
def test_referrer_that_is_about_something_else_is_refused(server: HostileServer, subject: Any) -> None:
    """Mix and match: a signature that was attached to another manifest."""
    model = manifest_with()
    referrer = manifest_with(layers=[{**LAYER, "mediaType": media.BUNDLE}], subject=subject)
    entry = {
        "mediaType": media.MANIFEST,
        "digest": str(Digest.of(referrer)),
        "size": len(referrer),
        "artifactType": media.BUNDLE,
    }
    index = json.dumps({"schemaVersion": 2, "mediaType": media.INDEX, "manifests": [entry] * 9}).encode()

    def script(asked: Asked) -> Iterable[bytes]:
        if "/referrers/" in asked.target:
            return [answer(200, index)]
        return [answer(200, referrer if "sha256:" in asked.target else model)]

    server.script = script
    assert refusal_of_resolve(server) == "referrer-foreign"


def test_flood_of_referrers_costs_a_few_requests(server: HostileServer) -> None:
    bundle = b"{}"
    model = manifest_with()
    subject = {"mediaType": media.MANIFEST, "digest": str(Digest.of(model)), "size": len(model)}
    layer = {"mediaType": media.BUNDLE, "digest": str(Digest.of(bundle)), "size": len(bundle)}
    referrer = manifest_with(layers=[layer], subject=subject)
    entry = {**subject, "digest": str(Digest.of(referrer)), "artifactType": media.BUNDLE}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry] * 256}).encode()

    def script(asked: Asked) -> Iterable[bytes]:
        if "/referrers/" in asked.target:
            return [answer(200, index)]
        if "/blobs/" in asked.target:
            return [answer(200, bundle)]
        return [answer(200, referrer if "sha256:" in asked.target else model)]

    server.script = script
    found = resolve(registry_at(server), parse_reference(f"{server.host}/models/demo:v1"))
    assert found.unverified_bundles == (bundle,) * 4
    assert len(server.asked) == 2 + 2 * 4


# --- time ------------------------------------------------------------------------------------------------------------


def test_server_that_never_answers_is_given_up(server: HostileServer) -> None:
    server.script = lambda _asked: drip(forever=b"", server=server) if server.ended.wait(8) else []
    assert refusal_of_resolve(server) == "too-slow"


def test_head_that_comes_byte_by_byte_is_given_up(server: HostileServer) -> None:
    server.script = lambda _asked: drip(b"HTTP/1.1 200 OK\r\nX: ", forever=b"x", every=0.05, server=server)
    assert refusal_of_resolve(server) == "too-slow"


def test_endless_interim_answers_are_given_up(server: HostileServer) -> None:
    server.script = lambda _asked: drip(forever=b"HTTP/1.1 100 Continue\r\n\r\n", every=0.01, server=server)
    assert refusal_of_resolve(server) == "too-slow"


def test_blob_that_comes_byte_by_byte_is_given_up(server: HostileServer, tmp_path: Path) -> None:
    """Each byte comes well within any timeout of a single read."""
    server.script = lambda _asked: drip(
        answer(200, Content_Length=str(len(BLOB))), forever=b"x", every=0.05, server=server
    )
    assert refusal_of_fetch(server, tmp_path / "part") == "too-slow"


def test_slow_blob_that_keeps_the_pace_is_not_given_up(server: HostileServer, tmp_path: Path) -> None:
    def script(_asked: Asked) -> Iterable[bytes]:
        yield answer(200, Content_Length=str(len(BLOB)))
        for start in range(0, len(BLOB), 64 * 1024):
            server.ended.wait(0.55)
            yield BLOB[start : start + 64 * 1024]

    server.script = script
    path = tmp_path / "part"
    path.write_bytes(b"")
    fd = os.open(path, os.O_RDWR)
    started = time.monotonic()
    fetch(registry_at(server), DIGEST, len(BLOB), fd, lambda _n: None)
    os.close(fd)
    assert time.monotonic() - started > 2 * QUICK.window_seconds
    assert path.read_bytes() == BLOB


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-nonsense\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"",
    ],
    ids=range(7),
)
def test_server_that_does_not_speak_http_is_refused(server: HostileServer, raw: bytes) -> None:
    server.script = lambda _asked: [raw]
    assert refusal_of_resolve(server) == "protocol-violation"


def test_contradicting_lengths_are_refused(server: HostileServer) -> None:
    server.script = lambda _asked: [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}"]
    assert refusal_of_resolve(server) == "header-ambiguous"


# --- blobs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (answer(200, BLOB + b"x"), "size-mismatch"),
        (answer(200, BLOB[:-1]), "size-mismatch"),
        (answer(200, Content_Length=str(10 * 1024**4)), "size-mismatch"),
        (answer(200, BLOB, Content_Length=""), "size-unknown"),
        (answer(200, b"5\r\nhello\r\n0\r\n\r\n", Content_Length="", Transfer_Encoding="chunked"), "size-unknown"),
        (answer(200, BLOB[:-1], Content_Length=str(len(BLOB))), "truncated"),
        (answer(200, BLOB[:-1] + b"x"), "digest-mismatch"),
        (answer(200, BLOB, Content_Encoding="gzip"), "content-encoded"),
        (answer(206, BLOB), "status-unexpected"),
        (answer(204), "status-unexpected"),
        (answer(404), "not-found"),
        (answer(429), "rate-limited"),
        (answer(500, b"Traceback"), "status-unexpected"),
    ],
    ids=range(13),
)
def test_blob_that_is_not_the_one_of_the_manifest_is_refused(
    server: HostileServer, tmp_path: Path, raw: bytes, reason: str
) -> None:
    server.script = lambda _asked: [raw]
    assert refusal_of_fetch(server, tmp_path / "part") == reason


def test_endless_blob_is_read_to_its_announced_end_only(server: HostileServer, tmp_path: Path) -> None:
    head = answer(200, Content_Length=str(len(BLOB)))
    server.script = lambda _asked: drip(head, forever=b"y" * 65536, server=server)
    assert refusal_of_fetch(server, tmp_path / "part") == "digest-mismatch"
    assert (tmp_path / "part").stat().st_size == 0


def test_truncated_blob_leaves_its_beginning_for_the_next_time(server: HostileServer, tmp_path: Path) -> None:
    server.script = lambda _asked: [answer(200, BLOB[:100_000], Content_Length=str(len(BLOB)))]
    assert refusal_of_fetch(server, tmp_path / "part") == "truncated"
    assert (tmp_path / "part").read_bytes() == BLOB[:100_000]


@pytest.mark.parametrize(
    ("content_range", "reason"),
    [
        (f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}", "range-mismatch"),
        (f"bytes 5-{len(BLOB) - 1}/*", "range-mismatch"),
        (f"bytes 5-{len(BLOB)}/{len(BLOB) + 1}", "range-mismatch"),
        ("", "range-mismatch"),
    ],
    ids=range(4),
)
def test_other_part_than_was_asked_for_is_refused(
    server: HostileServer, tmp_path: Path, content_range: str, reason: str
) -> None:
    server.script = lambda _asked: [answer(206, BLOB[5:], Content_Range=content_range)]
    assert refusal_of_fetch(server, tmp_path / "part", BLOB[:5]) == reason
    assert server.asked[0].headers["range"] == "bytes=5-"


def test_rest_of_a_blob_does_not_save_a_wrong_beginning(server: HostileServer, tmp_path: Path) -> None:
    """What a former run left is hashed like everything else."""
    content_range = f"bytes 5-{len(BLOB) - 1}/{len(BLOB)}"
    server.script = lambda _asked: [answer(206, BLOB[5:], Content_Range=content_range)]
    assert refusal_of_fetch(server, tmp_path / "part", b"wrong") == "digest-mismatch"
    assert (tmp_path / "part").stat().st_size == 0


@pytest.mark.parametrize("held", [b"", b"wrong", BLOB[:77_777], BLOB, BLOB + b"more"], ids=len)
def test_server_without_ranges_gives_the_whole_blob_again(server: HostileServer, tmp_path: Path, held: bytes) -> None:
    server.script = lambda _asked: [answer(200, BLOB)]
    path = tmp_path / "part"
    path.write_bytes(held)
    fd = os.open(path, os.O_RDWR)
    counted = []
    fetch(registry_at(server), DIGEST, len(BLOB), fd, counted.append)
    os.close(fd)
    assert path.read_bytes() == BLOB
    assert sum(counted) == len(BLOB)


# --- credentials and origins -----------------------------------------------------------------------------------------


def bearer(realm: str) -> bytes:
    return answer(401, WWW_Authenticate=f'Bearer realm="{realm}",service="registry",scope="repository:all:*"')


def test_cve_2025_51471_realm_on_another_origin_gets_nothing(server: HostileServer, canary: HostileServer) -> None:
    server.script = lambda _asked: [bearer(f"http://{canary.host}/token")]
    assert refusal_of_resolve(server) == "realm-foreign"
    assert canary.asked == []
    assert not server.saw_a_credential()


def test_realm_on_an_origin_that_was_named_gets_the_credential_and_our_own_scope(
    server: HostileServer, canary: HostileServer
) -> None:
    canary.script = lambda _asked: [answer(200, b'{"token": "abc.def"}')]
    server.script = lambda asked: (
        [answer(404)] if "authorization" in asked.headers else [bearer(f"http://{canary.host}/token")]
    )
    assert refusal_of_resolve(server, named=(f"http://{canary.host}",)) == "not-found"
    assert canary.asked[0].target == "/token?service=registry&scope=repository%3Amodels%2Fdemo%3Apull"
    assert canary.asked[0].headers["authorization"] == SECRET.basic()
    assert server.asked[-1].headers["authorization"] == "Bearer abc.def"


def test_token_server_that_redirects_is_refused(server: HostileServer, canary: HostileServer) -> None:
    server.script = lambda asked: (
        [answer(302, Location=f"http://{canary.host}/")]
        if asked.target.startswith("/token")
        else [bearer(f"http://{server.host}/token")]
    )
    assert refusal_of_resolve(server) == "redirect-foreign"
    assert canary.asked == []


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b'{"token": ""}', b'{"token": "a\\r\\nX: y"}', b'{"token": 7}', b'{"token": "a b"}'],
    ids=range(7),
)
def test_token_that_cannot_be_one_is_refused(server: HostileServer, body: bytes) -> None:
    server.script = lambda asked: (
        [answer(200, body)] if asked.target.startswith("/token") else [bearer(f"http://{server.host}/token")]
    )
    assert refusal_of_resolve(server) == "token-malformed"


def test_endless_token_is_cut_off(server: HostileServer) -> None:
    server.script = lambda asked: (
        drip(answer(200, Content_Length=""), forever=b"a" * 65536, server=server)
        if asked.target.startswith("/token")
        else [bearer(f"http://{server.host}/token")]
    )
    assert refusal_of_resolve(server) == "body-too-large"


@pytest.mark.parametrize("scheme", ["bearer", "basic"])
def test_server_that_is_never_satisfied_is_asked_twice_at_most(server: HostileServer, scheme: str) -> None:
    challenge = bearer(f"http://{server.host}/token")
    if scheme == "basic":
        challenge = answer(401, WWW_Authenticate='Basic realm="x"')
    server.script = lambda asked: (
        [answer(200, b'{"token": "abc"}')] if asked.target.startswith("/token") else [challenge]
    )
    assert refusal_of_resolve(server) == "unauthorized"
    assert sum(asked.target.startswith("/v2/") for asked in server.asked) == 2


@pytest.mark.parametrize(
    "challenge",
    [
        'Bearer realm="http://a/", realm="http://b/"',
        'realm="http://a/"',
        'Bearer realm="http://a',
        "Bearer realm=",
        "\x01",
        'Bearer realm="file:///etc/passwd"',
        'Bearer realm="http://user:pass@a/"',
        'Bearer realm="//a/"',
        'Bearer realm="http://a/#x"',
        'Bearer realm="http://169.254.169.254/token"',
        "Bearer " + "a=b," * 3000,
    ],
    ids=range(11),
)
def test_challenge_that_cannot_be_read_one_way_is_refused(server: HostileServer, challenge: str) -> None:
    server.script = lambda _asked: [answer(401, WWW_Authenticate=challenge)]
    assert refusal_of_resolve(server) in {"challenge-malformed", "realm-malformed"}
    assert not server.saw_a_credential()


def authenticated(server: HostileServer, then: Any) -> None:
    """The registry asks for a password first, so that a credential exists that could leak."""
    server.script = lambda asked: (
        [then(asked)] if "authorization" in asked.headers else [answer(401, WWW_Authenticate='Basic realm="x"')]
    )


def test_blob_from_another_origin_is_fetched_without_the_credential(
    server: HostileServer, canary: HostileServer, tmp_path: Path
) -> None:
    authenticated(server, lambda _asked: answer(307, Location=f"http://{canary.host}/store?signature=x"))
    canary.script = lambda _asked: [answer(200, BLOB)]
    fd = os.open(tmp_path / "part", os.O_RDWR | os.O_CREAT)
    fetch(registry_at(server), DIGEST, len(BLOB), fd, lambda _n: None)
    os.close(fd)
    assert server.saw_a_credential()
    assert [asked.target for asked in canary.asked] == ["/store?signature=x"]
    assert not canary.saw_a_credential()


def test_other_origin_that_asks_for_a_credential_gets_none(
    server: HostileServer, canary: HostileServer, tmp_path: Path
) -> None:
    authenticated(server, lambda _asked: answer(307, Location=f"http://{canary.host}/"))
    canary.script = lambda _asked: [answer(401, WWW_Authenticate='Basic realm="x"')]
    assert refusal_of_fetch(server, tmp_path / "part") == "unauthorized"
    assert not canary.saw_a_credential()


def test_challenge_of_another_origin_is_not_answered(
    server: HostileServer, canary: HostileServer, tmp_path: Path
) -> None:
    """Also when the registry itself has asked for nothing yet."""
    server.script = lambda _asked: [answer(307, Location=f"http://{canary.host}/")]
    canary.script = lambda _asked: [answer(401, WWW_Authenticate='Basic realm="x"')]
    assert refusal_of_fetch(server, tmp_path / "part") == "unauthorized"
    assert [len(server.asked), len(canary.asked)] == [1, 1]


def test_manifest_from_another_origin_is_refused(server: HostileServer, canary: HostileServer) -> None:
    authenticated(server, lambda _asked: answer(307, Location=f"http://{canary.host}/v2/x/manifests/y"))
    assert refusal_of_resolve(server) == "redirect-foreign"
    assert canary.asked == []


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "//other.example/x",
        "relative",
        "http://other.example/x",
        "http://user@127.0.0.1/x",
        "https://other.example/x#y",
        "https://other.example\\@127.0.0.1/x",
        "https://127.1/x",
        "https://0x7f000001/x",
        "https://other.example:0/x",
        "https://other.example:99999/x",
        "https://" + "a" * 9000,
        "",
    ],
    ids=range(13),
)
def test_redirect_that_cannot_be_read_one_way_is_refused(server: HostileServer, tmp_path: Path, location: str) -> None:
    server.script = lambda _asked: [answer(307, Location=location)]
    assert refusal_of_fetch(server, tmp_path / "part") == "redirect-malformed"


def test_endless_redirects_are_given_up(server: HostileServer, tmp_path: Path) -> None:
    server.script = lambda asked: [answer(307, Location=asked.target + "x")]
    assert refusal_of_fetch(server, tmp_path / "part") == "too-many-redirects"
    assert len(server.asked) == 6


def test_upload_is_not_sent_to_another_origin(server: HostileServer, canary: HostileServer) -> None:
    server.script = lambda _asked: [answer(202, Location=f"http://{canary.host}/upload")]
    registry = registry_at(server)
    start = registry.url("blobs/uploads/")
    with registry.exchange("POST", start) as got, pytest.raises(TransferRefused, match=r"^redirect-foreign"):
        registry.upload_location(got, start)
    assert canary.asked == []


def test_plain_http_is_not_spoken_to_another_machine() -> None:
    assert parse_reference("registry.example/a:b").origin == Origin(scheme="https", host="registry.example", port=443)
    with pytest.raises(ValueError, match="this machine"):
        parse_url("http://registry.example/")
