"""Everybody's requests get their steps in turn, whatever number somebody has brought."""

from appliance.runner.rounds import Rounds


def steps(rounds: Rounds[int], count: int) -> list[str]:
    """Whose requests come, if each needs another step."""
    taken = []
    for _step in range(count):
        request_id, principal, work = rounds.take()
        rounds.put(request_id, principal, work + 1)
        taken.append(request_id)
    return taken


def test_one_with_many_requests_takes_every_other_step() -> None:
    rounds: Rounds[int] = Rounds()
    for number in range(100):
        rounds.put(f"heavy-{number}", "heavy", 0)
    rounds.put("light", "light", 0)
    assert steps(rounds, 6) == ["heavy-0", "light", "heavy-1", "light", "heavy-2", "light"]
    assert rounds.get("light") == 3
    assert (rounds.of("heavy"), rounds.of("light"), rounds.of("none"), len(rounds)) == (100, 1, 0, 101)


def test_own_requests_come_in_turn() -> None:
    rounds: Rounds[int] = Rounds()
    for name in "abc":
        rounds.put(name, "one", 0)
    assert steps(rounds, 4) == ["a", "b", "c", "a"]


def test_what_was_taken_out_does_not_come() -> None:
    rounds: Rounds[int] = Rounds()
    for name in "ab":
        rounds.put(name, name, 0)
    assert rounds.pop("a") == 0
    assert rounds.pop("a") is None and rounds.get("a") is None and "a" not in rounds
    assert steps(rounds, 2) == ["b", "b"]
    rounds.clear()
    assert not len(rounds) and "b" not in rounds
