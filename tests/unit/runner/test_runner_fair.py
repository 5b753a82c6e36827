"""Whose turn it is, with computed numbers."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.runner.engine.fair import FairQueue, deal


@dataclass(eq=False)
class Piece:
    principal: str
    weight: int = 1


def queue(*waiting: Piece, most: int = 1000, most_of_one: int = 1000) -> FairQueue[Piece]:
    made: FairQueue[Piece] = FairQueue(most, most_of_one)
    for piece in waiting:
        assert made.offer(piece)
    return made


def serve(waiting: FairQueue[Piece], turns: int, tokens: int = 10) -> list[str]:
    """One at a time, each to its end."""
    served = []
    for _ in range(turns):
        piece = waiting.take()
        assert piece is not None
        served.append(piece.principal)
        waiting.charge(piece.principal, tokens)
        waiting.done(piece.principal)
    return served


@pytest.mark.parametrize("heavy", [1, 10, 500])
def test_light_one_does_not_wait_for_more_than_what_runs(heavy: int) -> None:
    waiting = queue(*[Piece("heavy") for _ in range(heavy + 1)])
    running = waiting.take()
    assert running is not None
    waiting.charge("heavy", 5)
    waiting.offer(Piece("light"))
    waiting.charge("heavy", 500)
    waiting.done("heavy")
    assert serve(waiting, 1) == ["light"]


def test_newcomer_comes_before_more_of_those_that_are_served() -> None:
    waiting = queue(Piece("a"), Piece("a"), Piece("b"), Piece("b"))
    serve(waiting, 2, tokens=1000)
    waiting.offer(Piece("new"))
    assert sorted(serve(waiting, 3)) == ["a", "b", "new"]


def test_idling_saves_nothing_up() -> None:
    waiting = queue(Piece("away"))
    serve(waiting, 1, tokens=1)
    for _ in range(100):
        waiting.offer(Piece("steady"))
    serve(waiting, 50)
    for _ in range(50):
        waiting.offer(Piece("away"))
    assert 4 <= serve(waiting, 10).count("steady") <= 6


def test_leaving_and_coming_back_pays_no_debt_off() -> None:
    waiting = queue(Piece("greedy"), Piece("modest"), Piece("modest"))
    serve(waiting, 1, tokens=10_000)
    assert serve(waiting, 1) == ["modest"]
    waiting.offer(Piece("greedy"))
    waiting.offer(Piece("modest"))
    assert serve(waiting, 2) == ["modest", "modest"]


@given(
    arrivals=st.lists(st.sampled_from("abcd"), min_size=1, max_size=30),
    served=st.integers(0, 10),
    weights=st.fixed_dictionaries({name: st.sampled_from([1, 2, 4]) for name in "abcd"}),
    tokens=st.integers(1, 50),
)
@settings(max_examples=200, deadline=None)
def test_as_many_are_taken_before_one_as_were_said_to_be_ahead(
    arrivals: list[str], served: int, weights: dict[str, int], tokens: int
) -> None:
    """Where nobody comes later, everything costs the same, and nothing is done meanwhile."""
    waiting = queue(*[Piece(name, weights[name]) for name in "dcba"])
    serve(waiting, 4, tokens)
    for name in arrivals:
        waiting.offer(Piece(name, weights[name]))
    serve(waiting, min(served, len(waiting) - 1), tokens)
    last = Piece("a", weights["a"])
    own = waiting.waiting_of("a")
    waiting.offer(last)
    said = waiting.ahead("a", own)
    taken = 0
    while (piece := waiting.take()) is not last:
        assert piece is not None
        waiting.charge(piece.principal, tokens)
        taken += 1
    assert said == taken


def test_costly_work_of_another_lets_more_come_before_it() -> None:
    waiting = queue(Piece("heavy"), Piece("light"))
    serve(waiting, 2, tokens=100)
    for name, pieces in {"heavy": 5, "light": 5}.items():
        waiting.offer(*[Piece(name) for _ in range(pieces)])
    assert serve(waiting, 1, tokens=250) == ["heavy"]
    assert waiting.ahead("heavy", 0) == 2, "at 350, and others' at 100, 250 and 400, since work has cost 150"
    assert waiting.ahead("light", 0) == 0
    assert waiting.ahead("unknown", 0) == 0


def test_weight_is_a_share() -> None:
    waiting = queue(*[Piece("three", 3) for _ in range(60)], *[Piece("one") for _ in range(60)])
    served = serve(waiting, 40)
    assert served.count("three") == 30


def test_turns_go_by_tokens_and_not_by_requests() -> None:
    waiting = queue(*[Piece("long") for _ in range(20)], *[Piece("short") for _ in range(200)])
    tokens = {"long": 0, "short": 0}
    for _ in range(100):
        piece = waiting.take()
        assert piece is not None
        cost = 100 if piece.principal == "long" else 10
        tokens[piece.principal] += cost
        waiting.charge(piece.principal, cost)
        waiting.done(piece.principal)
    assert abs(tokens["long"] - tokens["short"]) <= 100


def test_full_queue_of_one_does_not_refuse_others() -> None:
    waiting = queue(*[Piece("heavy") for _ in range(4)], most=10, most_of_one=4)
    assert not waiting.offer(Piece("heavy"))
    assert waiting.offer(Piece("light"))


def test_whole_queue_is_bounded() -> None:
    waiting = queue(*[Piece(str(number)) for number in range(10)], most=10, most_of_one=4)
    assert not waiting.offer(Piece("late"))
    assert len(waiting) == 10


def test_removed_work_costs_nobody_a_turn() -> None:
    pieces = [Piece("a"), Piece("a"), Piece("b")]
    waiting = queue(*pieces)
    assert waiting.remove(lambda piece: piece is pieces[0]) == [pieces[0]]
    assert waiting.take() is pieces[1]
    assert len(waiting) == 1


def test_strangers_that_come_and_go_are_forgotten() -> None:
    waiting = queue(Piece("steady"))
    waiting.take()
    for number in range(2000):
        waiting.offer(Piece(str(number)))
        assert waiting.take() is not None
        waiting.charge(str(number), 1)
        waiting.done(str(number))
    assert len(waiting._accounts) <= 260
    waiting.done("steady")
    assert not waiting._accounts


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["offer", "take", "done", "drop"]), st.integers(0, 3), st.integers(1, 50)), max_size=80
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_nothing_is_lost_or_overtaken_whatever_comes(actions: list[tuple[str, int, int]]) -> None:
    """Against a list per principal."""
    waiting: FairQueue[Piece] = FairQueue(12, 5)
    model: dict[str, list[Piece]] = {}
    taken: list[Piece] = []
    for action, who, tokens in actions:
        name = str(who)
        if action == "offer":
            piece = Piece(name)
            fits = len(model.get(name, [])) < 5 and sum(map(len, model.values())) < 12
            assert waiting.offer(piece) == fits
            if fits:
                model.setdefault(name, []).append(piece)
        elif action == "take":
            got = waiting.take()
            if got is None:
                assert not any(model.values())
            else:
                assert model[got.principal].pop(0) is got
                waiting.charge(got.principal, tokens)
                taken.append(got)
        elif action == "done" and taken:
            waiting.done(taken.pop(0).principal)
        elif action == "drop" and model.get(name):
            gone = model[name].pop()
            assert waiting.remove(lambda piece, gone=gone: piece is gone) == [gone]  # type: ignore[misc]
        assert len(waiting) == sum(map(len, model.values()))


# --- shares of a step -------------------------------------------------------------------------------------------------


@given(st.integers(0, 600), st.lists(st.integers(1, 500), max_size=10))
def test_shares_are_neither_more_than_there_is_nor_less_than_there_could_be(budget: int, remaining: list[int]) -> None:
    shares = deal(budget, remaining)
    assert sum(shares) == min(budget, sum(remaining))
    assert all(0 <= share <= left for share, left in zip(shares, remaining, strict=True))


def test_shortest_is_done_first_and_oldest_goes_on() -> None:
    assert deal(100, [1000, 500, 30]) == [25, 45, 30]
    assert deal(128, [128, 128, 128]) == [128, 0, 0]
