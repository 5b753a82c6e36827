"""A template's rendering from beginning to end."""

from appliance.ipc.messages import Conversation
from appliance.runner.chat.template import ChatTemplate, Part


def rendered(template: ChatTemplate, conversation: Conversation) -> tuple[Part, ...]:
    return rendered_in_slices(template, conversation)[0]


def rendered_in_slices(template: ChatTemplate, conversation: Conversation) -> tuple[tuple[Part, ...], int]:
    """With the number of slices."""
    rendering, slices = template.render(conversation), 1
    while True:
        try:
            next(rendering)
        except StopIteration as done:
            return done.value, slices
        slices += 1
