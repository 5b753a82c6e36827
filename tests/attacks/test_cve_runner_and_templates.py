"""Templates, requests and the runner's process: what took over others is tried through the doors that callers have."""

import ctypes
import importlib.util
import json
import os
import random
import re
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from msgspec import structs

from appliance.core.catalogue import Catalogue, CatalogueEntry, decode_catalogue, encode_catalogue
from appliance.core.gguf import parse_header
from appliance.core.refusals import Reason, Refused
from appliance.core.values import Digest, Message
from appliance.gateway.surfaces.openai.chat import ChatSurface
from appliance.ipc.frames import FrameDecoder, FrameError, encode
from appliance.ipc.messages import Cancel, Conversation, FromRunner, Load, LoadFailed, Reset, ResetDone, ToRunner
from appliance.ipc.validation import Facts, decode_answer, encode_answer
from appliance.runner.chat.template import ChatTemplate
from appliance.runner.main import EXIT_LOAD_FAILED
from appliance.sandbox import bpf, seccomp
from appliance.sandbox.syscalls import X86_64
from tests.support.appliance import TestAppliance, appliance
from tests.support.bpf_machine import run, seccomp_data
from tests.support.chain_model import chain_model
from tests.support.gguf_files import STRING, small_model
from tests.support.live_runner import inner_pid, launched, load, within_limit
from tests.support.made_values import model as made_model
from tests.support.rendering import rendered
from tests.support.runner_client import TIMEOUT_SECONDS, sandboxed_runner

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into a non-dumpable process")
SOUND_LOAD = Load(runner_id="r", context_tokens=256, slots=1, threads=1)
ADDRESS = re.compile(rb"0x[0-9a-fA-F]{6,}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("attacks"), {"chain": chain_model()}) as one:
        yield one


# --- templates --------------------------------------------------------------------------------------------------------

CANARY = "{canary}"
PLAIN = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}"
TEMPLATES = {
    "subclasses of object": (
        "{% for c in [].__class__.__base__.__subclasses__() %}{% if c.__name__ == 'catch_warnings' %}"
        "{{ c()._module.__builtins__['__import__']('os').system('touch {canary}') }}{% endif %}{% endfor %}",
        "SecurityError",
    ),
    "subclasses of a dict that it made": ("{{ dict(a=1).__class__.__base__.__subclasses__() }}", "SecurityError"),
    "attr filter": (
        "{{ (''|attr('__class__')|attr('__mro__')|last)|attr('__subclasses__')() }}",
        "has no attribute '__subclasses__'",
    ),
    "attr filter with escaped underscores": ("{{ (''|attr('\\x5f\\x5fclass\\x5f\\x5f')).mro() }}", "SecurityError"),
    "map filter that looks up": ("{{ messages | map(attribute='__class__.__mro__') | list }}", "SecurityError"),
    "format": ("{{ '{0.__class__.__init__.__globals__[os]}'.format(raise_exception) }}", "SecurityError"),
    "format_map": ("{{ '{x.__class__.__mro__[1]}'.format_map({'x': messages}) }}", "SecurityError"),
    "format kept in a variable": (
        "{% set f = '{0.__class__.__init__.__globals__}'.format %}{{ f(raise_exception) }}",
        "SecurityError",
    ),
    "lipsum.__globals__": ("{{ lipsum.__globals__['os'].system('touch {canary}') }}", "'lipsum' is undefined"),
    "cycler.__init__.__globals__": ("{{ cycler.__init__.__globals__.os }}", "SecurityError"),
    "joiner.__init__.__globals__": ("{{ joiner.__init__.__globals__.os }}", "SecurityError"),
    "self": (
        "{{ self._TemplateReference__context.cycler.__init__.__globals__.os.popen('touch {canary}').read() }}",
        "SecurityError",
    ),
    "globals of a function that it is given": (
        "{{ raise_exception.__globals__['os'].system('touch {canary}') }}",
        "SecurityError",
    ),
    "include": ("{% include '{canary}' %}", "no loader"),
    "import": ("{% import '{canary}' as x %}", "no loader"),
    "change of the messages": ("{{ messages.append(messages[0]) }}", "SecurityError"),
    "range of 1e9": ("{% for a in range(1000000000) %}{% endfor %}", "OverflowError"),
    "recursive macro": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "two macros in a cycle": (
        "{% macro f(g) %}{{ g(f) }}{% endmacro %}{% macro h(g) %}{{ g(h) }}{% endmacro %}{{ f(h) }}",
        "RecursionError",
    ),
    "loop over itself": ("{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}", "RecursionError"),
    "value that holds itself": (
        "{% set ns = namespace() %}{% set ns.me = [ns] %}{{ ns.me | tojson }}",
        "not JSON serializable",
    ),
    "text that doubles": (
        "{% set ns = namespace(x='x') %}{% for a in range(24) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "more than 1000000 characters",
    ),
    "many small texts": (
        "{% for a in range(50000) %}{% for b in range(2) %}xxxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "more than 1000000 characters",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_cve_2024_34359_and_2026_5760_template_of_a_model_gains_nothing(tmp_path: Path, name: str) -> None:
    """In the real runner, from the model's own file: not served, for the reason that is meant, and without effect."""
    source, why = TEMPLATES[name]
    canary = tmp_path / "canary"
    model = chain_model("a b c", template=source.replace(CANARY, str(canary)) + PLAIN, dim=64)
    with sandboxed_runner(model, context_tokens=256, expect=LoadFailed) as runner:
        assert runner.first.reason == "template-invalid"
        assert why in runner.first.detail
        assert not ADDRESS.search(runner.first.detail.encode())
        assert runner.process.wait(TIMEOUT_SECONDS) == EXIT_LOAD_FAILED
    assert not canary.exists()


def test_cve_2024_34359_template_that_waits_for_a_second_message_gains_nothing(tmp_path: Path) -> None:
    """Sound with the one message that a load tries; then refused for the request, and the runner goes on."""
    canary = tmp_path / "canary"
    attack = TEMPLATES["subclasses of object"][0].replace(CANARY, str(canary))
    model = chain_model("a b c", template="{% if messages|length > 1 %}" + attack + "{% endif %}" + PLAIN, dim=64)
    with sandboxed_runner(model, context_tokens=256) as runner:
        two = [Message(role="user", content="x"), Message(role="assistant", content="y")]
        refused = runner.ask(two).refused
        assert refused is not None and refused.reason == "field-invalid"
        assert runner.ask("x").text == "a b c"
    assert not canary.exists()


@pytest.mark.parametrize(
    "source",
    [
        "{{ '{0.__globals__}'.format(raise_exception) }}",
        "{{ '{x.__globals__}'.format_map({'x': raise_exception}) }}",
        "{{ ('{0.__globals__}'|string).format(strftime_now) }}",
        "{{ ''|attr('__class__') }}{{ messages|attr('__class__') }}",
        "{{ '' | attr('format') | attr('__self__') }}",
    ],
)
def test_cve_2024_34359_attribute_that_is_not_given_is_nothing(source: str) -> None:
    hello = Conversation(messages=(Message(role="user", content="hello"),))
    parts = rendered(ChatTemplate(source + PLAIN, bos_text="", eos_text=""), hello)
    assert "".join(part.text for part in parts) == "userhello"


SPINNING = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DEADLINES = """\
runner_silence_seconds = 5
[models]
load_timeout_seconds = 10
max_loaded = 3
[limits]
address_requests_per_minute = 100_000
principal_requests_per_minute = 100_000
"""


@pytest.mark.slow
def test_cve_2024_34359_template_that_never_ends_costs_its_own_callers_only(tmp_path: Path) -> None:
    """At load and at a request: each is cut when its time is over; the sound model answers meanwhile."""
    models = {
        "chain": chain_model(),
        "at-load": chain_model("a b c", template=SPINNING + PLAIN, dim=64),
        "at-request": chain_model(
            "a b c", template="{% if messages|length > 1 %}" + SPINNING + "{% endif %}" + PLAIN, dim=64
        ),
    }
    two = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}]
    (tmp_path / "a").mkdir()
    with appliance(tmp_path / "a", models, DEADLINES) as one, ThreadPoolExecutor(2) as callers:
        token = one.token()
        assert one.chat(token, max_tokens=2).status == 200
        assert one.chat(token, model="at-request", max_tokens=2).status == 200
        body = {"model": "at-request", "messages": two}
        asked = [
            callers.submit(one.chat, token, model="at-load"),
            callers.submit(one.request, "POST", "/v1/chat/completions", token=token, body=body),
        ]
        while not all(future.done() for future in asked):
            assert one.chat(token, max_tokens=2).status == 200
        answers = [future.result() for future in asked]
        assert [answer.status for answer in answers] == [503, 400]
        assert answers[1].json()["error"]["code"] == "field-invalid"
        assert one.chat(token, model="at-request", max_tokens=2).status == 200
        assert one.chat(token, max_tokens=2).status == 200


