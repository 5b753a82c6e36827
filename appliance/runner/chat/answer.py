"""Reading what a model writes while it writes it: text, reasoning and calls of functions, whatever the pieces.

A family's format is a generator over an ``Answer``: it takes what it understands and yields when it needs more. So the
reading is written down in the order of the format, and what comes out does not depend on where the text was cut.

A marker that is a token of its own in the model's vocabulary is written into the text as a *seal*: unguessable
characters and its name (``sealed``). Then only the token counts, and a model that quotes a document in which
``<|channel|>`` stands calls nothing. A marker that the vocabulary has no token for counts as text.

Trusts: nothing; the text is the model's, and it may say what a caller told it to say.
Promises: nothing of the text is lost but markers in their place, and space beside them. At most ``MAX_HELD_CHARACTERS``
are held back, and no piece is longer than ``MAX_PIECE_CHARACTERS``. A call has the name of a tool that was offered; any
other is text.
Not here: the formats (``chat.families``); whether arguments are JSON, or right (the application's to check).
"""

import os
import re
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Final, NamedTuple, TypeAlias, TypeVar

import msgspec

from appliance.core.values import MAX_TOOL_CALLS, Tool, ToolCallDelta

MAX_HELD_CHARACTERS: Final = 65_536
MAX_PIECE_CHARACTERS: Final = 4096
_SEAL: Final = "".join(chr(0xF0000 + int.from_bytes(os.urandom(2)) % 0xFFF0) for _ in range(5))
"""Of a plane for private use. A stop string with such characters is refused (``may_be_seal``): it would be found in a
seal, and say by and by what it is."""
_MAX_ID: Final = 64

_JSON_RUN: Final = re.compile(r"[\w\s:,.+-]+")
_JSON_SCALAR: Final = re.compile(r"[\w.+-]+")
_STRING_RUN: Final = re.compile(rf'[^"\\{_SEAL[0]}]+')
_WORD: Final = re.compile(r"[A-Za-z0-9_.-]+")
_SPACE: Final = re.compile(r"\s+")


class Text(NamedTuple):
    """More of the answer."""

    text: str


class Reasoning(NamedTuple):
    """More of what the model thinks before it answers."""

    text: str


Piece: TypeAlias = Text | Reasoning | ToolCallDelta
Sink: TypeAlias = Callable[[str], None]
_T = TypeVar("_T")
Reading: TypeAlias = Generator[None, None, _T]


class NotACallError(Exception):
    """What was taken since ``Answer.hold`` is no call. It is to be given as text (``Answer.let_go``)."""


def sealed(marker: str) -> str:
    """How a marker that came as a token of its own stands in the text."""
    return f"{_SEAL}{marker}"


def may_be_seal(text: str) -> bool:
    """Whether it has a character that could be one of a seal's."""
    return any("\U000f0000" <= character <= "\U000fffff" for character in text)


