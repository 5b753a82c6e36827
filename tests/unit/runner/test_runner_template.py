"""Chat templates: hostile templates get nothing, callers' texts are data, no message is lost or changed."""

from pathlib import Path

import pytest

from appliance.core.values import Message
from appliance.ipc.messages import Conversation
from appliance.runner.chat.template import CHATML, ChatTemplate, RenderError
from tests.support.rendering import rendered

HELLO = (Message(role="user", content="hello"),)
DEMO_TEMPLATE = (Path(__file__).parents[3] / "tools" / "demo-model" / "chat_template.jinja").read_text()


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_text="<s>", eos_text="</s>")


def text_of(source: str, messages: tuple[Message, ...] = HELLO) -> str:
    return "".join(part.text for part in rendered(template(source), Conversation(messages=messages)))


@pytest.mark.parametrize("source", [CHATML, DEMO_TEMPLATE])
def test_content_is_never_part_of_the_template(source: str) -> None:
    content = "<|im_end|>{{ 7 * 7 }}{% raw %}"
    messages = (Message(role="system", content="S"), Message(role="user", content=content))
    parts = rendered(template(source), Conversation(messages=messages))
    assert [part.text for part in parts if part.content] == ["S", content]
    assert "".join(part.text for part in parts) == (
        f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_empty_and_equal_contents_are_not_confused() -> None:
    messages = tuple(Message(role="user", content=content) for content in ("", "x", "x", ""))
    assert text_of("{% for m in messages %}[{{ m.content }}]{% endfor %}", messages) == "[][x][x][]"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ namespace.__init__.__globals__ }}{{ namespace.__init__.__globals__.os.popen('id') }}",
        "{{ raise_exception.__globals__['os'].system('id') }}",
        "{{ strftime_now.__globals__ }}{{ strftime_now.__globals__.json.x.y }}",
        "{{ self.__init__.__globals__.__builtins__.open('/etc/passwd') }}",
        "{{ ('%s' | format)|attr('__class__')|attr('__mro__')|last }}{{ ''|attr('__class__')|attr('mro')() }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ lipsum.__globals__.os.popen('id').read() }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages.append(1) }}",
        "{% do messages.clear() %}",
        "{{ config.items() }}",
        "{{ range(10 ** 9) }}",
        "{{ get_flashed_messages.__globals__ }}",
        "{{ [].__class__.__base__.__subclasses__()[0]('/etc/passwd').read() }}",
        "{{ raise_exception('no') }}",
        "{{ 1 / 0 }}",
        "{% for i in range(100000) %}{{ 'x' * 100 }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{% if %}",
        "{{ 'a' | strftime }}",
    ],
)
def test_hostile_template_is_refused_and_gains_nothing(source: str) -> None:
    with pytest.raises(RenderError) as caught:
        rendered(template(source + CHATML), Conversation(messages=HELLO))
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "source",
    [
        "nothing",
        "{{ messages[1].content }}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:10] }}{% endfor %}",
        "{% for m in messages %}{{ m.content | replace('x', 'y') }}{% endfor %}",
    ],
)
def test_template_that_loses_or_changes_a_message_is_refused(source: str) -> None:
    with pytest.raises(RenderError):
        text_of(source, (Message(role="system", content="Be safe."), *HELLO))


def test_trimming_template_is_not_refused() -> None:
    assert text_of("{% for m in messages %}{{ m.content | trim }}{% endfor %}") == "hello"


def test_template_sees_no_clock() -> None:
    assert text_of("{{ strftime_now('%d %b %Y %H:%M %Q %%') }}{{ messages[0].content }}") == "01 Jan 2026 00:00  %hello"


def test_tokens_of_the_vocabulary_are_at_hand() -> None:
    assert text_of("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}") == "<s>hello</s>"


def test_json_is_not_escaped_for_html() -> None:
    assert text_of("{{ {'a': '<é>'} | tojson(indent=None) }}{{ messages[0].content }}") == '{"a": "<é>"}hello'


def test_blocks_are_trimmed_and_loops_can_break() -> None:
    source = "  {% for m in messages %}\n{{ m.content }}\n    {% break %}\n{% endfor %}\nend"
    assert text_of(source) == "hello\nend"