@pytest.mark.parametrize("field", ["chat_template", "chat_template_kwargs", "template", "prompt_template", "documents",
                                   "add_generation_prompt", "continue_final_message"])  # fmt: skip
def test_cve_2026_5760_template_in_a_request_is_refused(server: TestAppliance, field: str) -> None:
    answer = server.chat(server.token(), **{field: "{{ ''.__class__ }}"})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "field-unknown")


def test_cve_2024_34359_catalogue_names_the_template_that_may_be_run() -> None:
    """Of the model's own file, as the validator reads it; another is refused although the rest is listed."""
    entry = CatalogueEntry(
        name="demo",
        version=1,
        digest=Digest.of(b"demo"),
        signer="release",
        minimum_seal="ro-store",
        expires_at_seconds=2000,
        chat_template_digest=Digest.of(PLAIN.encode()),
    )
    catalogue = decode_catalogue(encode_catalogue(Catalogue(version=1, expires_at_seconds=2000, models=(entry,))))

    def permit(template: str | None) -> None:
        gguf = small_model()
        gguf.drop("tokenizer.chat_template")
        if template is not None:
            gguf.set("tokenizer.chat_template", STRING, template)
        data = gguf.build()
        facts = decode_answer(encode_answer(Facts(facts=parse_header(data, len(data))))).facts  # type: ignore[union-attr]
        catalogue.permits(structs.replace(made_model(), facts=facts), "sealed-memfd", now_seconds=1000)

    permit(PLAIN)
    for other in (None, "", PLAIN + " ", TEMPLATES["format"][0] + PLAIN):
        with pytest.raises(Refused) as caught:
            permit(other)
        assert caught.value.reason is Reason.MODEL_NOT_VERIFIED
        assert caught.value.detail.startswith("catalogue-template")


