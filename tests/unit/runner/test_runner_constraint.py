"""Whatever the model wants: what comes out matches the grammar, is whole UTF-8, and the process lives."""

import codecs
import contextlib
import ctypes
import gc
import json
import os
import random
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import pytest

from appliance.core.values import Sampling
from appliance.runner.engine import search
from appliance.runner.engine.candidates import Candidates, Rules
from appliance.runner.engine.constraint import CompiledConstraint, ConstraintInvalid, compile_constraint
from appliance.runner.engine.model import Model
from appliance.runner.engine.native import llama
from appliance.runner.engine.sampling import NOTHING_ALLOWED, Sampler
from appliance.runner.engine.search import LOOK_TOKENS, Goal, Search
from appliance.runner.engine.vocabulary import Vocabulary
from appliance.runner.grammar.gbnf import GrammarInvalid, check
from tests.support.chain_model import chain_model, long_script
from tests.support.grammar_texts import drawn_grammar
from tests.support.plain_sampling import Chained
from tests.support.wordy_model import wordy_model

BYTE = 5
EOS, IM_START, IM_END = 2, 3, 4
SURROGATES = tuple(b"\xed" + bytes([second]) for second in range(0xA0, 0xC0))
NO_PROMPT = np.zeros(0, np.int32)
JSON = r"""
root ::= object
value ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]*)) ("." [0-9]+)? ([eE] [-+]? [0-9]+)? ws
ws ::= | " " | "\n"
"""
GRAMMARS = {
    "json": JSON,
    "few": 'root ::= " w1" [0-9]* | " w22" [3-5]* "x"?',
    "not": r"root ::= [^\u0080-\uffffw]* [^a]*",
    "foreign": "root ::= [\u4e00-\u9fff\U0001f600]* [.] | [^\u4e00 a-z]*",
    "names": 'root ::= "<|im_start|>"? [<>a-z| _]*',
}


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Bytes, and 6,000 words of which many begin with others: enough for candidates to be fewer than all. The first
    begins with a byte that is half a character."""
    descriptor = os.open(chain_model("\u4e00w " + long_script(6000), dim=16), os.O_RDONLY)
    made = Model.load(descriptor)
    os.close(descriptor)
    yield made
    made.close()


@pytest.fixture(scope="module")
def vocabulary(model: Model) -> Vocabulary:
    return Vocabulary.of(model)


@pytest.fixture(scope="module")
def candidates(vocabulary: Vocabulary) -> Candidates:
    return Candidates(vocabulary)


Compile = Callable[[str], CompiledConstraint]


@pytest.fixture
def compiled(model: Model, vocabulary: Vocabulary) -> Compile:
    return lambda text: compile_constraint(model, vocabulary, text)


@pytest.fixture
def sampler(compiled: Compile, candidates: Candidates) -> Iterator[Callable[..., Sampler]]:
    with contextlib.ExitStack() as stack:

        def make(text: str, **settings: object) -> Sampler:
            return stack.enter_context(
                contextlib.closing(Sampler(Sampling(**settings), NO_PROMPT, compiled(text), candidates))
            )

        yield make


def rows(vocabulary: Vocabulary, seed: int, count: int = 60) -> np.ndarray:
    """Flat logits in which bytes are as likely as words, and an end comes now and then."""
    random = np.random.default_rng(seed)
    made = random.normal(0, 2, (count, vocabulary.size)).astype(np.float32)
    made[:, BYTE + 32 : BYTE + 128] += 4
    made[:, BYTE + 128 : BYTE + 256] += random.choice([0, 4], (count, 1))
    made[:, EOS] += random.normal(2, 4, count)
    return made


def wanting(vocabulary: Vocabulary, *tokens: int) -> np.ndarray:
    """A row that wants these tokens, the first one most."""
    row = np.zeros(vocabulary.size, np.float32)
    row[list(tokens)] = 50.0 - np.arange(len(tokens))
    return row


def all_allowed(constraint: CompiledConstraint, candidates: Candidates) -> np.ndarray:
    """By a search that nothing is enough for."""
    row = np.zeros(candidates.vocabulary.size, np.float32)
    search = Search(row, constraint, candidates, Rules(never=constraint.never), Goal(len(row) + 1))
    search.finish()
    return search.allowed


class Slow:
    """The same by asking the grammar about every token at every step, with llama.cpp's own chain over all of them."""

    def __init__(self, model: Model, vocabulary: Vocabulary, text: str, sampling: Sampling) -> None:
        pointer = llama.llama_model_get_vocab(model.pointer)
        self._grammar = llama.llama_sampler_init_grammar(pointer, text.encode(), b"root")
        self._chain = Chained(sampling, (), vocabulary.size)
        self._model, self._vocabulary, self._written = model, vocabulary, b""

    def draw(self, row: np.ndarray) -> int:
        row = row.copy()
        row[self._vocabulary.unseen] = -np.inf
        free = self._chain.draw(row)
        allowed = self._allowed()
        if not allowed[free]:
            row[~allowed] = -np.inf
            free = self._chain.draw(row)
        llama.llama_sampler_accept(self._grammar, free)
        if not self._model.is_end(free):
            self._written += self._model.piece(free)
        return free

    def _allowed(self) -> np.ndarray:
        size = self._vocabulary.size
        entries = np.zeros(size, [("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        entries["id"] = np.arange(size)
        data = ctypes.cast(entries.ctypes.data, ctypes.POINTER(llama.llama_token_data))
        llama.llama_sampler_apply(self._grammar, ctypes.byref(llama.llama_token_data_array(data, size, -1, False)))
        allowed = entries["logit"] == 0
        allowed[self._vocabulary.unseen] = False
        for token in np.flatnonzero(allowed):
            decoder = codecs.getincrementaldecoder("utf-8")()
            with contextlib.suppress(UnicodeDecodeError):
                decoder.decode(self._written + self._model.piece(int(token)), final=self._model.is_end(int(token)))
                if not decoder.getstate()[0].startswith(SURROGATES):
                    continue
            allowed[token] = False
        return allowed

    def close(self) -> None:
        llama.llama_sampler_free(self._grammar)
        self._chain.close()


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0),
        Sampling(),
        Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=2.0),
        Sampling(mirostat=2),
    ],
    ids=["greedy", "default", "flat", "mirostat"],
)
def test_looking_at_few_tokens_does_not_change_what_is_drawn(
    grammar: str, sampling: Sampling, model: Model, vocabulary: Vocabulary, candidates: Candidates, compiled: Compile
) -> None:
    for seed in range(2):
        given = msgspec.structs.replace(sampling, seed=seed)
        with (
            contextlib.closing(Sampler(given, NO_PROMPT, compiled(GRAMMARS[grammar]), candidates)) as sampler,
            contextlib.closing(Slow(model, vocabulary, GRAMMARS[grammar], given)) as slow,
        ):
            for row in rows(vocabulary, seed, 25):
                drawn = sampler.draw(row)
                assert drawn is not None
                assert drawn.token == slow.draw(row)
                if model.is_end(drawn.token):
                    break


