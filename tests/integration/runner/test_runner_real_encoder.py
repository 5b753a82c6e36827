"""all-MiniLM-L6-v2 in a sandboxed runner gives the vectors that its weights give when they are computed elsewhere."""

import numpy as np
import pytest

from tests.support.minilm import MiniLm
from tests.support.runner_client import sandboxed_runner
from tests.support.vector_client import VectorClient

pytestmark = [pytest.mark.interop, pytest.mark.slow, pytest.mark.timeout(400)]

SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "Hi",
    "",
    "a b c",
    "An enterprise serves local language models behind a gate that nobody can walk around.",
    "Zażółć gęślą jaźń, naïve café, Ångström.",
    "DON'T SHOUT: UPPER CASE IS FOLDED, ACCENTS TOO: ÉÀÜ.",
    "3.14159 is not 22/7, and 1,000,000 is $1e6 (approximately).",
    "def f(x): return {'a': [x, x**2], \"b\": None}  # code",
    "https://example.test/path?query=1&other=2#fragment",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "机器学习 is machine learning; 日本語 too.",
    "An emoji 😀 is not in the vocabulary.",
    "line one\nline two\ttabbed   spaced",
    "[Brackets], (parentheses) & <angles>; an em dash \u2014 and \u201cquotes\u201d.",
    "word " * 60,
    "The quick brown fox jumps over the lazy dog. " * 20,
    "Sentences of different lengths share a batch without changing each other. " * 35,
)
PUBLISHED = np.array([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
"""The similarities of the first three, as the documentation of the library that trained the model prints them."""


def test_vectors_are_those_of_the_published_weights() -> None:
    model = MiniLm()
    ids = model.token_ids(SENTENCES)
    expected = np.stack([model.vector(each) for each in ids])
    np.testing.assert_allclose(expected[:3] @ expected[:3].T, PUBLISHED, atol=1e-4)
    with sandboxed_runner(model.gguf(), context_tokens=512, slots=8, threads=2) as runner:
        client = VectorClient(runner)
        ours = client.embed(*SENTENCES)
        told = [client.tokenise(text, add_special=True).ids for text in SENTENCES]
    cosines = (ours.vectors * expected).sum(axis=1)
    assert {text: cosine for text, cosine in zip(SENTENCES, cosines, strict=True) if cosine < 0.999} == {}
    assert [theirs for theirs, mine in zip(ids, told, strict=True) if theirs != mine] == []
    assert ours.end is not None and ours.end.prompt_tokens == sum(map(len, ids))