def test_catalogue_that_names_no_template_trusts_the_digest_of_the_model() -> None:
    digest = Digest.of(b"demo")
    entry = CatalogueEntry(
        name="demo", version=1, digest=digest, signer="release", minimum_seal="ro-store", expires_at_seconds=2000
    )
    catalogue = Catalogue(version=1, expires_at_seconds=2000, models=(entry,))
    catalogue.permits(made_model(), "sealed-memfd", now_seconds=1000)
    with pytest.raises(Refused, match="catalogue-digest"):
        catalogue.permits(made_model(digest=Digest.of(b"other")), "sealed-memfd", now_seconds=1000)


# --- what the gateway holds in memory ---------------------------------------------------------------------------------


def test_cve_2026_7482_what_one_caller_wrote_is_in_no_other_answer_and_in_no_file(server: TestAppliance) -> None:
    """Bleeding Llama pushed heap memory into a stored model. A canary passes through every part that holds requests.

    (A refusal's record names an unknown field or model, on purpose; what stands in a field is in no record.)
    """
    canary = f"canary-{os.urandom(16).hex()}"
    mine = server.token("carol")
    for fields in ({}, {"stream": True}):
        assert server.chat(mine, canary, max_tokens=4, **fields).status == 200
    server.chat(canary, "hello")
    server.request("POST", "/v1/chat/completions", token=mine, body={"unknown": canary})
    server.request("GET", f"/{canary}", token=mine)

    others = server.token("mallory")
    body = {"model": "chain", "messages": [{"role": "user", "content": 7}]}
    answers = [
        server.chat(others, max_tokens=64),
        server.chat(others, max_tokens=64, stream=True),
        server.chat(others, "x" * 4096, max_tokens=4),
        server.chat(others, model="absent"),
        server.chat(None),
        server.chat("x" * 200),
        server.request("GET", "/v1/models", token=others),
        server.request("POST", "/v1/chat/completions", token=others, body=body),
        server.request("POST", "/v1/chat/completions", token=others, body=b"{" * 1000),
        server.request("GET", "/absent", token=others),
    ]
    for answer in answers:
        assert canary.encode() not in answer.body
        assert canary not in str(answer.headers)
    files = [path for path in server.directory.rglob("*") if path.is_file()]
    assert server.blob_of("chain") in files
    assert [path for path in files if canary.encode() in path.read_bytes()] == []