@pytest.mark.parametrize("grammar", [*GRAMMARS, "unlike"])
def test_token_is_not_overlooked_for_what_it_begins_with(
    grammar: str, vocabulary: Vocabulary, candidates: Candidates, compiled: Compile
) -> None:
    constraint = compiled((GRAMMARS | {"unlike": "root ::= [^\u4e01]*"})[grammar])
    every = np.setdiff1d(np.arange(vocabulary.size), vocabulary.unseen)
    random = np.random.default_rng(1)
    for _ in range(20):
        allowed = constraint.allowed(every)
        assert all_allowed(constraint, candidates).tolist() == allowed.tolist()
        further = np.setdiff1d(allowed, vocabulary.ends)
        if not len(further):
            break
        constraint.accept(int(random.choice(further)))


@pytest.mark.parametrize("seed", range(6))
def test_answer_that_is_not_json_is_impossible(
    seed: int, model: Model, vocabulary: Vocabulary, sampler: Callable[..., Sampler]
) -> None:
    drawing, written = sampler(JSON, seed=seed, presence_penalty=0.5), b""
    for number, row in enumerate(rows(vocabulary, seed, 400)):
        row[[BYTE + ord(closing) for closing in '"]}']] += number / 20  # it would like to come to an end
        drawn = drawing.draw(row)
        assert drawn is not None, drawing.failure
        if model.is_end(drawn.token):
            break
        written += model.piece(drawn.token)
    else:
        pytest.fail("the answer did not end")
    assert isinstance(json.loads(written.decode()), dict)


