"""No mistake in the settings is passed over, and nothing but this one module asks the environment."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import settings
from appliance.core.forwarded import Trust, network
from appliance.core.memory import LoadOptions
from appliance.settings import Settings, SettingsInvalid, load, parse


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A home that is nobody's, and none of the names that the module reads."""
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/alice")
    return monkeypatch


def problems(document: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        parse(document)
    assert str(caught.value).splitlines() == caught.value.problems
    return caught.value.problems


def test_nothing_set_gives_the_defaults() -> None:
    assert parse({}) == Settings(
        state_dir=Path("/home/alice/.local/state/paddock"), runtime_dir=Path("/home/alice/.local/state/paddock/run")
    )


def test_all_problems_are_told_at_once_with_their_paths() -> None:
    found = problems(
        {
            "surprise": 1,
            "state_dir": "relative",
            "runtime_dir": 7,
            "gateway": {"listen_port": 70_000, "listenport": 1, "max_body_bytes": "big"},
            "identity": {"issuer": ""},
            "limits": {"budget_tokens": 0},
            "models": [],
            "sandbox": {"allow_degraded": "landlock", "enabled": False},
            "notary": {"log_origin": "Has Spaces"},
        }
    )
    assert [problem.partition(":")[0] for problem in sorted(found)] == [
        "gateway.listen_port",
        "gateway.listenport",
        "gateway.max_body_bytes",
        "identity.issuer",
        "limits.budget_tokens",
        "models",
        "notary.log_origin",
        "runtime_dir",
        "sandbox.allow_degraded",
        "sandbox.enabled",
        "state_dir",
        "surprise",
    ]


def _fields() -> list[tuple[str, str, Any]]:
    """Every setting: its table, its name and its type."""
    found = []
    for table in msgspec.structs.fields(Settings):
        if isinstance(table.type, type) and issubclass(table.type, msgspec.Struct):
            found += [(table.name, field.name, field) for field in msgspec.structs.fields(table.type)]
    return found


NUMBERS = [(table, field.name) for table, _name, field in _fields() if isinstance(field.default, int)]


@pytest.mark.parametrize(("table", "name"), NUMBERS)
@pytest.mark.parametrize("value", [-1, 2**40, True, 1.5, 1.0, "1", "", [], {}, [1]], ids=repr)
def test_number_out_of_range_or_of_another_type_is_refused(table: str, name: str, value: Any) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0 and _is_unbounded(table, name):
        return
    if (name, value) == ("keep_alive_seconds", -1):  # never
        return
    [problem] = problems({table: {name: value}})
    assert problem.startswith(f"{table}.{name}: ")


@pytest.mark.parametrize("value", [0, -1, 2**28 - 1, 2**46 + 1, True, 1.5, "1G", "unlimited"], ids=repr)
def test_memory_cannot_be_unlimited(value: Any) -> None:
    assert problems({"models": {"memory_bytes": value}})
    [problem] = problems({"models": {"runner_memory_bytes": value}})
    assert problem.startswith("models.runner_memory_bytes: ")


@pytest.mark.parametrize("value", ["off", "none", "never", "", False, None, 0], ids=repr)
def test_control_groups_can_only_be_asked_for(value: Any) -> None:
    [problem] = problems({"sandbox": {"cgroup": value}})
    assert problem.startswith("sandbox.cgroup: ")


def _is_unbounded(table: str, name: str) -> bool:
    """Rates and budgets have no upper bound: a large one is an operator's wish, not a mistake."""
    return table == "limits" and name != "budget_window_seconds"


@pytest.mark.parametrize(("table", "name"), NUMBERS)
def test_default_is_itself_a_valid_value(table: str, name: str) -> None:
    default = getattr(getattr(parse({}), table), name)
    assert parse({table: {name: default}}) == parse({})


def test_limit_carries_its_unit_in_its_name() -> None:
    units = ("_bytes", "_seconds", "_tokens", "_per_minute", "_port", "slots", "threads", "max_loaded", "requests")
    assert [name for _table, name in NUMBERS if not name.endswith(units)] == []


def test_no_setting_turns_a_protection_off() -> None:
    """Each boolean must be looked at here before it exists."""
    assert [name for _table, name, field in _fields() if field.type is bool or isinstance(field.default, bool)] == []
    words = ("disable", "enable", "insecure", "skip", "no_", "unsafe", "trust_", "allow_")
    assert [name for _table, name, _field in _fields() if name.startswith(words)] == ["allow_degraded"]


def test_no_setting_is_a_secret() -> None:
    secret = ("password", "secret", "token", "key", "credential")
    assert [name for _table, name, _field in _fields() if name.endswith(secret)] == []


# --- hosts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gateway", "hosts"),
    [
        ({}, {"127.0.0.1:11435", "localhost:11435"}),
        ({"listen_host": "192.0.2.7", "listen_port": 8443}, {"192.0.2.7:8443", "localhost:8443"}),
        ({"listen_host": "::1", "listen_port": 8443}, {"[::1]:8443", "localhost:8443"}),
        ({"listen_host": "127.0.0.1", "listen_port": 80}, {"127.0.0.1:80", "localhost:80", "127.0.0.1", "localhost"}),
        ({"listen_host": "Gate.Example", "listen_port": 1}, {"gate.example:1", "localhost:1"}),
        ({"allowed_hosts": ["Gate.Example", "b:1"]}, {"gate.example", "b:1"}),
    ],
)
def test_hosts_are_those_that_a_client_would_write(gateway: dict[str, Any], hosts: set[str]) -> None:
    """The guard compares in lower case, and a client writes an IPv6 address in brackets and leaves port 80 out."""
    assert parse({"gateway": gateway}).allowed_hosts == hosts