# --- numbers and grammars ---------------------------------------------------------------------------------------------

NUMBERS = (
    "max_tokens",
    "max_completion_tokens",
    "temperature",
    "top_p",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "n",
    "top_logprobs",
    "top_k",
    "min_p",
    "typical_p",
    "repeat_penalty",
    "repetition_penalty",
    "repeat_last_n",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
HOSTILE_NUMBERS = (
    b"-1", b"2147483648e9", b"9223372036854775808", b"-9223372036854775809", b"18446744073709551616", b"1e309",
    b"-1e309",
    b"NaN", b"Infinity", b"true", b"\"1\"", b"[1]", b"{}", b"1.5e400", b"0x10", b"01",
)  # fmt: skip


@pytest.mark.parametrize("field", NUMBERS)
def test_cve_2025_52566_and_2026_21869_number_out_of_range_is_refused(field: str) -> None:
    signed = {"presence_penalty", "frequency_penalty", "top_k"}
    for raw in HOSTILE_NUMBERS:
        if raw == b"-1" and field in signed:
            continue
        body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"%s":%s}' % (field.encode(), raw)
        with pytest.raises(Refused) as caught:
            ChatSurface().decode(body)
        assert caught.value.reason in {Reason.FIELD_INVALID, Reason.JSON_INVALID}, (field, raw)


@pytest.mark.parametrize("field", ["n_discard", "n_keep", "n_predict", "cache_prompt", "id_slot", "penalty_last_n",
                                   "samplers", "lora", "rope_freq_base", "prompt"])  # fmt: skip
def test_cve_2026_21869_field_of_the_engine_is_unknown(server: TestAppliance, field: str) -> None:
    answer = server.chat(server.token(), **{field: -1})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "field-unknown")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grammar", "root ::= " + "(" * 100_000 + ")" * 100_000),
        ("guided_json", {"type": "object"}),
        ("guided_regex", "(a+)+$"),
        ("json_schema", {"$ref": "#"}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"pattern": "(a+)+$"}}}),
        ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#"}}}),
        ("response_format", {"type": "grammar", "grammar": 'root ::= "a"'}),
        ("tools", [{"type": "function", "function": {"name": "x", "parameters": {"pattern": "((a*)*)*"}}}]),
    ],
)
def test_llama_cpp_22234_and_cve_2025_48944_hostile_grammar_schema_and_tools_are_refused(
    server: TestAppliance, field: str, value: object
) -> None:
    """A schema that is ignored in silence would be as bad as one that kills whoever compiles it."""
    answer = server.chat(server.token(), **{field: value})
    assert answer.status == 400
    assert answer.json()["error"]["code"] in {"field-unknown", "field-invalid"}
    assert server.chat(server.token(), max_tokens=2).status == 200