def test_nothing_but_an_end_follows_a_complete_answer(vocabulary: Vocabulary, sampler: Callable[..., Sampler]) -> None:
    drawing = sampler('root ::= "ab"', temperature=0.0)
    drawn = [drawing.draw(wanting(vocabulary, BYTE + ord("b"), BYTE + ord("a"), EOS)) for _ in range(3)]
    assert [each and each.token for each in drawn] == [BYTE + ord("a"), BYTE + ord("b"), EOS]


def test_end_is_not_drawn_before_the_grammars(vocabulary: Vocabulary, sampler: Callable[..., Sampler]) -> None:
    for settings in ({"temperature": 0.0}, {"seed": 1}, {"mirostat": 1, "seed": 1}):
        drawn = sampler('root ::= "a"', **settings).draw(wanting(vocabulary, EOS, IM_END))
        assert drawn is not None and drawn.token == BYTE + ord("a")


def test_end_inside_a_character_is_not_drawn(vocabulary: Vocabulary, sampler: Callable[..., Sampler]) -> None:
    drawing = sampler("root ::= [^a]*", temperature=0.0)
    first, second, third = (BYTE + byte for byte in "\u4e00".encode())
    drawn = [drawing.draw(wanting(vocabulary, *wanted)) for wanted in ((first,), (EOS, second), (EOS, third), (EOS,))]
    assert [each and each.token for each in drawn] == [first, second, third, EOS]


@pytest.mark.parametrize("broken", [b"\xed\xa0", b"\xe0\x80", b"\xe4 ", b"\xf5", b"\xff", b"\x80", b"\xc0"])
def test_bytes_that_are_no_text_are_not_allowed(broken: bytes, compiled: Compile, candidates: Candidates) -> None:
    constraint = compiled("root ::= [^a]*")
    for byte in broken[:-1]:
        constraint.accept(BYTE + byte)
    last = BYTE + broken[-1]
    assert not constraint.allows(last)
    assert last not in constraint.allowed(np.array([BYTE, last]))
    assert last not in all_allowed(constraint, candidates)


def test_control_token_does_not_stand_for_its_name(vocabulary: Vocabulary, sampler: Callable[..., Sampler]) -> None:
    drawing = sampler('root ::= "<|im_start|>"', temperature=0.0)
    drawn = drawing.draw(wanting(vocabulary, IM_START))
    assert drawn is not None and drawn.token == BYTE + ord("<")


def test_nothing_allowed_ends_the_answer_and_not_the_process(
    vocabulary: Vocabulary, sampler: Callable[..., Sampler]
) -> None:
    for settings in ({"temperature": 0.0}, {"seed": 1}, {"mirostat": 2, "seed": 1}):
        drawing = sampler('root ::= "a"', logit_bias=((BYTE + ord("a"), -100.0),), **settings)
        assert drawing.draw(wanting(vocabulary, IM_END)) is None
        assert drawing.failure == NOTHING_ALLOWED
    drawing = sampler('root ::= "a"', ignore_eos=True, seed=1)
    assert drawing.draw(wanting(vocabulary, BYTE)) is not None
    assert drawing.draw(wanting(vocabulary, EOS)) is None
    assert drawing.failure == NOTHING_ALLOWED


def test_forbidden_token_is_not_accepted(compiled: Compile) -> None:
    constraint = compiled('root ::= "a"')
    for token in (EOS, BYTE + ord("b")):
        with pytest.raises(RuntimeError, match="forbids"):
            constraint.accept(token)
    assert constraint.allows(BYTE + ord("a"))
    constraint.accept(BYTE + ord("a"))
    with pytest.raises(RuntimeError, match="forbids"):
        constraint.accept(BYTE + ord("a"))


@pytest.mark.parametrize(
    "text",
    ["", "  \n", "root ::= (", 'rot ::= "a"', "root ::= root", 'root ::= "a"\0', "root ::= unknown"],
)
def test_grammar_that_is_none_is_refused(text: str, compiled: Compile) -> None:
    with pytest.raises(ConstraintInvalid):
        compiled(text)


def test_grammar_of_nothing_allows_only_an_end(compiled: Compile, candidates: Candidates) -> None:
    assert all_allowed(compiled('root ::= ""'), candidates).tolist() == [EOS, IM_END]


