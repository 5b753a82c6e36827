"""A conversation as templates written for Hugging Face expect it, with a placeholder for every text of a caller's.

``messages`` are dicts with ``role`` and ``content``; an assistant's with ``tool_calls`` (``id``, ``type``, ``function``
of ``name`` and ``arguments``), a tool's with ``tool_call_id`` and ``name``. ``tools`` are dicts with ``type`` and
``function`` (``name``, ``description``, ``parameters``). Source: the chat templating guide of Transformers.

Arguments and parameters are mappings, whose text is their JSON: a template that writes ``{{ arguments }}`` and one that
writes ``{{ arguments | tojson }}`` both get it.

Three things are shown as they are, since templates decide by them and they say nothing of a caller's own: numbers,
words of JSON Schema, and the ids of calls, which become nine digits in order of appearance (some templates insist on
nine characters).

Trusts: nothing. The JSON in tools and calls is the caller's.
Promises: no other text of a caller's reaches the template.
Not here: the placeholders themselves (``chat.placeholders``).
"""

from collections.abc import Generator
from typing import Any, Final, NamedTuple

import msgspec

from appliance.core.values import Message, Tool, ToolCall
from appliance.ipc.messages import Conversation
from appliance.runner.chat.placeholders import Placeholders, RenderError, to_json

_MAX_JSON_CHARACTERS: Final = 1_000_000
_MESSAGES_PER_SLICE: Final = 128

_SCHEMA_WORDS: Final = frozenset({
    "type", "properties", "required", "items", "enum", "const", "description", "title", "default", "format",
    "nullable", "examples", "strict", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems", "prefixItems", "contains",
    "minProperties", "maxProperties", "additionalProperties", "patternProperties", "propertyNames", "anyOf",
    "oneOf", "allOf", "not", "if", "then", "else", "$ref", "$defs", "$schema", "definitions", "object", "array",
    "string", "number", "integer", "boolean", "null",
})  # fmt: skip


class _Object(dict[str, Any]):
    """A JSON object, which prints as JSON and may be added to a text."""

    def __str__(self) -> str:
        return to_json(self)

    def __add__(self, other: str) -> str:
        return str(self) + other

    def __radd__(self, other: str) -> str:
        return other + str(self)


class _Array(list[Any]):
    """A JSON array, which prints as JSON."""

    def __str__(self) -> str:
        return to_json(self)


class Turns(NamedTuple):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None


def turns_of(conversation: Conversation, placeholders: Placeholders) -> Generator[None, None, Turns]:
    """In slices. Raises ``RenderError`` for JSON that is none, or too much, and for two tools of one name."""
    shown = offered(conversation)
    calls = [call for message in conversation.messages for call in message.tool_calls]
    if sum(len(tool.parameters) for tool in shown) + sum(len(call.arguments) for call in calls) > _MAX_JSON_CHARACTERS:
        raise RenderError(f"tools and calls have more than {_MAX_JSON_CHARACTERS} characters of JSON")
    try:
        tools = yield from _tools(shown, placeholders)
        messages = yield from _Turner(placeholders).messages(conversation.messages)
        return Turns(messages, tools)
    except RecursionError:
        raise RenderError("a tool or a call is nested too deeply") from None


def offered(conversation: Conversation) -> tuple[Tool, ...]:
    """The tools that the model is told of: those that it may call. Raises ``RenderError`` when it must call one and
    there is none."""
    tools = () if conversation.tool_choice == "none" else conversation.tools
    if conversation.forced_tool:
        tools = tuple(tool for tool in tools if tool.name == conversation.forced_tool)
    if not tools and (conversation.forced_tool or conversation.tool_choice == "required"):
        raise RenderError("the tool that must be called is not offered")
    return tools


def _tools(tools: tuple[Tool, ...], placeholders: Placeholders) -> Generator[None, None, list[dict[str, Any]] | None]:
    if len({tool.name for tool in tools}) < len(tools):
        raise RenderError("two tools have one name")
    made: list[dict[str, Any]] = _Array()
    for tool in tools:
        made.append(_tool(tool, placeholders))
        yield
    return made or None


def _tool(tool: Tool, placeholders: Placeholders) -> dict[str, Any]:
    parameters = _decoded(tool.parameters)
    if not isinstance(parameters, dict):
        raise RenderError("the parameters of a tool are not a JSON object")
    function = _Object(
        name=placeholders.stand_for(tool.name, "tools"),
        description=placeholders.stand_for(tool.description),
        parameters=_Texts(placeholders, plain=_SCHEMA_WORDS).replaced(parameters),
    )
    return _Object(type="function", function=function)


class _Turner:
    """Keeps the ids and names of the calls so far, by which tool turns are matched with them."""

    def __init__(self, placeholders: Placeholders) -> None:
        self._placeholders = placeholders
        self._ids: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def messages(self, messages: tuple[Message, ...]) -> Generator[None, None, list[dict[str, Any]]]:
        made = []
        for message in messages:
            made.append(self._message(message))
            if message.tool_calls or len(made) % _MESSAGES_PER_SLICE == 0:
                yield
        return made

    def _message(self, message: Message) -> dict[str, Any]:
        content = self._placeholders.stand_for(message.content, "messages")
        turn: dict[str, Any] = _Object(role=message.role, content=content)
        if message.tool_calls:
            turn["tool_calls"] = _Array(self._call(call) for call in message.tool_calls)
        if message.role == "tool":
            turn["tool_call_id"] = self._id(message.tool_call_id)
            if name := self._names.get(message.tool_call_id):
                turn["name"] = self._placeholders.stand_for(name)
        return turn

    def _call(self, call: ToolCall) -> dict[str, Any]:
        self._names[call.id] = call.name
        name = self._placeholders.stand_for(call.name, "calls")
        function = _Object(name=name, arguments=self._arguments(call.arguments))
        return _Object(id=self._id(call.id), type="function", function=function)

    def _arguments(self, text: str) -> Any:
        """What the model once wrote: an object, or a text that it meant for one."""
        try:
            value = _decoded(text or "{}")
        except RenderError:
            value = text
        if isinstance(value, dict):
            return _Texts(self._placeholders, wanted="arguments of calls").replaced(value)
        return self._placeholders.stand_for(text, "arguments of calls")

    def _id(self, caller_id: str) -> str:
        return self._ids.setdefault(caller_id, f"{len(self._ids):09}")


class _Texts:
    """The texts of one JSON document. Equal ones get one placeholder, so that a template may compare them."""

    def __init__(self, placeholders: Placeholders, *, plain: frozenset[str] = frozenset(), wanted: str = "") -> None:
        self._placeholders = placeholders
        self._plain = plain
        self._wanted = wanted
        self._known: dict[str, str] = {}

    def replaced(self, value: Any) -> Any:
        """The document with placeholders in place of its strings and keys. Raises ``RecursionError``."""
        match value:
            case str():
                return self._text(value)
            case list():
                return _Array(self.replaced(item) for item in value)
            case dict():
                return _Object((self._text(name), self.replaced(item)) for name, item in value.items())
            case _:
                return value

    def _text(self, text: str) -> str:
        if text in self._plain:
            return text
        if text not in self._known:
            self._known[text] = self._placeholders.stand_for(text, self._wanted)
        return self._known[text]


def _decoded(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError):
        raise RenderError("the parameters of a tool are not JSON") from None
