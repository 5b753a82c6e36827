"""Whose input is computed next: computed waits, nobody passed over."""

from dataclasses import dataclass

from appliance.runner.engine.turns import Turns


@dataclass(frozen=True)
class _Item:
    principal: str
    number: int
    size: int = 1


def _turns(*items: _Item) -> Turns[_Item]:
    turns: Turns[_Item] = Turns()
    for item in items:
        turns.add(item)
    return turns


def test_one_input_waits_for_one_of_everybody_else_however_many_they_brought() -> None:
    turns = _turns(*(_Item("heavy", number) for number in range(2048)), _Item("light", 0))
    assert turns.take(2, 100) == [_Item("heavy", 0), _Item("light", 0)]


def test_turns_go_by_principal_and_each_keeps_its_order() -> None:
    turns = _turns(_Item("a", 0), _Item("a", 1), _Item("a", 2), _Item("b", 0), _Item("c", 0))
    assert turns.take(2, 100) == [_Item("a", 0), _Item("b", 0)]
    turns.add(_Item("b", 1))
    assert turns.take(4, 100) == [_Item("c", 0), _Item("a", 1), _Item("b", 1), _Item("a", 2)]
    assert not turns
    assert turns.take(4, 100) == []


def test_a_large_input_is_not_passed_by_small_ones_for_ever() -> None:
    turns = _turns(_Item("a", 0, 6), _Item("b", 0, 6), _Item("c", 0, 1))
    assert turns.take(4, 10) == [_Item("a", 0, 6)]
    assert turns.take(4, 10) == [_Item("b", 0, 6), _Item("c", 0, 1)]


def test_a_batch_has_no_more_tokens_than_it_holds() -> None:
    turns = _turns(*(_Item(str(number), number, 4) for number in range(5)))
    assert [len(turns.take(64, 10)) for _ in range(3)] == [2, 2, 1]


def test_what_nobody_wants_any_more_is_forgotten_wherever_it_waits() -> None:
    turns = _turns(_Item("a", 0), _Item("b", 0), _Item("a", 1), _Item("c", 0))
    turns.keep(lambda item: item.number == 1)
    assert turns.take(4, 10) == [_Item("a", 1)]
    assert not turns