def test_cve_2025_52566_prompt_longer_than_any_int_is_refused_by_its_bytes(server: TestAppliance) -> None:
    answer = server.chat(server.token(), "x" * (300 * 1024))
    assert answer.status in {400, 413}
    assert server.chat(server.token(), max_tokens=2).status == 200


# --- media ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file", "image"])
def test_cve_2026_22778_media_is_refused_and_no_address_is_told(server: TestAppliance, kind: str) -> None:
    part = {"type": kind, kind: {"url": "data:image/jp2;base64," + "A" * 4000, "data": "AAAA", "format": "wav"}}
    body = {"model": "chain", "messages": [{"role": "user", "content": [part]}]}
    answer = server.request("POST", "/v1/chat/completions", token=server.token(), body=body)
    assert answer.status in {400, 415}
    assert not ADDRESS.search(answer.body)
    assert b"Traceback" not in answer.body


# --- the existence and the deletion of models -------------------------------------------------------------------------


def test_cve_2024_39719_and_39722_absent_and_hidden_models_are_told_alike(server: TestAppliance) -> None:
    narrow = server.token("mallory", groups=(), models=("nothing",))
    answers = [
        server.request("GET", f"/v1/models/{name}", token=narrow) for name in ("chain", "absent", "..%2f..%2fetc")
    ]
    assert {answer.status for answer in answers} <= {400, 403, 404}
    shapes = {(answer.status, json.dumps(answer.json()["error"].get("code"))) for answer in answers[:2]}
    assert len(shapes) == 1
    for answer in answers:
        assert str(server.directory).encode() not in answer.body
        assert not ADDRESS.search(answer.body)


@pytest.mark.parametrize("method", ["DELETE", "PUT", "PATCH", "POST"])
def test_cve_2025_44779_model_cannot_be_deleted_or_changed_through_the_api(server: TestAppliance, method: str) -> None:
    assert server.request(method, "/v1/models/chain").status == 401
    assert server.request(method, "/v1/models/chain", token=server.token()).status in {404, 405}
    assert server.blob_of("chain").exists()


# --- the runner's process ---------------------------------------------------------------------------------------------


def _engine_libraries() -> list[Path]:
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None and spec.origin is not None
    return sorted((Path(spec.origin).parent / "lib").glob("*.so*"))


def test_cve_2024_42477_engine_has_no_rpc_backend() -> None:
    libraries = _engine_libraries()
    assert libraries
    assert [path.name for path in libraries if "rpc" in path.name] == []
    for path in libraries:
        data = path.read_bytes()
        assert b"ggml_backend_rpc" not in data, path.name
        assert b"rpc_server" not in data, path.name
    base = ctypes.CDLL(str(next(path for path in libraries if path.name.startswith("libggml-base.so"))))
    assert not hasattr(base, "ggml_backend_rpc_init")


@as_root
def test_cve_2024_42478_and_42479_runner_listens_on_nothing_and_reaches_nobody() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            first = await load(runner)
            if isinstance(first, LoadFailed) and first.reason == "layer-missing":
                pytest.skip(first.detail)
            net = Path(f"/proc/{inner_pid(runner)}/net")
            for table in ("tcp", "tcp6", "udp", "udp6", "raw", "packet", "netlink"):
                path = net / table
                lines = path.read_text().splitlines()[1:] if path.exists() else []
                # the kernel keeps netlink sockets of its own in each namespace: their process is 0
                assert [line for line in lines if table != "netlink" or line.split()[2] != "0"] == [], table
            devices = (net / "dev").read_text().splitlines()[2:]
            assert {line.split(":")[0].strip() for line in devices} <= {"lo", "sit0", "tunl0", "ip6tnl0", "gre0"}

    within_limit(scenario)


