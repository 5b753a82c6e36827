"""The account of layers: what is missing is a refusal unless it was named, and some may not be named."""

import errno

import pytest

from appliance.sandbox import layers


def fails() -> None:
    raise OSError(errno.ENOSYS, "not here")


def works() -> None:
    pass


def test_missing_layer_is_refused() -> None:
    stack = layers.Stack(frozenset())
    stack.apply(layers.LANDLOCK, fails)
    with pytest.raises(layers.LayerMissing, match=r"landlock: .*not here"):
        stack.require()


def test_all_missing_layers_are_named_at_once() -> None:
    stack = layers.Stack(frozenset({layers.MDWE}))
    for name in (layers.LANDLOCK, layers.MDWE, layers.EMPTY_ROOT):
        stack.apply(name, fails)
    with pytest.raises(layers.LayerMissing) as refusal:
        stack.require()
    assert set(refusal.value.missing) == {layers.LANDLOCK, layers.EMPTY_ROOT}


def test_missing_layer_that_was_named_is_reported_not_hidden() -> None:
    stack = layers.Stack(frozenset({layers.MDWE}))
    stack.apply(layers.MDWE, fails)
    stack.apply(layers.LANDLOCK, works)
    stack.require()
    assert (stack.on, stack.degraded) == ((layers.LANDLOCK,), (layers.MDWE,))


def test_naming_a_layer_does_not_turn_it_off() -> None:
    stack = layers.Stack(frozenset({layers.MDWE}))
    stack.apply(layers.MDWE, works)
    assert (stack.on, stack.degraded) == ((layers.MDWE,), ())


@pytest.mark.parametrize("name", [*sorted(layers.INDISPENSABLE), "seccomp", "", "Landlock"])
def test_name_that_may_not_be_missing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="may be missing"):
        layers.Stack(frozenset({name}))


@pytest.mark.parametrize(
    ("abi", "length", "file_rights"),
    [(1, 8, 13), (2, 8, 14), (3, 8, 15), (4, 16, 15), (5, 16, 16), (6, 24, 16), (7, 24, 16), (99, 24, 16)],
)
def test_ruleset_handles_every_right_of_its_abi(abi: int, length: int, file_rights: int) -> None:
    attributes = layers.ruleset_attributes(abi)
    assert len(attributes) == length
    assert int.from_bytes(attributes[:8], "little") == 2**file_rights - 1
    assert all(word == 3 for word in attributes[8::8])


def test_root_is_not_emptied_without_a_mount_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, and with the host's mounts, emptying would empty the host."""
    for name in ("empty_root", "rlimits", "no_capabilities", "memory_deny_write_execute", "landlock", "non_dumpable"):
        monkeypatch.setattr(layers, name, lambda **_: None)
    monkeypatch.setattr(layers, "empty_root", lambda: pytest.fail("emptied the host's root"))
    monkeypatch.setattr(layers, "threads", lambda: 1)
    stack = layers.Stack(layers.DEGRADABLE)
    layers.shut_in(stack)
    assert layers.EMPTY_ROOT in stack.degraded


def test_layers_per_thread_are_not_put_on_beside_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "threads", lambda: 2)
    with pytest.raises(RuntimeError, match="thread"):
        layers.shut_in(layers.Stack(frozenset()))
