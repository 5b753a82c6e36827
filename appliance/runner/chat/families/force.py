"""Writing the beginning of an answer for a model, so that a constraint can hold it to the rest.

A call that must be made is begun, and a JSON Schema gives its arguments. An answer under a caller's own constraint is
begun past the reasoning, whose marks no constraint lets through.

What is written is part of the prompt, so it may have control tokens, which no grammar over text could ask for. With one
tool to call its name is written too, and the schema is that of its arguments. Among several, families that write the
name as JSON choose under a schema of the whole call; the others are refused, since their names stand between marks.

Trusts: nothing; names and schemas are the caller's, and stay content.
Promises: after ``parts``, whatever is valid under ``schema`` is read as a call of one of the tools.
Not here: the grammar of the schema (``runner.grammar``), reading the call (the families).
"""

import json
from typing import Any, Final, NamedTuple

import msgspec

from appliance.core.values import Tool
from appliance.runner.chat.families import deepseek, granite, harmony, hermes, mistral
from appliance.runner.chat.placeholders import Part, RenderError

_MAX_SCHEMA_CHARACTERS: Final = 65_536


class Forced(NamedTuple):
    """The parts that end the prompt, and the schema of the answer."""

    parts: tuple[Part, ...]
    schema: str


def constrained_answer(family: str, *, open_mark_close: str = "") -> tuple[Part, ...]:
    """The parts that end the prompt of an answer that is only text. ``open_mark_close`` as for ``forced_call``."""
    if family == "harmony":
        return (Part(f"{harmony.CHANNEL}final{harmony.MESSAGE}", content=False),)
    return (Part(f"{open_mark_close}\n\n", content=False),) if open_mark_close else ()


class _Form(NamedTuple):
    """How a call begins: before its name, and between name and arguments. ``arguments`` is the key of a call that is
    JSON from ``json_from`` in ``before`` on; empty where it is not."""

    before: str
    between: str
    arguments: str = ""
    json_from: int = 0


def forced_call(family: str, template: str, tools: tuple[Tool, ...], *, open_mark_close: str = "") -> Forced:
    """One call of one of the tools. ``open_mark_close`` ends the reasoning that the prompt has begun.

    Raises ``RenderError`` for a family, or for tools, that cannot be forced.
    """
    form = _form(family, template)
    if form is None:
        raise RenderError("a model of this family cannot be made to call a tool")
    ending = f"{open_mark_close}\n\n" if open_mark_close else ""
    if len(tools) == 1:
        name = Part(tools[0].name, content=True)
        return Forced((Part(ending + form.before, False), name, Part(form.between, False)), tools[0].parameters)
    if not form.arguments:
        raise RenderError("a model of this family cannot be made to choose among several tools")
    parts = (Part(ending + form.before[: form.json_from], False),)
    return Forced(tuple(part for part in parts if part.text), _schema_of_any(tools, form.arguments))


def _form(family: str, template: str) -> _Form | None:
    match family:
        case "hermes":
            return _json_form(f"{hermes.CALL}\n", "arguments")
        case "llama":
            return _json_form("", "parameters")
        case "granite" if granite.BAR in template:
            return _json_form(f"{granite.BAR}[", "arguments")
        case "granite":
            return _json_form(f"{granite.TAG}\n", "arguments")
        case "mistral" if mistral.ARGUMENTS in template:
            return _Form(mistral.CALL, mistral.ARGUMENTS)
        case "mistral":
            return _json_form(f"{mistral.CALL}[", "arguments")
        case "deepseek" if "```json" in template:
            start = f"{deepseek.ALL[0]}{deepseek.ONE[0]}function{deepseek.SEPARATOR}"
            return _Form(start, "\n```json\n")
        case "deepseek":
            return _Form(deepseek.ALL[0] + deepseek.ONE[0], deepseek.SEPARATOR)
        case "harmony":
            start = f"{harmony.CHANNEL}commentary to={harmony.RECIPIENT}"
            return _Form(start, f" {harmony.CONSTRAIN}json{harmony.MESSAGE}")
        case _:
            return None


def _json_form(mark: str, arguments: str) -> _Form:
    return _Form(f'{mark}{{"name": "', f'", "{arguments}": ', arguments, len(mark))


def _schema_of_any(tools: tuple[Tool, ...], arguments: str) -> str:
    schema = json.dumps({"anyOf": [_schema_of_call(tool, arguments) for tool in tools]})
    if len(schema) > _MAX_SCHEMA_CHARACTERS:
        raise RenderError("the schemas of the tools are too long to choose among them")
    return schema


def _schema_of_call(tool: Tool, arguments: str) -> dict[str, Any]:
    """A reference in it would point into another document now."""
    if '"$ref"' in tool.parameters:
        raise RenderError("a tool whose schema has references can be forced alone only")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.name}, arguments: msgspec.json.decode(tool.parameters)},
        "required": ["name", arguments],
        "additionalProperties": False,
    }