@as_root
def test_cve_2025_23319_channel_has_no_name_and_no_memory_is_shared() -> None:
    """Triton told its shared memory's name in an error; here there is neither a name nor such memory to attach to."""

    async def scenario() -> None:
        before = set(os.listdir("/dev/shm"))
        async with launched() as runner:
            first = await load(runner)
            if isinstance(first, LoadFailed) and first.reason == "layer-missing":
                pytest.skip(first.detail)
            assert set(os.listdir("/dev/shm")) <= before
            pid = inner_pid(runner)
            inodes = {
                match.group(1)
                for name in os.listdir(f"/proc/{pid}/fd")
                if (match := re.fullmatch(r"socket:\[(\d+)\]", os.readlink(f"/proc/{pid}/fd/{name}")))
            }
            assert len(inodes) >= 1
            for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
                fields = line.split()
                assert fields[6] not in inodes or len(fields) == 7, f"a socket with a name: {line}"
            assert "SYSV" not in Path(f"/proc/{pid}/maps").read_text()
            assert "/dev/shm" not in Path(f"/proc/{pid}/maps").read_text()

    within_limit(scenario)


@pytest.mark.parametrize("stage", ["stage1", "stage2", "validate"])
def test_cve_2019_10063_every_argument_is_compared_in_all_its_bits(stage: seccomp.Stage) -> None:
    """Flatpak's filter compared 32 of 64 bits. Each condition holds, then a bit of its high word is set."""
    policy = seccomp.load_policy(stage)
    program = bpf.compile_policy(policy, {"pid": 1})
    tried = 0
    for rule in policy.rules:
        arguments = [0] * 6
        for condition in rule.when:
            arguments[condition.argument] = 1 if condition.equals == "pid" else int(condition.equals, 0)
        number = X86_64[rule.syscall]
        for condition in rule.when:
            assert run(program, seccomp_data(number, tuple(arguments))) == bpf.RET_ALLOW
            for bit in range(32, 64):
                changed = list(arguments)
                changed[condition.argument] ^= 1 << bit
                assert run(program, seccomp_data(number, tuple(changed))) == bpf.RET_KILL_PROCESS, (rule.syscall, bit)
                tried += 1
    print(f"{stage}: {tried} arguments with one high bit set, all fatal")
    assert tried >= 32


def test_cve_2025_47277_and_its_family_a_hundred_thousand_frames_raise_nothing_else() -> None:
    """Noise, mutated messages and lengths that lie, to both decoders of the channel."""
    chance = random.Random(47277)
    decoders = FrameDecoder(ToRunner), FrameDecoder(FromRunner)
    sound = [encode(SOUND_LOAD), encode(Reset(nonce="n")), encode(Cancel(request_id="r")), encode(ResetDone(nonce="n"))]
    decoded = 0
    for number in range(100_000):
        if number % 2:
            data = bytearray(chance.choice(sound))
            for _ in range(chance.randrange(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            frame = bytes(data)
        else:
            frame = chance.randbytes(chance.randrange(64))
        if number % 3 == 0:
            frame = struct.pack("<I", chance.getrandbits(32)) + frame
        try:
            decoders[chance.randrange(2)].decode(frame)
            decoded += 1
        except FrameError:
            pass
    print(f"100000 frames, {decoded} of them messages")
    assert 0 < decoded < 50_000


def test_runner_given_noise_for_its_first_message_ends_and_says_nothing_of_it() -> None:
    async def scenario() -> None:
        async with launched() as runner:
            runner.channel.send(b"cos\nsystem\n(S'id'\ntR.")
            assert await runner.wait() not in {0, None}

    within_limit(scenario)


@pytest.mark.parametrize("wrong", [{"slots": -1}, {"threads": 2**31}, {"context_tokens": 2**63}, {"batch_tokens": 0}])
def test_load_with_numbers_out_of_range_is_not_a_message(wrong: dict[str, int]) -> None:
    decoder = FrameDecoder[ToRunner](ToRunner)
    assert decoder.decode(encode(SOUND_LOAD)) == SOUND_LOAD
    fields = {name: getattr(SOUND_LOAD, name) for name in SOUND_LOAD.__struct_fields__}
    with pytest.raises(FrameError):
        decoder.decode(encode(Load(**{**fields, **wrong})))
