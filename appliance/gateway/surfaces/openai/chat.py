"""``POST /v1/chat/completions``: request bytes -> ``Generation``.

Trusts: nothing in the body.
Promises: what ``ChatSurface.decode`` returns has every value in range; a tool that is forced is one that is offered.
Not here: whether the caller may have the answer (``pipeline``); how it is written (``chat_answer``).
"""

from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from appliance.core.values import (
    MAX_TOOL_CALLS,
    Constraint,
    Conversation,
    FunctionName,
    Generation,
    JsonObject,
    JsonSchema,
    Message,
    Tool,
    ToolCall,
    Value,
)
from appliance.gateway.generation import Head
from appliance.gateway.surfaces.decoding import BodyDecoder, Text
from appliance.gateway.surfaces.openai import fields
from appliance.gateway.surfaces.openai.chat_answer import ChunkWriter, Completion
from appliance.gateway.surfaces.openai.fields import MAX_JSON_CHARACTERS, CommonFields, invalid, json_text

_Ignored = Text | None
_CallId = Annotated[str, Meta(min_length=1, max_length=64)]


# --- messages -------------------------------------------------------------------------------------------------------


class _TextPart(Value, frozen=True, kw_only=True):
    """Images, audio and files are refused as unknown types."""

    type: Literal["text"]
    text: Text


_Content = Text | Annotated[tuple[_TextPart, ...], Meta(min_length=1, max_length=256)]


class _Turn(Value, frozen=True, kw_only=True, tag_field="role"):
    name: Annotated[str, Meta(max_length=64)] | None = None  # ignored


class _System(_Turn, frozen=True, kw_only=True, tag="system"):
    content: _Content


class _Developer(_Turn, frozen=True, kw_only=True, tag="developer"):
    content: _Content


class _User(_Turn, frozen=True, kw_only=True, tag="user"):
    content: _Content


class _CalledFunction(Value, frozen=True, kw_only=True):
    name: FunctionName
    arguments: Annotated[str, Meta(max_length=MAX_JSON_CHARACTERS)]


class _Call(Value, frozen=True, kw_only=True):
    id: _CallId
    function: _CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None  # ignored: left over where a client joined a stream


class _Assistant(_Turn, frozen=True, kw_only=True, tag="assistant"):
    content: _Content | None = None
    tool_calls: Annotated[tuple[_Call, ...], Meta(max_length=MAX_TOOL_CALLS)] | None = None
    # ignored: what an answer carries besides, sent back; templates leave earlier reasoning out
    reasoning_content: _Ignored = None
    reasoning: _Ignored = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[tuple[Any, ...], Meta(max_length=0)] | None = None


class _ToolTurn(_Turn, frozen=True, kw_only=True, tag="tool"):
    content: _Content
    tool_call_id: Annotated[str, Meta(max_length=64)] = ""


# --- tools and formats ----------------------------------------------------------------------------------------------


