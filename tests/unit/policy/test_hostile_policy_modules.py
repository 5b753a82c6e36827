"""A module made to hang, to grow, to lie or to reach out does none of it: the answer is a Fault, and soon."""

import gc
import time
import weakref

import pytest
import wasmtime

from appliance.core.refusals import Fault
from appliance.policy.embedded import EmbeddedPolicy
from appliance.policy.wasm import ANSWER_LIMIT_BYTES

ALLOW = '[{"result":{"allow":true}}]'
ANSWER_AT = 4096


def module(
    *,
    evaluate=f"i32.const {ANSWER_AT}",
    answer=ALLOW,
    builtins="{}",
    entrypoints='{"paddock/decision":0}',
    abi=(1, 3),
    imports="",
    functions="",
    pages=2,
    malloc="i32.const 70000",
    json_parse="i32.const 8",
):
    """The smallest module that looks like OPA's, with one thing changed."""
    texts = {1024: builtins, 2048: entrypoints, ANSWER_AT: answer}
    data = "".join(f'(data (i32.const {address}) "{escaped(text)}")' for address, text in texts.items())
    return bytes(
        wasmtime.wat2wasm(f"""(module
            (import "env" "memory" (memory {pages}))
            (import "env" "opa_abort" (func $abort (param i32)))
            {imports}
            (export "memory" (memory 0))
            (global (export "opa_wasm_abi_version") i32 (i32.const {abi[0]}))
            (global (export "opa_wasm_abi_minor_version") i32 (i32.const {abi[1]}))
            {data}
            {functions}
            (func (export "builtins") (result i32) i32.const 1024)
            (func (export "entrypoints") (result i32) i32.const 2048)
            (func (export "opa_json_dump") (param i32) (result i32) local.get 0)
            (func (export "opa_json_parse") (param i32 i32) (result i32) {json_parse})
            (func (export "opa_malloc") (param i32) (result i32) {malloc})
            (func (export "opa_heap_ptr_get") (result i32) i32.const 80000)
            (func (export "opa_eval") (param i32 i32 i32 i32 i32 i32 i32) (result i32) {evaluate}))""")
    )


def escaped(text):
    """Text as a zero-terminated string of the WebAssembly text format."""
    return "".join(f"\\{byte:02x}" for byte in (*text.encode(), 0))


def load(**changes):
    return EmbeddedPolicy.load(module(**changes), b"{}")


def seconds_until_fault(action, problem):
    start = time.perf_counter()
    with pytest.raises(Fault, match=problem):
        action()
    return time.perf_counter() - start


def test_the_module_under_test_works_when_nothing_is_changed():
    assert load().decide({}) == {"allow": True}


def test_a_policy_that_never_ends_is_a_fault_in_a_moment_and_every_time():
    policy = load(evaluate="(loop $again br $again) unreachable")
    for _ in range(3):
        assert seconds_until_fault(lambda: policy.decide({}), "fuel") < 0.3


def test_a_policy_that_calls_itself_for_ever_is_a_fault():
    policy = load(
        functions="(func $deeper (param i32) (result i32) (call $deeper (i32.add (local.get 0) (i32.const 1))))",
        evaluate="(call $deeper (i32.const 0))",
    )
    assert seconds_until_fault(lambda: policy.decide({}), "stack|fuel") < 0.3


def test_a_policy_cannot_take_more_memory_than_its_cap():
    grown = load(evaluate=f"(memory.grow (i32.const 511)) drop i32.const {ANSWER_AT}")
    grown.decide({})
    assert grown._instance._memory.data_len(grown._instance._store) == 2 * 65536
    policy = load(
        functions="(func $grab (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))))",
        evaluate=f"call $grab i32.const {ANSWER_AT}",
    )
    assert policy.decide({}) == {"allow": True}
    assert policy._instance._memory.data_len(policy._instance._store) == 512 * 65536


def test_a_module_that_starts_with_too_much_memory_is_refused():
    with pytest.raises(Fault, match="wants 513 pages"):
        load(pages=513)


def test_a_module_that_never_finishes_loading_is_refused():
    loop = "(func $loop (loop $again br $again)) (start $loop)"
    assert seconds_until_fault(lambda: load(functions=loop), "fuel") < 10


@pytest.mark.parametrize("instruction", ["memory.fill", "memory.copy"])
def test_an_instruction_whose_cost_fuel_does_not_see_does_not_compile(instruction):
    with pytest.raises(Fault, match="does not compile"):
        load(evaluate=f"({instruction} (i32.const 0) (i32.const 0) (i32.const 65536)) i32.const {ANSWER_AT}")


@pytest.mark.parametrize(
    "functions",
    ["(func (result v128) (v128.const i32x4 0 0 0 0))", "(memory 1)", "(memory i64 1)"],
    ids=["simd", "second-memory", "memory64"],
)
def test_features_that_opa_does_not_use_do_not_compile(functions):
    with pytest.raises(Fault, match="does not compile"):
        load(functions=functions)


@pytest.mark.parametrize(
    ("source", "name"),
    [("env", "http_send"), ("wasi_snapshot_preview1", "fd_write"), ("env", "opa_builtin5"), ("host", "opa_abort")],
)
def test_a_module_that_wants_anything_else_from_the_host_is_refused(source, name):
    with pytest.raises(Fault, match=f"imports {source}.{name}, which is not provided"):
        load(imports=f'(import "{source}" "{name}" (func (param i32) (result i32)))')