def listen(*tables: dict[str, Any], **gateway: Any) -> dict[str, Any]:
    return {"listen": list(tables), "gateway": gateway}


@pytest.mark.parametrize(
    ("document", "hosts"),
    [
        (listen({"host": "192.0.2.7", "port": 8443}), {"192.0.2.7:8443", "localhost:8443"}),
        (
            listen({"host": "::1", "port": 443, "tls": "/t"}, {"host": "127.0.0.1"}),
            {"[::1]:443", "[::1]", "localhost:443", "localhost", "127.0.0.1:11435", "localhost:11435"},
        ),
        (listen({"path": "/s"}, allowed_hosts=["Llm.example"]), {"llm.example"}),
    ],
)
def test_hosts_of_several_listeners_are_those_of_all(document: dict[str, Any], hosts: set[str]) -> None:
    assert parse(document).allowed_hosts == hosts


def test_listeners_are_what_is_written_and_nothing_else() -> None:
    one = parse(listen({"path": "/s", "trusted": ["unix", "10.0.0.0/8"]}, {"host": "::1"}, allowed_hosts=["h"]))
    assert [(each.path, each.host) for each in one.listeners] == [(Path("/s"), None), (None, "::1")]
    assert one.listen[0].trust == Trust(networks=(network("10.0.0.0/8"),), unix=True)
    assert [each.host for each in parse({"gateway": {"listen_host": "::1"}}).listeners] == ["::1"]
    assert parse({}).listeners[0].trust == Trust()


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"listen": {}}, "listen: must be an array of tables"),
        ({"listen": [1]}, "listen: must be an array of tables"),
        (listen({}), "listen[0]: must have one of host, path and inherited"),
        (listen({"host": "h", "path": "/s"}), "listen[0]: must have one of"),
        (listen({"host": "h", "surprise": 1}), "listen[0].surprise: unknown key"),
        (listen({"host": ""}), "listen[0].host: "),
        (listen({"host": "h", "port": 65536}), "listen[0].port: "),
        (listen({"path": "relative"}), "listen[0].path: "),
        (listen({"path": "/" + "s" * 107}), "listen[0]: path has more than the 107 bytes"),
        (listen({"path": "/s", "port": 1}), "listen[0]: port has no meaning here"),
        (listen({"host": "h", "mode": 0o600}), "listen[0]: mode has no meaning here"),
        (listen({"inherited": "x", "group": "g"}), "listen[0]: group has no meaning here"),
        (listen({"host": "h", "users": ["u"]}), "listen[0]: users has no meaning here"),
        (listen({"path": "/s", "mode": 0o666}), "listen[0]: mode lets everybody connect"),
        (listen({"path": "/s", "mode": 0o060}), "listen[0].mode: "),
        (listen({"path": "/s", "mode": 0o4660}), "listen[0].mode: "),
        (listen({"host": "h", "trusted": ["0.0.0.0/0"]}), "listen[0]: trusted: 0.0.0.0/0 is everybody"),
        (listen({"host": "h", "trusted": ["::/0"]}), "listen[0]: trusted: ::/0 is everybody"),
        (listen({"host": "h", "trusted": ["10.0.0.1/8"]}), "listen[0]: trusted: "),
        (listen({"host": "h", "trusted": ["proxy"]}), "listen[0]: trusted: "),
        (listen({"host": "h", "trusted": ["unix"]}), "listen[0]: trusted: nobody connects"),
        (listen({"host": "h", "proxy_protocol": True}), "listen[0]: proxy_protocol without trusted"),
        (listen({"host": "h", "client_certificates": "required"}), "listen[0]: client_certificates without tls"),
        (listen({"host": "h", "client_certificates": "maybe", "tls": "/t"}), "listen[0].client_certificates: "),
        (listen({"host": "h", "tls": "t"}), "listen[0].tls: "),
        (listen({"path": "/s"}), "gateway.allowed_hosts: must name"),
        (listen({"inherited": "a b"}), "listen[0].inherited: "),
        (listen({"inherited": "a"}, {"inherited": "a"}, allowed_hosts=["h"]), "listen: an inherited name occurs"),
        (listen({"host": "h"}, listen_port=1), "gateway.listen_port: has no meaning beside [[listen]]"),
        (listen({"host": "h"}, listen_host="h"), "gateway.listen_host: has no meaning beside [[listen]]"),
    ],
)
def test_listener_that_cannot_be_meant_is_refused(document: dict[str, Any], said: str) -> None:
    assert any(problem.startswith(said) for problem in problems(document)), problems(document)


