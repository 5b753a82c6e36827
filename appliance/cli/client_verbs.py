"""``paddock clients`` and ``paddock tokens``: their arguments, and what they print.

Trusts: the operator at the terminal.
Promises: what a script reads is alone on stdout: a secret, a token, or JSON. A secret is printed once.
Not here: the work itself (``cli.clients``, ``cli.tokens``).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from appliance import settings
from appliance.core.codec import enc_hook
from appliance.core.text import printable

if TYPE_CHECKING:
    from appliance.core.clients import Client
    from appliance.ipc.messages import FamilyFacts

Verb = Callable[..., argparse.ArgumentParser]
_GRANTS = ("client_credentials", "refresh_token", "token-exchange")


def add_clients(group: Any, verb: Verb, common: argparse.ArgumentParser) -> None:
    add = verb(group, "add", _add, "register a client; its secret is printed once", common)
    add.add_argument("client_id", metavar="CLIENT", help="its id: letters, digits and ._~-")
    add.add_argument("--key", type=Path, action="append", default=[], help="its public key, PEM, instead of a secret")
    add.add_argument(
        "--certificate", type=Path, action="append", default=[], help="its certificate, PEM, instead of a secret"
    )
    add.add_argument("--post", action="store_true", help="it sends its secret in the form, not in the header")
    _fields(add)
    _as_json(add)
    listed = verb(group, "list", _list, "list the clients", common)
    _as_json(listed)
    show = verb(group, "show", _show, "show what is registered of a client", common)
    show.add_argument("client_id", metavar="CLIENT")
    _as_json(show)
    change = verb(group, "change", _change, "change a client; what takes something away ends its tokens", common)
    change.add_argument("client_id", metavar="CLIENT")
    _fields(change)
    change.add_argument("--add-key", type=Path, action="append", default=[], help="one more public key, PEM")
    change.add_argument("--add-certificate", type=Path, action="append", default=[], help="one more certificate, PEM")
    change.add_argument(
        "--drop",
        action="append",
        default=[],
        help="a key by its id, a certificate by its thumbprint, or 'old-secret'; may be repeated",
    )
    for name, command, help_text in (
        ("disable", _disable, "let a client have no more tokens, and end those that it has"),
        ("enable", _enable, "let a disabled client have tokens again"),
        ("remove", _remove, "forget a client, and end its tokens"),
    ):
        one = verb(group, name, command, help_text, common)
        one.add_argument("client_id", metavar="CLIENT")
    secret = verb(group, "new-secret", _new_secret, "make another secret for a client, and print it once", common)
    secret.add_argument("client_id", metavar="CLIENT")
    secret.add_argument("--keep-old", action="store_true", help="let the last one count beside it, and end no token")
    _as_json(secret)


def add_tokens(group: Any, verb: Verb, common: argparse.ArgumentParser) -> None:
    listed = verb(group, "list", _list_tokens, "list the families of refresh tokens, with their living tokens", common)
    listed.add_argument("--client", default="", help="of this client only")
    _as_json(listed)
    revoke = verb(group, "revoke", _revoke, "end a token, a family of refresh tokens, or all of a client", common)
    which = revoke.add_mutually_exclusive_group(required=True)
    which.add_argument("token_id", metavar="TOKEN_ID", nargs="?", help="the id of a token or of a family")
    which.add_argument("--client", help="every token of this client that was issued up to now")


def _fields(parser: argparse.ArgumentParser) -> None:
    """Those that are not given stay as they are, or have the default of a new client."""
    parser.add_argument("--grant", action="append", choices=_GRANTS, help="what it may ask with; may be repeated")
    parser.add_argument("--group", action="append", help="a group that its tokens may have; may be repeated")
    parser.add_argument("--model", action="append", help="a model that they may name, or '*'; may be repeated")
    parser.add_argument("--exchange", action="append", help="an issuer whose tokens it may exchange; may be repeated")
    parser.add_argument(
        "--introspects", action=argparse.BooleanOptionalAction, help="whether it may ask about tokens of others"
    )
    parser.add_argument("--ttl", type=int, metavar="SECONDS", help="lifetime of its tokens, 60 to 86400")
    parser.add_argument("--family-ttl", type=int, metavar="SECONDS", help="until refreshing ends, 60 to 7776000")


def _as_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The fields of ``Client`` that were given."""
    from appliance.cli.clients import GRANTS

    said = {
        "grants": None if options.grant is None else [GRANTS[name] for name in dict.fromkeys(options.grant)],
        "groups": options.group,
        "models": options.model,
        "exchanges": options.exchange,
        "introspects": options.introspects,
        "ttl_seconds": options.ttl,
        "family_seconds": options.family_ttl,
    }
    return {name: value for name, value in said.items() if value is not None}