def test_an_import_of_another_shape_is_refused():
    with pytest.raises(Fault, match=r"imports env.opa_abort, which is not provided"):
        load(imports='(import "env" "opa_abort" (global i32))')


def test_a_needed_builtin_is_refused_at_load_and_named():
    with pytest.raises(Fault, match=r"built-ins that are not provided: http\.send, net\.lookup_ip_addr"):
        load(builtins='{"net.lookup_ip_addr": 1, "http.send": 0}')


def test_a_builtin_that_was_not_announced_is_a_fault_when_called():
    policy = load(
        imports='(import "env" "opa_builtin0" (func $builtin (param i32 i32) (result i32)))',
        evaluate="(call $builtin (i32.const 0) (i32.const 0))",
    )
    with pytest.raises(Fault, match="called a built-in that is not provided"):
        policy.decide({})


@pytest.mark.parametrize("abi", [(0, 0), (1, 1), (2, 3), (-1, 2)])
def test_another_abi_is_refused(abi):
    with pytest.raises(Fault, match="speaks ABI"):
        load(abi=abi)


@pytest.mark.parametrize("table", ["[]", "null", '{"http.send": "0"}', '{"a": 1, "a": 2}', "{"])
def test_tables_that_are_none_are_refused(table):
    with pytest.raises(Fault, match="builtins"):
        load(builtins=table)


def test_a_module_without_the_entrypoint_is_refused():
    with pytest.raises(Fault, match="no entrypoint paddock/decision"):
        load(entrypoints='{"other/decision": 0}')


def test_a_module_without_the_exports_is_refused():
    empty = bytes(wasmtime.wat2wasm('(module (import "env" "memory" (memory 2)))'))
    with pytest.raises(Fault, match="lacks opa_wasm_abi_version"):
        EmbeddedPolicy.load(empty, b"{}")
    with pytest.raises(Fault, match="imports no memory"):
        EmbeddedPolicy.load(bytes(wasmtime.wat2wasm("(module)")), b"{}")


def test_an_abort_is_a_fault_that_carries_the_policys_words_as_text():
    policy = load(answer="no luck\n\x1b[31m", evaluate=f"(call $abort (i32.const {ANSWER_AT})) unreachable")
    with pytest.raises(Fault, match=r"aborted: 'no luck\\n\\x1b\[31m'"):
        policy.decide({})


def test_a_trap_is_a_fault_and_the_next_request_gets_a_fresh_instance():
    policy = load(evaluate="unreachable")
    first = policy._instance
    for _ in range(2):
        with pytest.raises(Fault, match="unreachable"):
            policy.decide({})
    assert first.broken
    assert policy._instance is not first


@pytest.mark.parametrize("address", [0, -1, -4096, 131_071, 131_072, 2**31 - 1, -(2**31)])
def test_an_answer_anywhere_in_memory_or_outside_is_never_an_allow(address):
    policy = load(evaluate=f"i32.const {address}")
    with pytest.raises(Fault, match="the policy's answer"):
        policy.decide({})


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "{}",
        "true",
        "null",
        "[[]]",
        "[{}]",
        '[{"result":true,"result":false}]',
        '[{"result":true},{"result":true}]',
        '[{"result":true,"more":1}]',
        '[{"Result":true}]',
        '[{"result":NaN}]',
        '[{"result":true}',
        '[{"result":true}]x',
        "[" * 3000,
    ],
)
def test_an_answer_that_is_no_result_set_is_a_fault(answer):
    with pytest.raises(Fault, match="the policy's answer"):
        load(answer=answer).decide({})


def test_an_undefined_answer_is_none():
    assert load(answer="[]").decide({}) is None


def test_an_answer_without_end_is_a_fault():
    policy = load(
        evaluate="""(local.set 0 (i32.const 4096))
            (loop $more
                (i32.store8 (local.get 0) (i32.const 120))
                (local.set 0 (i32.add (local.get 0) (i32.const 1)))
                (br_if $more (i32.lt_u (local.get 0) (i32.const 131072))))
            i32.const 4096"""
    )
    with pytest.raises(Fault, match=f"longer than {ANSWER_LIMIT_BYTES} bytes"):
        policy.decide({})


@pytest.mark.parametrize("address", [0, -1, 131_071, 131_072, 2**31 - 1])
def test_data_is_never_written_outside_the_modules_memory(address):
    with pytest.raises(Fault, match="outside its memory"):
        load(malloc=f"i32.const {address}")


def test_data_that_the_module_cannot_parse_is_refused():
    with pytest.raises(Fault, match="cannot parse its data"):
        load(json_parse="i32.const 0")


def test_output_of_a_policy_goes_nowhere(capfd):
    policy = load(
        imports='(import "env" "opa_println" (func $print (param i32)))',
        evaluate=f"(call $print (i32.const {ANSWER_AT})) i32.const {ANSWER_AT}",
    )
    assert policy.decide({}) == {"allow": True}
    assert capfd.readouterr() == ("", "")


def test_an_engine_that_is_gone_leaves_nothing_behind():
    policy = load()
    policy.decide({})
    store = weakref.ref(policy._instance._store)
    del policy
    gc.collect()
    assert store() is None
