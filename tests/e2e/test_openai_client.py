"""The official OpenAI client, unmodified, against a whole appliance."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from appliance.cli import status
from appliance.core.records import Closed, Opened, RefusedRequest
from appliance.sandbox.layers import LAYERS
from tests.support.appliance import LIMIT_SECONDS, TestAppliance, appliance
from tests.support.chain_model import STORY, chain_model

SCRIPT_TOKENS = len(STORY.split(" "))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestAppliance]:
    with appliance(tmp_path_factory.mktemp("openai"), {"chain": chain_model()}) as one:
        yield one


@pytest.fixture
def client(server: TestAppliance) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1", api_key=server.token(), timeout=LIMIT_SECONDS, max_retries=0
    ) as one:
        yield one


def test_answer_is_whole_and_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chain", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == STORY
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == SCRIPT_TOKENS
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + SCRIPT_TOKENS


def test_streamed_answer_ends_with_usage(client: openai.OpenAI) -> None:
    text, finish, usage = "", None, None
    with client.chat.completions.create(
        model="chain",
        messages=[{"role": "user", "content": "hi"}],
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.usage is not None:
                assert chunk.choices == []
                usage = chunk.usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
    assert (text, finish) == (STORY, "stop")
    assert usage is not None
    assert usage.completion_tokens == SCRIPT_TOKENS


def test_max_tokens_ends_the_answer_with_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="chain", messages=[{"role": "user", "content": "hi"}], max_completion_tokens=3
    )
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "Once upon a"


def test_stop_string_never_appears(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="chain", messages=[{"role": "user", "content": "hi"}], stop=["friend told"]
    )
    assert answer.choices[0].message.content == "Once upon a time \U0001f600 one "


def test_text_is_continued_without_a_template(client: openai.OpenAI) -> None:
    for prompt in ("hi", ["hi"]):
        answer = client.completions.create(model="chain", prompt=prompt)
        assert answer.object == "text_completion"
        assert answer.choices[0].text == STORY
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == SCRIPT_TOKENS


def test_streamed_continuation_ends_with_usage(client: openai.OpenAI) -> None:
    text, finish, usage = "", None, None
    options: Any = {"include_usage": True}
    with client.completions.create(model="chain", prompt="hi", stream=True, stream_options=options) as stream:
        for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.text
                finish = choice.finish_reason or finish
    assert (text, finish) == (STORY, "stop")
    assert usage is not None
    assert usage.completion_tokens == SCRIPT_TOKENS


def test_token_ids_outside_the_vocabulary_cost_one_request_and_not_the_runner(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="chain", prompt=[2**21])
    assert refused.value.code == "field-invalid"
    assert client.completions.create(model="chain", prompt="hi", max_tokens=1).choices[0].text


def test_sampling_fields_of_other_servers_are_known(client: openai.OpenAI) -> None:
    extra = {"top_k": 1, "min_p": 0.0, "repeat_penalty": 1.0, "ignore_eos": False, "mirostat": 0}
    answer = client.chat.completions.create(
        model="chain", messages=[{"role": "user", "content": "hi"}], extra_body=extra
    )
    assert answer.choices[0].message.content == STORY


def test_answer_can_be_sent_back_as_it_came(client: openai.OpenAI) -> None:
    hello: Any = {"role": "user", "content": "hi"}
    answer = client.chat.completions.create(model="chain", messages=[hello])
    again: list[Any] = [hello, answer.choices[0].message, hello]
    assert client.chat.completions.create(model="chain", messages=again).choices[0].message.content == STORY


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["chain"]
    assert client.models.retrieve("chain").owned_by == "tester"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")


def test_errors_are_the_clients_own_kinds(server: TestAppliance, client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="nonsense").models.list()
    visitor = client.with_options(api_key=server.token("mallory", groups=("visitors",)))
    with pytest.raises(openai.NotFoundError) as denied:
        visitor.chat.completions.create(model="chain", messages=messages)  # type: ignore[arg-type]
    assert denied.value.code == "model-not-found"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nothing", messages=messages)  # type: ignore[arg-type]


def test_a_prompt_that_does_not_fit_is_refused_by_the_runner(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="chain", messages=[{"role": "user", "content": "x" * 5000}])
    assert refused.value.code == "prompt-too-long"


def test_every_answer_is_bound_to_its_model_and_runner_in_the_log(server: TestAppliance, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="chain", messages=[{"role": "user", "content": "secret words"}])
    request_id = answer.id.removeprefix("chatcmpl-")
    server.wait_until(lambda: any(r.request_id == request_id for r in server.records(Closed)), "the closed record")
    (opened,) = [record for record in server.records(Opened) if record.request_id == request_id]
    (closed,) = [record for record in server.records(Closed) if record.request_id == request_id]
    assert opened.model.signer.name == "tester"
    assert opened.runner.seal_mode == "sealed-memfd"
    assert {"seccomp-stage-1", "seccomp-stage-2", "landlock", "no-capabilities"} <= set(opened.runner.layers)
    assert opened.runner.degraded == ()
    assert (closed.outcome, closed.completion_tokens) == ("completed", SCRIPT_TOKENS)
    assert closed.returned_tokens == opened.reserved_tokens - closed.prompt_tokens - closed.completion_tokens
    log = b"".join(path.read_bytes() for path in (server.config.notary_dir / "log").rglob("*") if path.is_file())
    assert b"secret words" not in log
    assert client.api_key.encode() not in log


def test_continuation_is_recorded_as_what_it_is(server: TestAppliance, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="chain", prompt="secret words", max_tokens=1)
    request_id = answer.id.removeprefix("cmpl-")
    (opened,) = [record for record in server.records(Opened) if record.request_id == request_id]
    assert opened.route == "/v1/completions"
    assert opened.policy_input["action"]["operation"] == "complete"
    assert opened.policy_input["request"] == {
        "max_tokens": 1,
        "messages": 0,
        "prompt_bytes": len("secret words"),
        "stream": False,
        "tools": 0,
        "constraint": "none",
        "choices": 1,
    }


def test_status_names_signer_seal_and_every_layer(
    server: TestAppliance, client: openai.OpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    client.chat.completions.create(model="chain", messages=[{"role": "user", "content": "hi"}], max_tokens=1)
    assert status.show(server.config, as_json=True) == 0
    (loaded,) = json.loads(capsys.readouterr().out)["loaded"]
    assert loaded["model"]["name"] == "chain"
    assert loaded["model"]["digest"].startswith("sha256:")
    assert loaded["model"]["signer"]["name"] == "tester"
    assert loaded["runner"]["seal_mode"] == "sealed-memfd"
    assert set(loaded["runner"]["layers"]) == set(LAYERS)
    assert loaded["runner"]["filter_digest"].startswith("sha256:")
    assert status.show(server.config, as_json=False) == 0
    assert "signer    tester" in capsys.readouterr().out


def test_refusal_of_a_known_principal_is_recorded_once(server: TestAppliance) -> None:
    answer = server.chat(server.token("eve", groups=("visitors",)))
    assert answer.status == 404
    request_id = answer.headers["x-request-id"]
    (record,) = [record for record in server.records(RefusedRequest) if record.request_id == request_id]
    assert (record.actor.subject, record.reason) == ("eve", "model-not-found")
    assert record.decision is not None
    assert record.decision.reasons == ("no-group-permits-model",)