class Answer:
    """The text that has come and is not yet read, and the pieces that were made of it.

    ``markers`` are the family's; those in ``tokens`` are tokens of the vocabulary and stand sealed in the text. One of
    ``only_first`` counts only before the answer has any text: later a model writes of it. Ids of calls are
    ``call_<number>_<call_id>``, cut to 64 characters.
    """

    def __init__(
        self,
        markers: Iterable[str],
        *,
        only_first: Iterable[str],
        tokens: frozenset[str],
        tools: Mapping[str, Tool],
        call_id: str,
    ) -> None:
        self.tools = tools
        self._only_first = frozenset(only_first)
        self._said = False
        self._spellings = {marker: sealed(marker) if marker in tokens else marker for marker in markers}
        self._markers = {spelling: marker for marker, spelling in self._spellings.items()}
        self._any_marker = re.compile("|".join(map(re.escape, self._markers)))
        self._name = re.compile("|".join(map(re.escape, self._spellings)))
        self._first_characters = frozenset(spelling[0] for spelling in self._markers)
        self._call_id = call_id
        self._text = ""
        self._at = 0
        self._ended = False
        self._held: list[str] | None = None
        self._held_characters = 0
        self._pieces: list[Piece] = []
        self._calls = 0

    def spell(self, text: str) -> str:
        """Text of the template's -> the same with its markers as they stand in the answer."""
        return self._name.sub(lambda found: self._spellings[found.group()], text)

    # --- for the parser ---------------------------------------------------------------------------------------------

    def add(self, text: str, *, last: bool = False) -> None:
        self._text = self._text[self._at :] + text
        if last:  # a stop string may have begun with the marker behind it
            self._text = self._text.removesuffix(_SEAL)
        self._at = 0
        self._ended = last

    def pieces(self) -> tuple[Piece, ...]:
        pieces, self._pieces = tuple(self._pieces), []
        return pieces

    # --- what comes out ---------------------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        self._said = self._said or not text.isspace()
        self._add(Text, text)

    def think(self, text: str) -> None:
        self._add(Reasoning, text)

    def _add(self, kind: type[Text] | type[Reasoning], text: str) -> None:
        for part in _shown(text):
            self._put(kind(part))

    def _put(self, piece: Piece) -> None:
        joined = _joined(self._pieces[-1], piece) if self._pieces else None
        if joined is None:
            self._pieces.append(piece)
        else:
            self._pieces[-1] = joined

    def call(self, name: str) -> Sink:
        """Begins a call; more of its arguments go into what is returned. Raises ``NotACallError`` for a function that
        was not offered, and for a call too many."""
        if name not in self.tools or self._calls >= MAX_TOOL_CALLS:
            raise NotACallError
        index = self._calls
        self._calls += 1
        self._held = None
        self._pieces.append(ToolCallDelta(index=index, id=f"call_{index}_{self._call_id}"[:_MAX_ID], name=name))

        def add(text: str) -> None:
            for part in _shown(text):
                self._put(ToolCallDelta(index=index, arguments=part))

        return add

    # --- holding back -----------------------------------------------------------------------------------------------

    def hold(self, marker: str = "") -> None:
        """From here on what is taken is kept, until it is a call or ``let_go``. ``marker`` was taken just before."""
        self._held, self._held_characters = [marker], len(marker)

    def let_go(self) -> None:
        """What is held was text."""
        held, self._held = self._held, None
        if text := "".join(held or ()):
            self.say(text)

    def drop(self) -> None:
        """What is held was a mark, and said what it had to."""
        self._held = None

    # --- taking -----------------------------------------------------------------------------------------------------

    def until(self, wanted: Iterable[str], sink: Sink) -> Reading[str]:
        """Text up to the first of the wanted markers goes into ``sink``. Returns that marker, taken; "" at the end."""
        wanted = frozenset(wanted)
        while True:
            found = self._any_marker.search(self._text, self._at)
            if found is None:
                self._pass_on(len(self._text) - (0 if self._ended else self._unfinished_marker()), sink)
                if self._ended:
                    return ""
                yield
                continue
            self._pass_on(found.start(), sink)
            marker = self._markers[found.group()]
            self._take(found.end())
            if marker in wanted and not (self._said and marker in self._only_first):
                return marker
            sink(marker)

    def peek(self) -> Reading[str]:
        """The next character; "" at the end."""
        while self._at == len(self._text) and not self._ended:
            yield
        return self._text[self._at : self._at + 1]

    def accept(self, literal: str) -> Reading[bool]:
        """Takes a marker or other text if it is what comes next."""
        literal = self._spellings.get(literal, literal)
        while not self._text.startswith(literal, self._at):
            if self._ended or not literal.startswith(self._text[self._at :]):
                return False
            yield
        self._take(self._at + len(literal))
        return True

    def expect(self, literal: str) -> Reading[None]:
        """Raises ``NotACallError`` if something else comes next."""
        if not (yield from self.accept(literal)):
            raise NotACallError

    def skip_space(self) -> Reading[None]:
        while (yield from self.peek()).isspace():
            self._run(_SPACE)

    def word(self) -> Reading[str]:
        """Letters, digits and ``_.-``, as the name of a function has. Raises ``NotACallError`` if there are none."""
        word = ""
        while _WORD.match((yield from self.peek())):
            word += self._run(_WORD)
        if not word:
            raise NotACallError
        return word

    def json_text(self) -> Reading[str]:
        """A JSON string. Raises ``NotACallError`` if none comes next."""
        taken: list[str] = []
        if (yield from self.peek()) != '"':
            raise NotACallError
        yield from self._string(taken.append)
        try:
            return msgspec.json.decode("".join(taken), type=str)
        except (msgspec.DecodeError, UnicodeError):
            raise NotACallError from None

    def json_value(self, sink: Sink) -> Reading[None]:
        """The text of one JSON value, or of what looks like one: it ends where brackets and quotes are even, and before
        what can stand in no JSON."""
        depth = 0
        while character := (yield from self.peek()):
            if character == '"':
                yield from self._string(sink)
            elif character in "{[":
                depth += 1
                sink(self._take(self._at + 1))
            elif character in "}]" and depth:
                depth -= 1
                sink(self._take(self._at + 1))
            elif text := self._run(_JSON_RUN if depth else _JSON_SCALAR):
                sink(text)
                continue
            else:
                return
            if not depth:
                return

    def _string(self, sink: Sink) -> Reading[None]:
        sink(self._take(self._at + 1))
        while character := (yield from self.peek()):
            if character == "\\":
                while len(self._text) - self._at < 2 and not self._ended:
                    yield
                sink(self._take(min(self._at + 2, len(self._text))))
            elif character == _SEAL[0] and (yield from self._at_seal()):
                return
            else:
                sink(self._run(_STRING_RUN) or self._take(self._at + 1))
                if character == '"':
                    return

    def _at_seal(self) -> Reading[bool]:
        """A control token is never part of a text."""
        while not self._ended and len(self._text) - self._at < len(_SEAL) and _SEAL.startswith(self._text[self._at :]):
            yield
        return self._text.startswith(_SEAL, self._at)

    # --- the text ---------------------------------------------------------------------------------------------------

    def _take(self, end: int) -> str:
        taken = self._text[self._at : end]
        self._at = end
        if self._held is not None:
            self._held.append(taken)
            self._held_characters += len(taken)
            if self._held_characters > MAX_HELD_CHARACTERS:
                raise NotACallError
        return taken

    def _run(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        return self._take(found.end()) if found else ""

    def _pass_on(self, end: int, sink: Sink) -> None:
        if end > self._at:
            sink(self._take(end))

    def _unfinished_marker(self) -> int:
        """Length of the longest end of the text with which a marker begins."""
        longest = max(map(len, self._markers)) - 1
        for length in range(min(longest, len(self._text) - self._at), 0, -1):
            if self._text[-length] in self._first_characters:
                end = self._text[-length:]
                if any(spelling.startswith(end) for spelling in self._markers):
                    return length
        return 0


def _shown(text: str) -> Iterable[str]:
    """In pieces, without seals: a stop string may have cut a marker off behind its seal, and a token may stand where
    its family expects none. Who knew the seal could have a model write marks that are none."""
    text = text.replace(_SEAL, "")
    return (text[start : start + MAX_PIECE_CHARACTERS] for start in range(0, len(text), MAX_PIECE_CHARACTERS))


def _length(piece: Piece) -> int:
    return len(piece.arguments if isinstance(piece, ToolCallDelta) else piece.text)


def _joined(one: Piece, more: Piece) -> Piece | None:
    """Both as one piece, if they are of one text or of one call, and not too long."""
    if _length(one) + _length(more) > MAX_PIECE_CHARACTERS:
        return None
    match one, more:
        case Text(), Text():
            return Text(one.text + more.text)
        case Reasoning(), Reasoning():
            return Reasoning(one.text + more.text)
        case ToolCallDelta(), ToolCallDelta() if one.index == more.index:
            return ToolCallDelta(index=one.index, id=one.id, name=one.name, arguments=one.arguments + more.arguments)
        case _:
            return None


class AnswerParser:
    """One answer: its text as it comes, its pieces as they are understood."""

    def __init__(self, answer: Answer, reading: Reading[None], *, begun: str = "") -> None:
        """``begun`` is what the prompt already wrote of the answer, its markers spelled as in the answer."""
        self._answer = answer
        self._reading = reading
        self._answer.add(begun)
        next(self._reading, None)

    def feed(self, text: str) -> tuple[Piece, ...]:
        return self._go_on(text, last=False)

    def finish(self) -> tuple[Piece, ...]:
        """The answer has ended; what was held back comes out."""
        return self._go_on("", last=True)

    def _go_on(self, text: str, *, last: bool) -> tuple[Piece, ...]:
        if text or last:
            self._answer.add(text, last=last)
            next(self._reading, None)
        return self._answer.pieces()