def _add(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    given = _given(options)
    if not (options.key or options.certificate):
        given["authentication"] = "client_secret_post" if options.post else "client_secret_basic"
    config = settings.load(options.config)
    secret = clients.add(config, options.client_id, keys=options.key, certificates=options.certificate, **given)
    _print_secret(options, secret, "is registered")
    if not config.identity.issues_tokens:
        print(
            "no tokens are issued here yet: set identity.issuer and identity.public_url to one https:// address",
            file=sys.stderr,
        )
    return 0


def _new_secret(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    secret = clients.new_secret(settings.load(options.config), options.client_id, keep_old=options.keep_old)
    _print_secret(options, secret, "has another secret")
    return 0


def _print_secret(options: argparse.Namespace, secret: str, what: str) -> None:
    if options.json:
        print(json.dumps({"client_id": options.client_id, "secret": secret or None}))
        return
    hint = "; this is its secret, which nobody can show again" if secret else ""
    print(f"{options.client_id} {what}{hint}", file=sys.stderr)
    if secret:
        print(secret)


def _list(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    found = clients.everyone(settings.load(options.config))
    if options.json:
        _print_json(found)
        return 0
    for client in found:
        state = "disabled" if client.disabled else client.authentication
        print(f"{client.client_id}  {state}  groups: {_names(client.groups)}  models: {_names(client.models)}")
    if not found:
        print("no clients: see 'paddock clients add'")
    return 0


def _show(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    client = clients.find(settings.load(options.config), options.client_id)
    if options.json:
        _print_json(client)
    else:
        _print_client(client)
    return 0


def _change(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    client = clients.change(
        settings.load(options.config),
        options.client_id,
        add_keys=options.add_key,
        add_certificates=options.add_certificate,
        drop=options.drop,
        **_given(options),
    )
    _print_client(client)
    return 0


def _disable(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    clients.change(settings.load(options.config), options.client_id, disabled=True)
    print(f"{options.client_id} is disabled; its tokens have ended")
    return 0


def _enable(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    clients.change(settings.load(options.config), options.client_id, disabled=False)
    print(f"{options.client_id} may have tokens")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from appliance.cli import clients

    clients.remove(settings.load(options.config), options.client_id)
    print(f"{options.client_id} is removed; its tokens have ended")
    return 0


def _list_tokens(options: argparse.Namespace) -> int:
    from appliance.cli import tokens

    found = tokens.families(settings.load(options.config), options.client)
    if options.json:
        _print_json(found)
        return 0
    for one in found:
        _print_family(one)
    if not found:
        print("no refresh tokens")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from appliance.cli import tokens

    tokens.revoke(settings.load(options.config), token_id=options.token_id, client_id=options.client)
    what = f"{options.token_id} has" if options.client is None else f"all tokens of {options.client} have"
    print(f"{what} ended")
    return 0


def _print_client(client: "Client") -> None:
    rows = {
        "authentication": client.authentication,
        "secrets": str(len(client.secrets_sha256)) if client.secrets_sha256 else "",
        "keys": ", ".join(f"{key.key_id} ({key.algorithm})" for key in client.keys),
        "certificates": ", ".join(client.certificates),
        "grants": _names(client.grants),
        "groups": _names(client.groups),
        "models": _names(client.models),
        "exchanges": ", ".join(client.exchanges),
        "introspects": "yes" if client.introspects else "",
        "tokens live": f"{client.ttl_seconds} s",
        "refreshed for": f"{client.family_seconds} s" if "refresh_token" in client.grants else "",
    }
    print(f"{client.client_id}{'  disabled' if client.disabled else ''}")
    for name, value in rows.items():
        if value:
            print(f"  {name:<15} {value}")


def _print_family(one: "FamilyFacts") -> None:
    family = one.family
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(family.expires_at_seconds))
    print(f"{family.family_id}  {family.client_id}  for {printable(family.subject)}  until {until}")
    for token_id in one.token_ids:
        print(f"  {token_id}")


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _print_json(found: Any) -> None:
    print(json.dumps(msgspec.to_builtins(found, enc_hook=enc_hook), indent=2))
