"""References, URLs, redirects and challenges: one reading of each text, or none."""

import pytest

from appliance.core.values import Digest
from appliance.models.transfer import media
from appliance.models.transfer.challenge import Challenge, parse_challenges, token_url
from appliance.models.transfer.jobs import Access, Place, Push, decode_job, encode
from appliance.models.transfer.origin import Origin, Url, is_loopback, located, parse_url, redirected
from appliance.models.transfer.reference import parse_reference
from appliance.models.transfer.refusal import TransferRefused

HEX = "a" * 64
REMOTE = Origin(scheme="https", host="registry.example", port=443)
LOCAL = Origin(scheme="http", host="127.0.0.1", port=5000)


@pytest.mark.parametrize(
    ("text", "origin", "repository", "target"),
    [
        ("registry.example/demo:v1", "https://registry.example", "demo", "v1"),
        ("Registry.Example:8443/a/b-c/d__e:V_1.0", "https://registry.example:8443", "a/b-c/d__e", "V_1.0"),
        ("registry/demo:v1", None, "", ""),
        ("registry:5000/demo:v1", "https://registry:5000", "demo", "v1"),
        (f"registry.example/demo@sha256:{HEX}", "https://registry.example", "demo", Digest(hex=HEX)),
        ("127.0.0.1:5000/demo:v1", "http://127.0.0.1:5000", "demo", "v1"),
        ("localhost/demo:v1", "http://localhost", "demo", "v1"),
        ("[::1]:5000/demo:v1", "http://[::1]:5000", "demo", "v1"),
        ("192.0.2.7/demo:v1", "https://192.0.2.7", "demo", "v1"),
    ],
)
def test_reference_is_read(text: str, origin: str | None, repository: str, target: object) -> None:
    if origin is None:
        with pytest.raises(ValueError, match="no default registry"):
            parse_reference(text)
        return
    reference = parse_reference(text)
    assert (str(reference.origin), reference.repository, reference.target) == (origin, repository, target)
    assert parse_reference(str(reference)) == reference


def test_pinned_authority_makes_loopback_speak_tls() -> None:
    assert parse_reference("127.0.0.1:5000/a:b", has_own_ca=True).origin.scheme == "https"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "demo",
        "demo:v1",
        "library/demo:v1",
        "registry.example/demo",
        "registry.example/demo:",
        "registry.example/:v1",
        "registry.example//demo:v1",
        "registry.example/demo/:v1",
        "registry.example/../demo:v1",
        "registry.example/demo/../../x:v1",
        "registry.example/Demo:v1",
        "registry.example/de%2e%2emo:v1",
        "registry.example/demo:v1?x",
        "registry.example/demo:v1#x",
        "registry.example/demo:v1/x",
        "registry.example/demo:v 1",
        "registry.example/demo:v1\n",
        "registry.example/demo:-v1",
        "registry.example/demo:" + "v" * 129,
        "registry.example/" + "d" * 256 + ":v1",
        "registry.example/d\u00e9mo:v1",
        "registry.ex\u00e4mple/demo:v1",
        "https://registry.example/demo:v1",
        "user@registry.example/demo:v1",
        "registry.example:0/demo:v1",
        "registry.example:65536/demo:v1",
        "registry.example:5000x/demo:v1",
        "-registry.example/demo:v1",
        "registry..example/demo:v1",
        "registry.example./demo:v1",
        "127.1/demo:v1",
        "0x7f.1/demo:v1",
        "2130706433:80/demo:v1",
        "127.0.0.256/demo:v1",
        "127.0.0.01/demo:v1",
        "[::1/demo:v1",
        "[::1%25eth0]/demo:v1",
        "[::g]/demo:v1",
        f"registry.example/demo:v1@sha256:{HEX}",
        f"registry.example/demo@sha256:{HEX}0",
        f"registry.example/demo@sha256:{HEX[1:]}",
        f"registry.example/demo@sha256:{HEX.upper()}",
        f"registry.example/demo@sha512:{HEX}",
        f"registry.example/demo@sha256-{HEX}",
        f"registry.example/demo@@sha256:{HEX}",
        "registry.example/demo@v1",
        "registry.example/demo@sha256:../../x",
    ],
)
def test_text_that_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_reference(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("x.localhost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("0.0.0.0", True),
        ("[::1]", True),
        ("[::]", True),
        ("[::ffff:127.0.0.1]", True),
        ("[::ffff:192.0.2.1]", False),
        ("localhost.example", False),
        ("128.0.0.1", False),
        ("127.0.0.1.example", False),
    ],
)
def test_this_machine_is_recognised(host: str, *, expected: bool) -> None:
    assert is_loopback(host) is expected