def test_empty_listening_address_is_refused() -> None:
    """It would be every address of the machine."""
    assert problems({"gateway": {"listen_host": ""}})


# --- the file -------------------------------------------------------------------------------------------------------


def test_file_is_read_once_and_strictly(tmp_path: Path) -> None:
    path = tmp_path / "paddock.toml"
    path.write_text('state_dir = "/srv/paddock"\n[gateway]\nlisten_port = 8443\n', encoding="utf-8")
    assert load(path).state_dir == Path("/srv/paddock")
    assert load(path).gateway.listen_port == 8443


@pytest.mark.parametrize(
    "data",
    [
        b"listen_port = ",
        b"[gateway]\n[gateway]\n",
        b"a = 1\na = 2\n",
        b"\xff",
        b"[gateway]\nlisten_port = 1\nlisten_port = 2\n",
    ],
)
def test_file_that_is_no_toml_is_refused_with_its_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "paddock.toml"
    path.write_bytes(data)
    with pytest.raises(SettingsInvalid, match=str(path)):
        load(path)


@pytest.mark.parametrize("name", ["absent.toml", "."])
def test_file_that_cannot_be_read_is_refused_and_not_taken_for_empty(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsInvalid):
        load(tmp_path / name)


def test_system_wide_file_is_read_when_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "paddock.toml"
    monkeypatch.setattr(settings, "_DEFAULT_FILE", path)
    assert load() == parse({})
    path.write_text("surprise = 1\n", encoding="utf-8")
    with pytest.raises(SettingsInvalid, match="surprise"):
        load()


def test_effective_values_are_canonical_and_their_digest_follows_every_change() -> None:
    one = parse({})
    document = json.loads(one.effective())
    assert one.effective() == json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    assert document["state_dir"] == "/home/alice/.local/state/paddock"
    assert set(document["gateway"]) == {field.name for field in msgspec.structs.fields(settings.GatewaySettings)}
    assert parse({}).digest() == one.digest()
    assert parse({"limits": {"budget_tokens": 5}}).digest() != one.digest()


def test_directories_hang_together() -> None:
    one = parse({"state_dir": "/s", "runtime_dir": "/r"})
    assert {str(path) for path in (one.notary_dir, one.public_dir, one.models_dir, one.trust_dir, one.policy_dir)} == {
        f"/s/{name}" for name in ("notary", "public", "models", "trust", "policy")
    }
    assert {path.parent for path in (one.notary_socket, one.admin_socket, one.warden_socket)} == {Path("/r")}


