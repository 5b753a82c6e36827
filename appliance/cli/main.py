"""The ``paddock`` command: parses arguments and hands over.

Trusts: the operator at the terminal.
Promises: an expected failure is one line on stderr and a status other than 0, never a traceback.
Not here: the work itself; each group of verbs has a module beside this one.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from appliance import __version__, settings
from appliance.cli import client_verbs, roles
from appliance.cli.logs import log_to_stderr
from appliance.core.refusals import Fault, Misconfigured, Refused
from appliance.settings import SettingsInvalid

Command = Callable[[argparse.Namespace], int]
if TYPE_CHECKING:
    from appliance.models.transfer.jobs import Access

    _Verbs = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command. Returns its exit status."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except SettingsInvalid as error:
        print(f"paddock: the settings are not valid:\n{error}", file=sys.stderr)
    except (Fault, Refused, OSError, ValueError) as error:
        print(f"paddock: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paddock", description="Serves local language models, hardened.")
    parser.add_argument("--version", action="version", version=f"paddock {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--config",
        type=Path,
        help="settings file (default: /etc/paddock/paddock.toml if it exists)",
    )

    demo = _verb(verbs, "demo", _demo, "show the whole chain on the built-in model, then stop")
    demo.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    _verb(verbs, "init", _init, "make the directories and the default policy", common)
    _verb(verbs, "serve", _serve, "run notary, warden and gateway until stopped", common)
    status = _verb(verbs, "status", _status, "show the loaded models and what fences them in", common)
    status.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    _verb(verbs, "check-config", _check_config, "print the effective settings and their digest", common)
    _token_verbs(verbs, common)
    _model_verbs(verbs, common)
    _audit_verbs(verbs, common)
    _sandbox_verbs(verbs, common)
    for role in ("notary", "warden", "liaison", "gateway"):
        one = _verb(verbs, role, _role, f"run the {role} alone (what 'serve' and the systemd units start)", common)
        one.set_defaults(role=role)
        one.add_argument("--parent", type=int, help="end when this process ends")
        one.add_argument(
            "--beside",
            type=roles.known_service,
            action="append",
            default=[],
            metavar="ROLE=PID",
            help="a service that lives already, for the notary; may be repeated",
        )
    return parser


def _verb(
    verbs: "_Verbs",
    name: str,
    command: Command,
    help_text: str,
    *parents: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=help_text, description=_sentence(help_text), parents=parents)
    parser.set_defaults(command=command)
    return parser


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _group(verbs: "_Verbs", name: str, help_text: str) -> "_Verbs":
    group = verbs.add_parser(name, help=help_text, description=_sentence(help_text))
    return group.add_subparsers(required=True, metavar="COMMAND")


def _token_verbs(verbs: "_Verbs", common: argparse.ArgumentParser) -> None:
    _issue_verb(_group(verbs, "token", "bearer tokens of the local issuer; as 'tokens'"), common)
    tokens = _group(verbs, "tokens", "bearer and refresh tokens of the local issuer")
    _issue_verb(tokens, common)
    client_verbs.add_tokens(tokens, _verb, common)
    client_verbs.add_clients(_group(verbs, "clients", "programs that ask the local issuer for tokens"), _verb, common)


def _issue_verb(group: "_Verbs", common: argparse.ArgumentParser) -> None:
    issue = _verb(group, "issue", _token_issue, "issue a token; the notary signs and records it", common)
    issue.add_argument("--sub", required=True, help="the subject: who will use it")
    issue.add_argument("--client", default="paddock-cli", help="the client id (default: %(default)s)")
    issue.add_argument(
        "--group", action="append", default=[], help="a group; may be repeated; without any, policy permits nothing"
    )
    issue.add_argument("--model", action="append", required=True, help="a model it may name, or '*'; may be repeated")
    issue.add_argument(
        "--ttl", type=int, default=3600, metavar="SECONDS", help="lifetime, 1 to 86400 (default: %(default)s)"
    )


def _model_verbs(verbs: "_Verbs", common: argparse.ArgumentParser) -> None:
    group = _group(verbs, "models", "signed models")
    keygen = _verb(group, "keygen", _models_keygen, "make a signing key")
    keygen.add_argument("private", type=Path, help="where to write the private key; it signs, and stays secret")
    keygen.add_argument("public", type=Path, help="where to write the public key, which appliances trust")
    trust = _verb(group, "trust", _models_trust, "trust a signer's public key", common)
    trust.add_argument("public", type=Path, help="the signer's public key, PEM")
    trust.add_argument("--signer", required=True, help="the name that audit records will show")
    sign = _verb(group, "sign", _models_sign, "sign a GGUF file (OpenSSF Model Signing v1.0)")
    sign.add_argument("model", type=Path, help="the GGUF file")
    sign.add_argument("--key", type=Path, required=True, help="the private key that 'keygen' wrote")
    sign.add_argument("--chain", type=Path, help="PEM certificates of that key, leaf first: sign in certificate mode")
    sign.add_argument("--shards", action="store_true", help="sign shards of 1 GB, which are verified on all cores")
    sign.add_argument("--bundle", type=Path, help="where to write the signature (default: MODEL.sig)")
    imported = _verb(group, "import", _models_import, "verify a signed GGUF file and take it into the store", common)
    imported.add_argument("model", type=Path, help="the GGUF file, or a directory with exactly one")
    imported.add_argument(
        "--bundle", type=Path, action="append", help="its signature (default: MODEL.sig); once for each signer"
    )
    imported.add_argument("--name", required=True, help="the name that callers will use")
    pull = _verb(group, "pull", _models_pull, "fetch a signed model from an OCI registry and import it", common)
    pull.add_argument("reference", help="host[:port]/repository:tag, or …@sha256:digest")
    pull.add_argument("--name", required=True, help="the name that callers will use")
    _registry_options(pull)
    push = _verb(group, "push", _models_push, "upload a model and its signature to an OCI registry", common)
    push.add_argument("name", help="the model's name in the store")
    push.add_argument("reference", help="host[:port]/repository:tag")
    _registry_options(push)
    export = _verb(group, "export", _models_export, "write a model and its signature into a new directory", common)
    export.add_argument("name", help="the model's name in the store")
    export.add_argument("directory", type=Path, help="where to; it must not exist, or be empty")
    _verb(group, "list", _models_list, "verify and list the models in the store", common)
    remove = _verb(group, "remove", _models_remove, "remove a model from the store", common)
    remove.add_argument("name", help="the name that callers used")
    _verb(group, "check", _models_check, "say what is missing from the store, and what does not belong there", common)
    gc = _verb(group, "gc", _models_gc, "delete what nothing in the store needs any more", common)
    gc.add_argument("--dry-run", action="store_true", help="delete nothing; say what would be")
    _catalogue_verbs(group, common)


def _catalogue_verbs(models: "_Verbs", common: argparse.ArgumentParser) -> None:
    group = _group(models, "catalogue", "the signed list of the models that may be loaded")
    sign = _verb(group, "sign", _catalogue_sign, "sign a catalogue")
    sign.add_argument("document", type=Path, help="JSON: version, expires_at_seconds, models")
    sign.add_argument("envelope", type=Path, help="where to write it; appliances read trust/catalogue.json")
    sign.add_argument("--key", type=Path, action="append", required=True, help="a private key; may be repeated")
    cosign = _verb(group, "cosign", _catalogue_cosign, "add a signature to a catalogue or a root")
    cosign.add_argument("envelope", type=Path, help="the signed catalogue or root")
    cosign.add_argument("target", type=Path, help="where to write it with the further signature")
    cosign.add_argument("--key", type=Path, required=True, help="the private key")
    root = _verb(group, "root", _catalogue_root, "hand the catalogue over to other keys")
    root.add_argument("envelope", type=Path, help="where to write it; read as trust/catalogue-roots/VERSION.json")
    root.add_argument("--version", type=int, required=True, help="one more than the last; the first is 1")
    root.add_argument("--trust", type=Path, action="append", required=True, help="a public key; may be repeated")
    root.add_argument("--required", type=int, default=1, help="how many of them must sign (default: %(default)s)")
    root.add_argument("--days", type=_at_least_one, default=365, help="until it expires (default: %(default)s)")
    root.add_argument(
        "--key", type=Path, action="append", required=True, help="a private key, of the last keys or the new; repeat"
    )
    _verb(group, "show", _catalogue_show, "verify and show the catalogue", common)


def _at_least_one(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number, 1 or more")
    return number


def _registry_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--credentials", type=Path, help="a file of mode 600 with user:secret")
    parser.add_argument("--ca", type=Path, help="the only certificate authority to believe, PEM (default: the host's)")
    parser.add_argument(
        "--auth-origin",
        action="append",
        default=[],
        metavar="URL",
        help="an origin beside the registry's own that may see the credential; may be repeated",
    )


def _audit_verbs(verbs: "_Verbs", common: argparse.ArgumentParser) -> None:
    group = _group(verbs, "audit", "the audit log")
    verify = _verb(group, "verify", _audit_verify, "verify a log, or a copy of one, offline")
    verify.add_argument("directory", type=Path, help="the log: notary/log of the state directory, or a copy of it")
    verify.add_argument("--vkey", help="the log's verifier key, or a file that holds it, from a source you trust")
    verify.add_argument(
        "--checkpoint", type=Path, help="an older checkpoint that you hold: nothing before it may differ"
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def _sandbox_verbs(verbs: "_Verbs", common: argparse.ArgumentParser) -> None:
    group = _group(verbs, "sandbox", "the runner's sandbox")
    probe = _verb(group, "probe", _sandbox_probe, "try the forbidden things inside live runners", common)
    probe.add_argument("--json", action="store_true", help="print one JSON object instead of text")


# --- the commands ---------------------------------------------------------------------------------------------------


def _demo(options: argparse.Namespace) -> int:
    from appliance.cli import demo

    return demo.run(as_json=options.json)


def _init(options: argparse.Namespace) -> int:
    from appliance.cli.init import initialise

    config = settings.load(options.config)
    for line in initialise(config):
        print(line)
    print(
        f"ready in {config.state_dir}. Next: trust a signer, import a model, and say in policy/data.json who may use it"
    )
    return 0


def _serve(options: argparse.Namespace) -> int:
    from appliance.cli.init import require_initialised
    from appliance.cli.supervisor import supervise

    config = settings.load(options.config)  # so that a mistake is told once, not by three processes
    try:
        require_initialised(config)
    except Misconfigured as error:
        print(f"paddock serve: {error}", file=sys.stderr)
        return roles.EXIT_CONFIG
    log_to_stderr("%(asctime)s serve %(levelname)s: %(message)s")
    return asyncio.run(supervise(options.config, config.state_dir, with_liaison=bool(config.issuer)))


def _status(options: argparse.Namespace) -> int:
    from appliance.cli import status

    return status.show(settings.load(options.config), as_json=options.json)


def _check_config(options: argparse.Namespace) -> int:
    config = settings.load(options.config)
    print(json.dumps(json.loads(config.effective()), indent=2))
    print(config.digest())
    return 0


def _role(options: argparse.Namespace) -> int:
    return roles.run(options.role, options.config, options.parent, dict(options.beside))


def _token_issue(options: argparse.Namespace) -> int:
    from appliance.cli import tokens

    token = tokens.issue(
        settings.load(options.config),
        subject=options.sub,
        client_id=options.client,
        groups=options.group,
        models=options.model,
        ttl_seconds=options.ttl,
    )
    print(token)
    return 0


def _models_keygen(options: argparse.Namespace) -> int:
    from appliance.cli import models

    print(models.keygen(options.private, options.public))
    return 0


def _models_trust(options: argparse.Namespace) -> int:
    from appliance.cli import models

    print(models.trust(settings.load(options.config), options.public, options.signer))
    return 0


def _models_sign(options: argparse.Namespace) -> int:
    from appliance.cli import models

    bundle = options.bundle or models.beside(options.model)
    print(models.sign(options.model, options.key, bundle, chain_path=options.chain, in_shards=options.shards))
    return 0


def _models_import(options: argparse.Namespace) -> int:
    from appliance.cli import models

    print(models.import_model(settings.load(options.config), options.model, options.bundle or [], options.name))
    return 0


def _models_pull(options: argparse.Namespace) -> int:
    from appliance.cli import transfer

    config = settings.load(options.config)
    print(transfer.pull(config, options.reference, options.name, _registry_access(config, options)))
    return 0


def _models_push(options: argparse.Namespace) -> int:
    from appliance.cli import transfer

    config = settings.load(options.config)
    print(transfer.push(config, options.name, options.reference, _registry_access(config, options)))
    return 0


def _registry_access(config: settings.Settings, options: argparse.Namespace) -> "Access":
    from appliance.cli import transfer

    return transfer.access(
        config, ca=options.ca, credentials=options.credentials, auth_origins=tuple(options.auth_origin)
    )


def _models_export(options: argparse.Namespace) -> int:
    from appliance.cli import transfer

    print(transfer.export(settings.load(options.config), options.name, options.directory))
    return 0


def _models_list(options: argparse.Namespace) -> int:
    from appliance.cli import models

    lines, good = models.listing(settings.load(options.config))
    for line in lines or ["no models: see 'paddock models import'"]:
        print(line)
    return 0 if good else 1


def _models_remove(options: argparse.Namespace) -> int:
    from appliance.cli import models

    print(models.remove(settings.load(options.config), options.name))
    return 0


def _models_check(options: argparse.Namespace) -> int:
    from appliance.cli import models

    lines = models.check(settings.load(options.config))
    for line in lines or ("nothing is missing, and nothing is there that should not be",):
        print(line)
    return 1 if lines else 0


def _models_gc(options: argparse.Namespace) -> int:
    from appliance.cli import models

    for line in models.collect_garbage(settings.load(options.config), dry_run=options.dry_run):
        print(line)
    return 0


def _catalogue_sign(options: argparse.Namespace) -> int:
    from appliance.cli import models

    print(models.catalogue_sign(options.document, options.key, options.envelope))
    return 0


def _catalogue_cosign(options: argparse.Namespace) -> int:
    from appliance.cli import models

    print(models.catalogue_cosign(options.envelope, options.key, options.target))
    return 0


def _catalogue_root(options: argparse.Namespace) -> int:
    from appliance.cli import models

    print(
        models.catalogue_root(
            options.envelope,
            options.key,
            options.trust,
            version=options.version,
            required=options.required,
            days=options.days,
        )
    )
    return 0


def _catalogue_show(options: argparse.Namespace) -> int:
    from appliance.cli import models

    for line in models.catalogue_show(settings.load(options.config)):
        print(line)
    return 0


def _audit_verify(options: argparse.Namespace) -> int:
    from appliance.cli import audit

    return audit.verify(options.directory, vkey=options.vkey, checkpoint=options.checkpoint, as_json=options.json)


def _sandbox_probe(options: argparse.Namespace) -> int:
    from appliance.cli import sandbox

    return sandbox.probe(settings.load(options.config), as_json=options.json)
