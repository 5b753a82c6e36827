"""What the fuzzing of each target starts from: small, and of every kind that there is."""

import json
from hashlib import sha256
from typing import Final
from urllib.parse import urlencode

from appliance.core.clients import (
    TOKEN_EXCHANGE,
    Client,
    GrantOrder,
    IssuedTokens,
    Party,
    RefreshOrder,
    RevokedToken,
    RevokeOrder,
)
from appliance.core.records import PolicyLoaded, encode_record
from appliance.core.values import Digest
from appliance.ipc import frames, messages
from tests.integration.gateway.hostile_table import BODIES, LOGGED, WIRE
from tests.support import oauth_desk
from tests.vectors.jwt import generate

_CHAT: Final = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {
            "role": "assistant",
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "content": "t", "tool_call_id": "c1"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
    "tool_choice": "auto",
}
_FORMS: Final = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "mirostat_tau"), 0.5),
    "model": "demo",
    "messages": [{"role": "user", "content": "a\ud83d\ude00"}],
    "max_tokens": 5,
    "n": 2,
    "seed": 1,
    "stop": ["a", "b"],
    "logit_bias": {"1": -100},
    "logprobs": True,
    "top_logprobs": 2,
    "stream": True,
    "stream_options": {"include_usage": True},
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "string"}}},
}
_OBJECTS: Final = (
    _CHAT,
    _FORMS,
    {"model": "demo", "messages": [{"role": "user", "content": "a"}], "grammar": 'root ::= "a"', "top_k": -1},
    {"model": "demo", "prompt": [1, 2, 3], "echo": True, "best_of": 1},
    {"model": "demo", "prompt": ["a"], "logprobs": 3},
    {"model": "vectors", "input": ["a", "b"], "encoding_format": "base64", "dimensions": 8},
    {"model": "vectors", "input": [[1], [2, 3]], "truncate": True},
    {"model": "vectors", "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1},
    {"model": "demo", "content": "a", "add_special": True},
    {"model": "demo", "tokens": [0, 1]},
)
_TEXTS: Final = tuple(json.dumps(one).encode() for one in _OBJECTS)
_CLIENT: Final = Client(
    client_id="a", authentication="client_secret_basic", secrets_sha256=(Digest.of(b""),), groups=("c",), models=("*",)
)
_ORDER: Final = GrantOrder(
    client_id="a",
    grant=TOKEN_EXCHANGE,
    subject="b",
    groups=("c",),
    models=("*",),
    acting=(Party(subject="a"),),
    jkt="j" * 43,
    ttl_seconds=60,
    refreshable=True,
)
_MESSAGES: Final = (
    messages.Hello(role="gateway", open_requests=("r-1",)),
    messages.Append(
        call=1,
        record=encode_record(PolicyLoaded(policy_digest=Digest.of(b""), data_digest=Digest.of(b""))),
        durable=True,
    ),
    messages.Appended(call=1, index=1, leaf_hash=Digest.of(b"")),
    messages.IssueToken(call=1, subject="a", client_id="b", groups=("c",), models=("*",), ttl_seconds=60),
    messages.FindClient(call=1, client_id="a"),
    messages.AskGrant(call=1, order=_ORDER),
    messages.AskRefresh(call=1, order=RefreshOrder(client_id="a", unverified_refresh_token="f.s", groups=("c",))),
    messages.AskRevoke(call=1, order=RevokeOrder(client_id="a", token_id="t", expires_at_seconds=1)),
    messages.Granted(
        call=1, tokens=IssuedTokens(access_token="a.b.c", token_id="t", groups=("c",), expires_in_seconds=60)
    ),
    messages.NotGranted(call=1, reason="grant-invalid", detail="d"),
    messages.Revoked(tokens=(RevokedToken(token_id="t", expires_at_seconds=1),), anew=True, complete=False),
    messages.PutClient(call=1, client=_CLIENT, before=_CLIENT),
    messages.EndTokens(call=1, client_id="a"),
    messages.ListModels(call=1),
    messages.AskFigures(call=1),
    messages.Cancel(request_id="r-1"),
    messages.RunnerStarted(request_id="r-1", prompt_tokens=3),
    messages.RunnerDelta(request_id="r-1", text="a", tokens=1),
    messages.RunnerEnd(request_id="r-1", reason="stop", prompt_tokens=3, completion_tokens=1),
)
_TINY: Final = (b"{}", b"[]", b'"\\ud83d\\ude00"', b"-0.0e-1", b"18446744073709551615", b'{"a":1,"\\u0061":2}', b"NaN")


def _heads() -> tuple[bytes, ...]:
    rows = [row.data for row in (*WIRE, *LOGGED, *BODIES) if len(row.data) < 1500]
    return tuple(
        data.replace(b"@HOST@", b"test").replace(b"@TOKEN@", b"good").replace(b'"chain"', b'"demo"') for data in rows
    )


_PROOF_HEADER: Final = {
    "typ": "dpop+jwt",
    "alg": "ES256",
    "jwk": {name: generate.public_jwk("", generate.KEYS["first"])[name] for name in ("kty", "crv", "x", "y")},
}
_PROOF: Final = {
    "jti": "1",
    "htm": "GET",
    "htu": "https://llm.example/v1/models",
    "iat": generate.NOW,
    "ath": generate.base64url(sha256(generate.GOOD.encode()).digest()),
}
_EXCHANGE: Final = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token": oauth_desk.users_token(),
    "subject_token_type": oauth_desk.SUBJECT_TYPE,
    "requested_token_type": oauth_desk.REFRESH_TYPE,
    "scope": "staff analysts",
}
_ASSERTION: Final = {"iss": "signer", "sub": "signer", "aud": oauth_desk.ISSUER, "jti": "1"} | {
    "iat": generate.NOW,
    "exp": generate.NOW + 60,
}
_KEYS: Final = (
    generate.public_jwk("first", generate.KEYS["first"]),
    {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kid": "2", "use": "sig"},
    {"kty": "RSA", "n": generate.base64url(b"\xc1" * 256), "e": "AQAB", "kid": "3", "alg": "RS256"},
    {"kty": "oct", "k": "c2VjcmV0", "kid": "4"},
)
_PROXY: Final = b"\r\n\r\n\x00\r\nQUIT\n\x21"
_FORWARDED: Final = (
    b"X-Forwarded-For: 203.0.113.9, ::ffff:192.0.2.8\r\nX-Forwarded-Proto: https",
    b"X-Forwarded-For: 2001:db8::9\r\nForwarded: for=1\r\nX_User: x\r\nClient-Cert: :MAMCAQA=:",
    b"Client-Cert: -----BEGIN%20CERTIFICATE-----%0AMAMCAQA%3D%0A-----END%20CERTIFICATE-----%0A",
)


SEEDS: Final[dict[str, tuple[bytes, ...]]] = {
    "json": (*_TINY, *_TEXTS),
    "bodies": _TEXTS,
    "tokens": (
        generate.GOOD.encode(),
        json.dumps(generate.HEADER).encode() + b"\n" + json.dumps(generate.CLAIMS).encode(),
        b'{"alg":"none"}\n{"exp":1e9,"aud":["paddock"]}',
    ),
    "proofs": (
        generate.token(header=_PROOF_HEADER, claims=_PROOF).encode(),
        json.dumps(_PROOF_HEADER).encode() + b"\n" + json.dumps(_PROOF).encode(),
    ),
    "oauth": (
        oauth_desk.basic("basic").encode() + b"\ngrant_type=client_credentials&scope=staff&resource=x&resource=y",
        oauth_desk.basic("chat").encode() + b"\n" + urlencode(_EXCHANGE).encode(),
        oauth_desk.basic("nobody").encode() + b"\ngrant_type=refresh_token&refresh_token=x&token=a.b.c",
        b"\nclient_id=post&client_secret=%s&token=x&token_type_hint=y" % oauth_desk.SECRET.encode(),
        b'{"alg":"ES256","kid":"k1","typ":"JWT"}\n' + json.dumps(_ASSERTION).encode(),
    ),
    "issuers": (
        json.dumps({"keys": _KEYS[:3]}).encode(),
        *(json.dumps({"keys": [key]}).encode() for key in _KEYS),
        b'{"active":false}',
        json.dumps({"active": True, "scope": "llm", "token_type": "DPoP", **generate.CLAIMS}).encode(),
    ),
    "forms": (
        b"grant_type=client_credentials&scope=a+b%20c&resource=https://llm.example&resource=",
        b"grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Atoken-exchange&subject_token=a.b.c",
        b"token=%C3%A4%E2%82%AC&token_type_hint=%2B%26%3D%25",
    ),
    "proxies": (
        *_FORWARDED,
        _PROXY + b"\x11\x00\x0c" + bytes([203, 0, 113, 9, 192, 0, 2, 1, 18, 103, 1, 187]),
        _PROXY + b"\x21\x00\x24" + bytes(10) + b"\xff\xff" + bytes(24),
        _PROXY + b"\x31\x00\xd8" + b"/run/x".ljust(216, b"\0"),
        _PROXY[:12] + b"\x20\x00\x00\x00",
    ),
    "frames": tuple(map(frames.encode, _MESSAGES)),
    "heads": (
        *_heads(),
        *(
            b"GET /v1/models HTTP/1.1\r\nHost: test\r\nAuthorization: Bearer good\r\n%s\r\n\r\n" % one
            for one in _FORWARDED
        ),
    ),
}
DICTIONARY: Final = (
    *(f'"{name}":' for one in _OBJECTS for name in one),
    *("\\u0061", "\\ud800", "1e400", "-0", "NaN", "true", "null", "[[", "]]", "{}", '"role":"user"', '"text"'),
    *("\r\n", "\r\n\r\n", "Host: test", "Authorization: Bearer good", "Content-Length: 2", "HTTP/1.1", "HTTP/1.0"),
    *("Transfer-Encoding: chunked", "Content-Type: application/json", "0\r\n\r\n", "Connection: close", "Upgrade: h2c"),
    *("GET ", "POST ", "/v1/models", "/v1/chat/completions", "/healthz", "/tokenize", "%2f", "..", "//", "?", "#"),
    *('"alg":"ES256"', '"typ":"at+jwt"', '"kid":"first"', '"crit":', '"jwk":', '"exp":', '"aud":', '"iss":', '"nbf":'),
    *(
        "Basic ",
        "grant_type=",
        "client_id=",
        "client_secret=",
        "scope=",
        "resource=",
        "token=",
        "&",
        "%00",
        "client_assertion=",
    ),
    *('"dpop+jwt"', '"htu":', '"htm":', '"ath":', '"cnf":', '"kty":', '"crv":', '"n":', '"active":true', '"key_ops":'),
    *(
        "X-Forwarded-For: 203.0.113.9",
        "X-Forwarded-Proto: https",
        "Client-Cert: :MAMCAQA=:",
        "DPoP: x",
        "::ffff:192.0.2.8",
    ),
)
