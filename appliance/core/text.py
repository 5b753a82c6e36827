"""Strangers' text on its way to an operator."""


def printable(text: str) -> str:
    """For a terminal, or a log that is read line by line: whatever would move the cursor or hide becomes ``?``."""
    return "".join(character if character.isprintable() else "?" for character in text)
