"""Vectors, scores and tokens through a whole appliance, with the official OpenAI client where it has a word for it."""

import base64
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest

from appliance.core.records import Closed, Opened, RefusedRequest
from tests.support.appliance import LIMIT_SECONDS, Answer, TestAppliance, appliance
from tests.support.bert_model import POOLING, WIDTH, bert_model
from tests.support.chain_model import chain_model

TEXTS = ["hello world", "a", "the quick brown fox"]
TOKENS = [10 + 2, 1 + 2, 16 + 2]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    models = {
        "chain": chain_model(),
        "encoder": bert_model(),
        "ranker": bert_model(POOLING["rank"], head=True),
    }
    with appliance(tmp_path_factory.mktemp("computations"), models, "[models]\nmax_loaded = 3\n") as one:
        yield one


@pytest.fixture
def client(server: TestAppliance) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=server.token(), timeout=LIMIT_SECONDS, max_retries=0
    ) as one:
        yield one


def _post(server: TestAppliance, path: str, **body: Any) -> Answer:
    return server.request("POST", path, token=server.token(), body=body)


def test_vectors_reach_the_official_client_in_both_forms(client: openai.OpenAI) -> None:
    coded = client.embeddings.create(model="encoder", input=TEXTS)
    plain = client.embeddings.create(model="encoder", input=TEXTS, encoding_format="float")
    vectors = np.array([each.embedding for each in coded.data])
    assert vectors.shape == (len(TEXTS), WIDTH)
    assert [each.index for each in coded.data] == [0, 1, 2]
    assert coded.usage.prompt_tokens == coded.usage.total_tokens == sum(TOKENS)
    np.testing.assert_allclose(vectors, [each.embedding for each in plain.data], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    short = client.embeddings.create(model="encoder", input=TEXTS[0], dimensions=8)
    np.testing.assert_allclose(short.data[0].embedding, vectors[0][:8] / np.linalg.norm(vectors[0][:8]), atol=1e-5)


def test_tokens_are_as_good_as_the_text_that_they_stand_for(server: TestAppliance, client: openai.OpenAI) -> None:
    told = _post(server, "/tokenize", model="encoder", content=TEXTS[0], add_special=True).json()
    assert told["count"] == len(told["tokens"]) == TOKENS[0]
    by_ids = client.embeddings.create(model="encoder", input=told["tokens"]).data[0].embedding
    by_text = client.embeddings.create(model="encoder", input=TEXTS[0]).data[0].embedding
    np.testing.assert_allclose(by_ids, by_text, atol=1e-5)


def test_a_text_comes_back_from_its_tokens(server: TestAppliance) -> None:
    told = _post(server, "/tokenize", model="chain", prompt="h\u00e9llo<|im_end|>").json()
    assert (
        _post(server, "/detokenize", model="chain", tokens=told["tokens"]).json()["content"] == "h\u00e9llo<|im_end|>"
    )


def test_documents_are_ranked_best_first(server: TestAppliance) -> None:
    asked = {"model": "ranker", "query": "hello", "documents": [*TEXTS, {"text": "blue"}]}
    results = _post(server, "/v1/rerank", **asked).json()["results"]
    scores = [each["relevance_score"] for each in results]
    assert sorted(each["index"] for each in results) == [0, 1, 2, 3]
    assert scores == sorted(scores, reverse=True)
    best = _post(server, "/rerank", **asked, top_n=1, return_documents=True).json()["results"]
    texts = [*TEXTS, "blue"]
    assert best == [{**results[0], "document": {"text": texts[results[0]["index"]]}}]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"model": "encoder", "messages": [{"role": "user", "content": "hi"}]}),
        ("/v1/embeddings", {"model": "chain", "input": "hi"}),
        ("/v1/embeddings", {"model": "ranker", "input": "hi"}),
        ("/v1/rerank", {"model": "encoder", "query": "q", "documents": ["d"]}),
    ],
)
def test_a_model_is_not_asked_for_what_it_is_not_for(server: TestAppliance, path: str, body: dict[str, Any]) -> None:
    answer = _post(server, path, **body)
    assert answer.status == 400
    assert answer.json()["error"]["code"] == "operation-unsupported"
    assert answer.json()["error"]["param"] == "model"


def test_what_is_too_long_is_refused_and_costs_nothing(server: TestAppliance) -> None:
    long = "a" * 200
    refused = _post(server, "/v1/embeddings", model="encoder", input=["a", long])
    assert (refused.status, refused.json()["error"]["code"]) == (400, "prompt-too-long")
    cut = _post(server, "/v1/embeddings", model="encoder", input=long, truncate=True, encoding_format="base64")
    assert len(base64.b64decode(cut.json()["data"][0]["embedding"])) == 4 * WIDTH
    assert cut.json()["usage"]["prompt_tokens"] == 128


def test_a_model_outside_the_token_does_not_exist(server: TestAppliance) -> None:
    token = server.token(models=("chain",))
    answer = server.request("POST", "/v1/embeddings", token=token, body={"model": "encoder", "input": "a"})
    assert (answer.status, answer.json()["error"]["code"]) == (404, "model-not-found")


def test_every_computation_is_in_the_log_with_its_price(server: TestAppliance) -> None:
    request = {"model": "encoder", "input": TEXTS}
    request_id = _post(server, "/v1/embeddings", **request).headers["x-request-id"]
    refused_id = _post(server, "/tokenize", model="missing", content="a").headers["x-request-id"]
    (opened,) = (record for record in server.records(Opened) if record.request_id == request_id)
    (closed,) = (record for record in server.records(Closed) if record.request_id == request_id)
    (refused,) = (record for record in server.records(RefusedRequest) if record.request_id == refused_id)
    assert opened.route == "/v1/embeddings"
    assert opened.policy_input["action"]["operation"] == "embed"
    assert opened.policy_input["request"]["prompt_bytes"] == sum(map(len, TEXTS))
    assert opened.reserved_tokens >= sum(TOKENS)
    assert (closed.outcome, closed.prompt_tokens, closed.completion_tokens) == ("completed", sum(TOKENS), 0)
    assert closed.returned_tokens == opened.reserved_tokens - sum(TOKENS)
    assert (refused.route, refused.reason) == ("/tokenize", "model-not-found")