def test_choices_do_not_share_their_place(compiled: Compile) -> None:
    first = compiled('root ::= "ab"')
    second = first.clone()
    first.accept(BYTE + ord("a"))
    assert second.allows(BYTE + ord("a")) and not second.allows(BYTE + ord("b"))
    first.close()
    first.close()
    second.accept(BYTE + ord("a"))
    assert second.clone().allows(BYTE + ord("b"))
    second.accept(BYTE + ord("b"))
    second.close()


def test_closed_constraint_does_not_allow_everything(compiled: Compile, vocabulary: Vocabulary) -> None:
    constraint = compiled('root ::= "a"')
    constraint.close()
    for use in (constraint.allows, constraint.accept):
        with pytest.raises(RuntimeError, match="closed"):
            use(BYTE)
    with pytest.raises(RuntimeError, match="closed"):
        constraint.allowed(vocabulary.ends)
    with pytest.raises(RuntimeError, match="closed"):
        constraint.clone()


def test_matcher_is_not_left_behind(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> None:
    freed = []
    real = llama.llama_sampler_free
    monkeypatch.setattr(llama, "llama_sampler_free", lambda pointer: (freed.append(1), real(pointer)))
    closed, dropped = compiled('root ::= "a"'), compiled('root ::= "a"')
    closed.close()
    del closed, dropped
    gc.collect()
    assert len(freed) == 2


def test_token_longer_than_a_grammar_was_checked_for_is_never_tried() -> None:
    """In this grammar the ways through a row of dashes grow tenfold with every nine: llama.cpp would not come back."""
    text = 'root ::= " " (' + " | ".join(['"---------"'] * 9) + ')* "x"'
    check(text)
    path = chain_model("w1 " + "-" * 15 + " " + "-" * 55 + "x \u4e00\u4e00\u4e00\u4e00\u4e00\u4e00\u4e00", dim=16)
    descriptor = os.open(path, os.O_RDONLY)
    model = Model.load(descriptor)
    os.close(descriptor)
    with contextlib.closing(model):
        vocabulary = Vocabulary.of(model)
        long = next(token for token in range(vocabulary.size) if len(model.piece(token)) > 50)
        assert vocabulary.unseen.tolist() == [0, 1, IM_START, BYTE, long]
        with contextlib.closing(
            Sampler(
                Sampling(temperature=0.0),
                NO_PROMPT,
                compile_constraint(model, vocabulary, text),
                Candidates(vocabulary),
            )
        ) as drawing:
            drawn = drawing.draw(wanting(vocabulary, long, long - 1))
            assert drawn is not None and drawn.token == long - 1


def test_vocabulary_is_seen_as_it_writes(model: Model, vocabulary: Vocabulary) -> None:
    assert vocabulary.ends.tolist() == [EOS, IM_END]
    assert vocabulary.unseen.tolist() == [0, 1, IM_START, BYTE]
    begin = [*range(0xC2, 0xF5)]
    no_text = [BYTE + byte for byte in range(0x80, 0x100) if byte not in begin]
    assert np.flatnonzero(vocabulary.misfits).tolist() == no_text
    told = np.concatenate([vocabulary.ends, vocabulary.unseen, *(level.ids for level in vocabulary.levels)])
    assert sorted(told.tolist()) == list(range(vocabulary.size))
    for number, level in enumerate(vocabulary.levels[1:], 1):
        above = set(vocabulary.levels[number - 1].ids.tolist())
        for token, parent in zip(level.ids.tolist(), level.parents.tolist(), strict=True):
            assert parent in above
            assert model.piece(token).startswith(model.piece(parent))


@pytest.fixture(scope="module", params=range(2))
def wordy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    descriptor = os.open(wordy_model(tmp_path_factory.mktemp("wordy"), 5000, request.param), os.O_RDONLY)
    made = Model.load(descriptor)
    os.close(descriptor)
    yield made
    made.close()


BIASES = tuple((token, 100.0 if token % 3 else -3.0) for token in range(259, 659, 4))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.0),
        Sampling(temperature=0.0, logit_bias=BIASES),
        Sampling(temperature=0.0, typical_p=0.7, top_k=60),
        Sampling(),
        Sampling(top_p=1.0, min_p=0.02),
        Sampling(top_p=0.9999, min_p=0.0, top_k=1000),
        Sampling(top_p=0.9, min_p=0.0, top_k=1000, temperature=2.0),
        Sampling(top_k=0, top_p=1.0, min_p=0.0, temperature=2.0, logit_bias=BIASES),
        Sampling(repeat_penalty=1.5, frequency_penalty=0.7),
        Sampling(repeat_penalty=0.5, presence_penalty=-2.0, logit_bias=BIASES[:9]),
        Sampling(mirostat=1),
    ],
    ids=lambda sampling: ",".join(f"{name}={value}" for name, value in msgspec.structs.asdict(sampling).items()
                                  if value != getattr(Sampling(), name))[:60],
)  # fmt: skip
def test_search_that_ends_early_draws_what_a_check_of_all_would(
    sampling: Sampling, wordy: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random vocabularies, grammars and rows; with numbers so small that a search ends in every one of its ways."""
    for name, number in {"LOOK_TOKENS": 50, "_FIRST_DEPTH": 32, "_NEXT_DEPTH": 128, "_LAST_DEPTH": 1000}.items():
        monkeypatch.setattr(search, name, number)
    vocabulary = Vocabulary.of(wordy)
    candidates, chance = Candidates(vocabulary), np.random.default_rng(3)
    looked, searches, grammars = [], 0, drawn_grammars(random.Random(len(sampling.logit_bias)))
    for _grammar, text in zip(range(8), grammars, strict=False):
        given = msgspec.structs.replace(sampling, seed=int(chance.integers(1000)))
        compiled = compile_constraint(wordy, vocabulary, text)
        with (
            contextlib.closing(Sampler(given, NO_PROMPT, compiled, candidates)) as sampler,
            contextlib.closing(Slow(wordy, vocabulary, text, given)) as slow,
        ):
            for _token in range(5):
                row = chance.normal(0, chance.choice([1.0, 3.0, 9.0]), vocabulary.size).astype(np.float32)
                row[chance.integers(vocabulary.size, size=chance.choice([1, 40, 400, 2000]))] += 12
                begun = sampler.begin(row)
                if isinstance(begun, Search):
                    searches += 1
                    drawn = sampler.finish(begun)
                    looked.append(begun.looked_at)
                else:
                    drawn = begun
                if drawn is None:
                    assert sampler.failure == NOTHING_ALLOWED
                    break
                assert drawn.token == slow.draw(row)
                if wordy.is_end(drawn.token):
                    break
    assert searches > 5
    assert max(looked) <= vocabulary.size


def drawn_grammars(chance: random.Random) -> Iterator[str]:
    while True:
        text = drawn_grammar(chance)
        with contextlib.suppress(GrammarInvalid):
            check(text)
            yield text


def test_search_goes_on_with_the_row_that_it_began_with(vocabulary: Vocabulary, candidates: Candidates,
                                                        compiled: Compile) -> None:  # fmt: skip
    """What the next decode overwrites."""
    rows = np.zeros((1, vocabulary.size), np.float32)
    rows[0] = wanting(vocabulary, EOS, BYTE + ord("b"), BYTE + ord("a"))
    with contextlib.closing(
        Sampler(Sampling(temperature=0.0), NO_PROMPT, compiled("root ::= [ab]"), candidates)
    ) as drawing:
        begun = drawing.begin(rows[0])
        assert isinstance(begun, Search)
        assert begun.look()
        begun.keep_row()
        rows[:] = np.nan
        drawn = drawing.finish(begun)
        assert drawn is not None and drawn.token == BYTE + ord("b")


def test_look_is_never_at_more_than_a_few_tokens(
    vocabulary: Vocabulary, candidates: Candidates, compiled: Compile, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    allowed = CompiledConstraint.allowed
    monkeypatch.setattr(
        CompiledConstraint, "allowed", lambda self, ids: (asked.append(len(ids)), allowed(self, ids))[1]
    )
    row = np.zeros(vocabulary.size, np.float32)
    begun = Search(row, compiled("root ::= [^b]*"), candidates, Rules(), Goal(vocabulary.size + 1))
    counted = []
    while looked := begun.look():
        counted.append(looked)
        assert asked.pop() <= min(LOOK_TOKENS, looked)
        assert not asked
    assert len(counted) >= begun.looked_at / LOOK_TOKENS
    assert begun.looked_at <= vocabulary.size
