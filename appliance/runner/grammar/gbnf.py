"""Whether a caller's grammar may be given to llama.cpp.

llama.cpp's grammar code trusts its input: a few hundred bytes take all its memory, overflow its stack or never end. A
grammar passes here if its size, its nesting and the number of derivations that can be open at once are bounded.

Trusts: nothing.
Promises: well under 100 ms for any text. What passes, llama.cpp accepts, and no step of it costs more than in
proportion to ``ambiguity.MAX_WIDTH``.
Not here: which tokens fit (llama.cpp); when a grammar is put to use (``engine``).
"""

from appliance.runner.grammar.ambiguity import check_ambiguity
from appliance.runner.grammar.notation import GrammarInvalid, parse

__all__ = ["GrammarInvalid", "check"]


def check(text: str) -> None:
    """Raises ``GrammarInvalid``."""
    check_ambiguity(parse(text))
