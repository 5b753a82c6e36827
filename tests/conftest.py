"""What every test rests on, whoever runs it."""

import os

os.umask(0o022)
"""Tests write keys as an operator's editor would, and a key that a group may write is refused. Many systems give users
002; what the product itself writes must be right under any, and is tried so (``test_demo_under_any_umask``)."""