# --- the environment ------------------------------------------------------------------------------------------------


def test_base_directories_are_followed(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("XDG_STATE_HOME", "/x/state")
    environment.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    one = parse({})
    assert (one.state_dir, one.runtime_dir) == (Path("/x/state/paddock"), Path("/run/user/7/paddock"))
    assert parse({"state_dir": "/own"}).state_dir == Path("/own")


def test_relative_base_directory_is_refused(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("XDG_STATE_HOME", "state")
    assert any("absolute" in problem for problem in problems({}))


def test_no_home_is_not_the_working_directory(environment: pytest.MonkeyPatch) -> None:
    environment.delenv("HOME")
    assert parse({}).state_dir == Path("/nonexistent/.local/state/paddock")


def test_no_variable_sets_a_value(environment: pytest.MonkeyPatch) -> None:
    for name in ("PADDOCK_LISTEN_PORT", "PADDOCK_GATEWAY__LISTEN_PORT", "RATELIMIT_ENABLED", "ALLOW_DEGRADED", "DEBUG"):
        environment.setenv(name, "1")
    assert parse({}) == parse({})
    assert parse({}).digest() == Settings(state_dir=parse({}).state_dir, runtime_dir=parse({}).runtime_dir).digest()


@pytest.mark.parametrize(
    ("pid", "count", "expected"),
    [
        ("own", "2", 2),
        ("own", "0", 0),
        ("own", "", 0),
        ("own", "-1", 0),
        ("own", "x", 0),
        ("own", "\u0662", 0),
        ("own", "1000", 0),
        ("1", "2", 0),
        (None, "2", 0),
        ("", "2", 0),
    ],
)
def test_listeners_of_another_process_are_not_ours(
    environment: pytest.MonkeyPatch, pid: str | None, count: str, expected: int
) -> None:
    if pid is not None:
        environment.setenv("LISTEN_PID", str(os.getpid()) if pid == "own" else pid)
    environment.setenv("LISTEN_FDS", count)
    environment.setenv("LISTEN_FDNAMES", "a:b:c")
    assert settings.inherited_listeners() == expected
    assert settings.inherited_listener_names() == ("a", "b", "c")[:expected]


def test_listeners_without_names_have_that_of_the_manual(environment: pytest.MonkeyPatch) -> None:
    """sd_listen_fds_with_names(3)."""
    environment.setenv("LISTEN_PID", str(os.getpid()))
    environment.setenv("LISTEN_FDS", "2")
    assert settings.inherited_listener_names() == ("unknown", "unknown")


def test_children_inherit_nothing_but_where_things_are(environment: pytest.MonkeyPatch) -> None:
    for name in ("LD_PRELOAD", "PYTHONPATH", "AWS_SECRET_ACCESS_KEY", "LISTEN_FDS", "http_proxy"):
        environment.setenv(name, "x")
    assert set(settings.child_environment()) <= {"PATH", "HOME", "LANG", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "TMPDIR"}


def test_model_of_a_name_has_what_its_table_says_and_the_rest_as_all() -> None:
    found = parse(
        {
            "models": {"context_tokens": 8192, "slots": 2, "kv_type": "q8_0", "keep_alive_seconds": 60},
            "model": {"qwen3:0.6b": {"slots": 8, "keep_alive_seconds": 0}, "b": {"kv_type": "q4_0"}},
        }
    )
    assert found.load_options("qwen3:0.6b") == LoadOptions(
        context_tokens=8192, slots=8, kv_type="q8_0", keep_alive_seconds=0
    )
    assert found.load_options("b") == LoadOptions(context_tokens=8192, slots=2, kv_type="q4_0", keep_alive_seconds=60)
    assert found.load_options("another") == LoadOptions(
        context_tokens=8192, slots=2, kv_type="q8_0", keep_alive_seconds=60
    )
    assert b"qwen3:0.6b" in found.effective()


def test_speculation_is_off_unless_it_is_asked_for() -> None:
    tables = {"a": {"speculation": "draft", "draft": "small"}, "b": {"speculation": "off"}}
    assert parse({}).load_options("a").speculation == "off"
    found = parse({"models": {"speculation": "lookup"}, "model": tables})
    assert [found.load_options(name).speculation for name in ("a", "b", "c")] == ["draft", "off", "lookup"]
    with pytest.raises(SettingsInvalid, match=r"models\.speculation"):
        parse({"models": {"speculation": "on"}})


def test_mistakes_in_the_tables_of_models_are_told_at_once() -> None:
    found = problems(
        {
            "models": {"memory_bytes": 1, "keep_alive_seconds": -2},
            "model": {
                "a.b": {"context_tokens": 1, "slots": 65, "kv_type": "q5_1", "keep_alive_seconds": -2, "threads": 2},
                "slots": 4,
            },
        }
    )
    assert [problem.partition(": ")[0] for problem in sorted(found)] == [
        'model."a.b".context_tokens',
        'model."a.b".keep_alive_seconds',
        'model."a.b".kv_type',
        'model."a.b".slots',
        'model."a.b".threads',
        'model."slots"',
        "models.keep_alive_seconds",
        "models.memory_bytes",
    ]
    assert problems({"model": []}) == ["model: must be a table of tables"]
    assert problems({"model": {"": {"slots": 1}}}) == ['model."": must have a name']


def test_adapters_and_served_names_are_settings_of_a_name() -> None:
    found = parse(
        {
            "model": {
                "bot": {"base": "qwen3:0.6b", "adapters": [{"name": "style:latest", "scale": 0.5}], "slots": 2},
                "qwen3:0.6b": {"adapters": [{"name": "tone"}]},
            }
        }
    )
    assert found.model["bot"].base == "qwen3:0.6b"
    assert [(one.name, one.scale_thousandths) for one in found.model["bot"].adapters] == [("style:latest", 500)]
    assert [one.scale_thousandths for one in found.model["qwen3:0.6b"].adapters] == [1000]
    assert found.load_options("bot").slots == 2


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"adapters": [{"name": "x", "scale": float("nan")}]}, "adapters"),
        ({"adapters": [{"name": "x", "scale": float("inf")}]}, "adapters"),
        ({"adapters": [{"name": "x", "scale": -0.5}]}, "adapters"),
        ({"adapters": [{"name": "x", "scale": 4.001}]}, "adapters"),
        ({"adapters": [{"name": "x", "scale": 0.0005}]}, "adapters"),
        ({"adapters": [{"name": "../x"}]}, "adapters"),
        ({"adapters": [{"scale": 1.0}]}, "adapters"),
        ({"adapters": [{"name": "x", "path": "/x"}]}, "adapters"),
        ({"adapters": [{"name": f"x{number}"} for number in range(9)]}, "adapters"),
        ({"adapters": [{"name": "x"}, {"name": "x", "scale": 0.5}]}, "adapters"),
        ({"base": "../x"}, "base"),
        ({"base": "bot"}, "base"),
        ({"draft": "small"}, "draft"),
        ({"draft": "small", "speculation": "lookup"}, "draft"),
        ({"draft": "../small"}, "draft"),
        ({"speculation": "draft"}, "draft"),
    ],
)
def test_no_companion_is_set_wrongly(table: dict[str, object], problem: str) -> None:
    [said] = problems({"model": {"bot": table}})
    assert said.startswith(f'model."bot".{problem}: ')


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"base": "other"}, "base"),
        ({"draft": "other", "speculation": "draft"}, "draft"),
        ({"adapters": [{"name": "style"}, {"name": "other"}]}, "adapters"),
    ],
)
def test_nothing_stands_on_a_name_that_only_the_settings_have(table: dict[str, object], problem: str) -> None:
    [said] = problems({"model": {"bot": table, "other": {"base": "qwen3"}}})
    assert said.startswith(f'model."bot".{problem}: ')


def test_no_name_is_served_that_no_store_could_have() -> None:
    [said] = problems({"model": {"The Bot": {"base": "qwen3"}}})
    assert said.startswith('model."The Bot".base: ')


def test_draft_model_is_set_where_it_is_asked_for() -> None:
    found = parse({"model": {"bot": {"draft": "small", "speculation": "draft"}}})
    assert (found.model["bot"].draft, found.load_options("bot").speculation) == ("small", "draft")
    [said] = problems({"models": {"speculation": "draft"}})
    assert said.startswith("models.speculation: ")