def refusal(location: str, registry: Origin, *, is_blob: bool = True) -> str:
    with pytest.raises(TransferRefused) as caught:
        redirected(location, Url(origin=registry, target="/v2/x"), registry, is_blob=is_blob)
    return caught.value.reason


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://registry.example/x", "redirect-malformed"),
        ("http://127.0.0.1/x", "redirect-insecure"),
        ("https://127.0.0.1/x", "redirect-loopback"),
        ("https://localhost/x", "redirect-loopback"),
        ("https://[::1]/x", "redirect-loopback"),
        ("https://[::ffff:127.0.0.1]/x", "redirect-loopback"),
        ("https://0.0.0.0/x", "redirect-loopback"),
        ("https://user:secret@store.example/x", "redirect-malformed"),
        ("https://store.example/x y", "redirect-malformed"),
        ("https://store.example/\r\nX: y", "redirect-malformed"),
        ("ftp://store.example/x", "redirect-malformed"),
        ("HTTPS://store.example/x", "redirect-malformed"),
    ],
)
def test_redirect_to_where_no_blob_lives_is_refused(location: str, reason: str) -> None:
    assert refusal(location, REMOTE) == reason


def test_only_blobs_may_come_from_elsewhere() -> None:
    assert refusal("https://store.example/x", REMOTE, is_blob=False) == "redirect-foreign"
    here = Url(origin=REMOTE, target="/v2/x")
    assert redirected("https://store.example/x?a=b", here, REMOTE, is_blob=True).origin.host == "store.example"
    assert redirected("/y", here, REMOTE, is_blob=False) == Url(origin=REMOTE, target="/y")


def test_other_port_or_scheme_is_another_origin() -> None:
    assert refusal("https://registry.example:8443/x", REMOTE, is_blob=False) == "redirect-foreign"
    assert refusal("http://127.0.0.1:5001/x", LOCAL, is_blob=False) == "redirect-foreign"


def test_relative_location_belongs_to_whoever_sent_it() -> None:
    """After a redirect the sender is the other origin, and stays without credentials."""
    there = parse_url("https://store.example/a")
    assert located("/b", there).origin == there.origin


def test_challenges_are_told_apart() -> None:
    header = (
        'Basic realm="a, b=\\"c\\"", Bearer realm="https://registry.example/token",service="r,s" , error=x, Other x'
    )
    with pytest.raises(TransferRefused, match=r"^challenge-malformed"):
        parse_challenges(header)
    assert parse_challenges(header.removesuffix(", Other x")) == (
        Challenge(scheme="basic", realm='a, b="c"', service=None),
        Challenge(scheme="bearer", realm="https://registry.example/token", service="r,s"),
    )


def test_cve_2025_51471_token_is_asked_for_only_where_the_operator_said() -> None:
    challenge = Challenge(scheme="bearer", realm="https://registry.example.evil.example/token", service=None)
    with pytest.raises(TransferRefused, match="realm-foreign"):
        token_url(challenge, "repository:x:pull", frozenset({REMOTE}))
    for realm in (
        "https://registry.example:444/",
        "http://registry.example/",
        "https://registry.example@evil.example/",
    ):
        with pytest.raises(TransferRefused, match="realm-"):
            token_url(Challenge(scheme="bearer", realm=realm, service=None), "s", frozenset({REMOTE}))


def test_service_cannot_add_a_parameter() -> None:
    challenge = Challenge(scheme="bearer", realm="https://registry.example/token?a=b", service="x&scope=all")
    url = token_url(challenge, "repository:x:pull", frozenset({REMOTE}))
    assert url.target == "/token?a=b&service=x%26scope%3Dall&scope=repository%3Ax%3Apull"


def test_kinds_of_layers_do_not_overlap_and_hold_no_archive() -> None:
    assert not media.MODELS & media.NOT_FETCHED
    for kind in media.MODELS | media.NOT_FETCHED:
        assert not any(word in kind for word in ("tar", "gzip", "zstd", "code", "adapter", "projector", "lora"))


def test_job_survives_the_pipe() -> None:
    for text in ("registry.example/a:b", f"registry.example/a@sha256:{HEX}", f"registry.example/a:sha256-{HEX}"):
        place = Place.of(parse_reference(text))
        job = Push(
            place=place, access=Access(), name="n", digest=Digest(hex=HEX), size_bytes=1, fd=3, bundles=(b"\xff",)
        )
        again = decode_job(encode(job))
        assert again == job
        assert again.place.reference() == parse_reference(text)