class _Function(Value, frozen=True, kw_only=True):
    name: FunctionName
    description: Annotated[str, Meta(max_length=16_384)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # ignored: whether a call is held to its schema does not depend on it


class _Tool(Value, frozen=True, kw_only=True):
    type: Literal["function"]
    function: _Function


class _NamedFunction(Value, frozen=True, kw_only=True):
    name: FunctionName


class _NamedTool(Value, frozen=True, kw_only=True):
    type: Literal["function"]
    function: _NamedFunction


class _TextFormat(Value, frozen=True, kw_only=True, tag_field="type", tag="text"):
    pass


class _ObjectFormat(Value, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    pass


class _NamedSchema(Value, frozen=True, kw_only=True):
    """``strict`` makes no difference: the answer is held to the schema in any case."""

    name: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
    schema: dict[str, Any]
    description: Annotated[str, Meta(max_length=16_384)] | None = None  # ignored
    strict: bool | None = None


class _SchemaFormat(Value, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    json_schema: _NamedSchema


# --- the request ----------------------------------------------------------------------------------------------------


class ChatFields(CommonFields, frozen=True, kw_only=True):
    messages: Annotated[
        tuple[_System | _Developer | _User | _Assistant | _ToolTurn, ...], Meta(min_length=1, max_length=1024)
    ]
    # honoured
    max_completion_tokens: fields.MaxTokens | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    response_format: _TextFormat | _ObjectFormat | _SchemaFormat | None = None
    tools: Annotated[tuple[_Tool, ...], Meta(max_length=128)] | None = None
    tool_choice: Literal["auto", "none", "required"] | _NamedTool | None = None
    # accepted in the one form that we keep: a model calls as often as it likes
    parallel_tool_calls: Literal[True] | None = None
    # ignored: they name things that Paddock decides or records by itself
    safety_identifier: fields.UserName | None = None
    metadata: dict[str, str] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None


_DECODER: Final = BodyDecoder(ChatFields)


class ChatSurface:
    """``generation.Surface``."""

    wire = ChatFields

    def decode(self, body: bytes) -> Generation:
        wire = _DECODER.decode(body)
        talk = _conversation(wire)
        return Generation(
            model=wire.model,
            prompt=talk,
            max_tokens=wire.max_completion_tokens or wire.max_tokens,
            sampling=fields.sampling(wire, logprobs=_logprobs(wire)),
            constraint=_constraint(wire, talk),
            choices=wire.n or 1,
            stream=bool(wire.stream),
            include_usage=fields.includes_usage(wire),
        )

    def stream(self, head: Head) -> ChunkWriter:
        return ChunkWriter(head)

    def whole(self, head: Head) -> Completion:
        return Completion(head)


def _logprobs(wire: ChatFields) -> int | None:
    if wire.logprobs:
        return wire.top_logprobs or 0
    if wire.top_logprobs:
        raise invalid("top_logprobs without logprobs", "top_logprobs")
    return None


def _conversation(wire: ChatFields) -> Conversation:
    messages = tuple(map(_message, wire.messages))
    tools = tuple(map(_tool, wire.tools or ()))
    names = {tool.name for tool in tools}
    if len(names) < len(tools):
        raise invalid("two tools of one name", "tools")
    choice = wire.tool_choice
    if isinstance(choice, _NamedTool):
        if choice.function.name not in names:
            raise invalid("a tool that is not offered", "tool_choice")
        return Conversation(messages=messages, tools=tools, tool_choice="required", forced_tool=choice.function.name)
    if choice == "required" and not tools:
        raise invalid("a call without tools", "tool_choice")
    return Conversation(messages=messages, tools=tools, tool_choice=choice or "auto")


def _message(turn: _System | _Developer | _User | _Assistant | _ToolTurn) -> Message:
    match turn:
        case _User():
            return Message(role="user", content=_content(turn.content))
        case _Assistant():
            calls = tuple(map(_call, turn.tool_calls or ()))
            if turn.content is None and not calls:
                raise invalid("a turn with nothing in it", "messages")
            return Message(role="assistant", content=_content(turn.content or ""), tool_calls=calls)
        case _ToolTurn():
            return Message(role="tool", content=_content(turn.content), tool_call_id=turn.tool_call_id)
        case _System() | _Developer():
            return Message(role="system", content=_content(turn.content))


def _content(content: _Content) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _call(call: _Call) -> ToolCall:
    return ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)


def _tool(tool: _Tool) -> Tool:
    asked = tool.function
    if asked.parameters is None:
        return Tool(name=asked.name, description=asked.description or "")
    parameters = json_text(asked.parameters, "tools")
    return Tool(name=asked.name, description=asked.description or "", parameters=parameters)


def _constraint(wire: ChatFields, talk: Conversation) -> Constraint | None:
    """At most one, and none beside tools that may be called: the answer could not be both."""
    grammar, shape = fields.grammar(wire), _format(wire)
    if grammar is not None and shape is not None:
        raise invalid("two constraints on one answer", "grammar")
    constraint = grammar or shape
    if constraint is not None and talk.callable_tools:
        raise invalid("a constraint beside tools that may be called", "grammar" if grammar else "response_format")
    return constraint


def _format(wire: ChatFields) -> JsonObject | JsonSchema | None:
    match wire.response_format:
        case _ObjectFormat():
            return JsonObject()
        case _SchemaFormat(json_schema=named):
            return JsonSchema(schema=json_text(named.schema, "response_format"))
        case _:
            return None
