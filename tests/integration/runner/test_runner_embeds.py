"""A bare runner with an encoder: vectors, scores, and who waits for whom."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from appliance.ipc.messages import Cancel, Ready, Reset
from appliance.runner.embeddings import MAX_WAITING_OF_ONE
from tests.support.bert_model import POOLING, VOCABULARY, WIDTH, bert_model
from tests.support.chain_model import STORY, chain_model
from tests.support.random_model import random_model
from tests.support.runner_client import bare_runner, sandboxed_runner
from tests.support.vector_client import VectorClient

CLS, SEP = VOCABULARY.index("[CLS]"), VOCABULARY.index("[SEP]")
CONTEXT = 128
MANY = 256
TEXTS = ("hello world", "a", "the quick brown fox", "", "0123456789. " * 8, "hello, world!")


@pytest.fixture(scope="module")
def client() -> Iterator[VectorClient]:
    with bare_runner(bert_model()) as runner:
        yield VectorClient(runner)


@pytest.fixture(scope="module")
def ranker() -> Iterator[VectorClient]:
    with bare_runner(bert_model(POOLING["rank"], head=True)) as runner:
        yield VectorClient(runner)


@pytest.fixture(scope="module")
def talker() -> Iterator[VectorClient]:
    with bare_runner(chain_model()) as runner:
        yield VectorClient(runner)


def _same(ours: NDArray[np.float32], others: NDArray[np.float32], *, at_least: float = 0.999999) -> None:
    assert ours.shape == others.shape
    assert (np.sum(ours * others, axis=-1) > at_least).all()


# --- vectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_an_input_has_the_vector_that_it_has_alone_whoever_shares_its_batch(pooling: str) -> None:
    with bare_runner(bert_model(POOLING[pooling]), slots=4) as runner:
        client = VectorClient(runner)
        together = client.embed(*TEXTS).vectors
        alone = np.concatenate([client.embed(text).vectors for text in TEXTS])
    assert together.shape == (len(TEXTS), WIDTH)
    _same(together, alone)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-6)
    assert len({row.tobytes() for row in together}) == len(TEXTS)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_decoder_that_pools_remembers_nothing_of_an_earlier_batch(pooling: str) -> None:
    with bare_runner(random_model(pooling=POOLING[pooling]), slots=4) as runner:
        client = VectorClient(runner)
        together = client.embed(*TEXTS).vectors
        alone = np.concatenate([client.embed(text).vectors for text in TEXTS])
        again = client.embed(*reversed(TEXTS)).vectors[::-1]
    assert together.shape[0] == len({row.tobytes() for row in together}) == len(TEXTS)
    _same(together, alone, at_least=0.999)  # its cache has half precision
    _same(together, again, at_least=0.999)


def test_rows_come_in_the_order_of_the_inputs_however_many(client: VectorClient) -> None:
    texts = [VOCABULARY[4 + number % 36] * (1 + number % 7) for number in range(MANY)]
    told = client.embed(*texts)
    known = {text: client.embed(text).vectors[0] for text in dict.fromkeys(texts)}
    _same(told.vectors, np.stack([known[text] for text in texts]))
    assert told.started is not None and told.end is not None
    assert told.started.prompt_tokens == told.end.prompt_tokens == sum(len(text) + 2 for text in texts)
    assert told.end.completion_tokens == 0


def test_fewer_dimensions_are_the_first_ones_at_length_one(client: VectorClient) -> None:
    whole, short = client.embed("hello").vectors[0], client.embed("hello", dimensions=8).vectors[0]
    _same(short, whole[:8] / np.linalg.norm(whole[:8]))


def test_more_dimensions_than_there_are_are_refused(client: VectorClient) -> None:
    refused = client.embed("hello", dimensions=WIDTH + 1).refused
    assert refused is not None and refused.reason == "field-invalid"


def test_token_ids_are_taken_as_they_stand(client: VectorClient) -> None:
    ids = tuple(client.tokenise("hello", add_special=True).ids)
    assert (ids[0], ids[-1]) == (CLS, SEP)
    _same(client.embed(ids).vectors, client.embed("hello").vectors)


def test_the_name_of_a_special_token_in_a_text_is_text(client: VectorClient) -> None:
    assert not {CLS, SEP} & set(client.tokenise("a [SEP] b [CLS]").ids)


def test_a_word_that_the_vocabulary_does_not_know_is_text(client: VectorClient) -> None:
    assert client.tokenise("\u4e16").ids == [VOCABULARY.index("[UNK]")]
    assert client.embed("hello \u4e16").end is not None


# --- what is refused ------------------------------------------------------------------------------------------------


def test_an_input_that_is_too_long_is_refused_unless_it_may_be_cut(client: VectorClient) -> None:
    text = "a" * (CONTEXT - 2)
    whole = client.embed(text)
    assert whole.end is not None and whole.end.prompt_tokens == CONTEXT
    refused = client.embed("hello", text + "b").refused
    assert refused is not None and refused.reason == "prompt-too-long"
    cut = client.embed(text + "b", truncate=True)
    _same(cut.vectors, whole.vectors)


def test_no_more_tokens_are_computed_than_were_paid_for(client: VectorClient) -> None:
    assert client.embed("hello", "world", max_prompt_tokens=14).end is not None
    refused = client.embed("hello", "world", max_prompt_tokens=13).refused
    assert refused is not None and refused.reason == "prompt-too-long"


@pytest.mark.parametrize("bad", [(2, len(VOCABULARY)), (2**21,)])
def test_a_token_id_outside_the_vocabulary_is_refused(client: VectorClient, bad: tuple[int, ...]) -> None:
    refused = client.embed("hello", bad).refused
    assert refused is not None and refused.reason == "field-invalid"
    assert client.embed("hello").end is not None


def test_a_model_is_not_asked_for_what_it_is_not_for(
    client: VectorClient, ranker: VectorClient, talker: VectorClient
) -> None:
    said = [
        client.rank("q", "d").refused,
        ranker.embed("hello").refused,
        talker.embed("hello").refused,
        client.runner.ask("hello").refused,
        ranker.runner.ask("hello").refused,
    ]
    assert [refused.reason for refused in said if refused] == ["not-offered"] * len(said)


@pytest.mark.parametrize("pooling", [POOLING["rank"], POOLING["none"], None, 9])
def test_an_encoder_that_could_only_give_meaningless_numbers_is_not_served(pooling: int | None) -> None:
    _is_not_loaded(bert_model(pooling), "model-unsupported")


def test_a_rank_head_without_its_last_layer_is_none() -> None:
    _is_not_loaded(bert_model(POOLING["rank"], half_head=True), "model-unsupported")


def _is_not_loaded(model: object, reason: str) -> None:
    with bare_runner(model) as runner:  # type: ignore[arg-type]
        assert runner.process.wait(30) == 72
        assert runner.process.stderr is not None
        assert runner.process.stderr.read().decode().strip() == reason


def test_a_model_whose_vectors_are_not_numbers_is_not_served() -> None:
    _is_not_loaded(bert_model(spoiled=True), "logits-not-finite")


# --- scores ---------------------------------------------------------------------------------------------------------


def test_a_score_depends_on_query_and_document_and_not_on_the_others(ranker: VectorClient) -> None:
    documents = ("hello world", "blue", "the quick brown fox", "hello")
    together = ranker.rank("hello", *documents)
    alone = [ranker.rank("hello", document).scores[0] for document in documents]
    np.testing.assert_allclose(together.scores, alone, atol=1e-4)
    assert len(set(together.scores)) == len(documents)
    assert ranker.rank("blue", *documents).scores != together.scores
    assert together.end is not None
    letters = sum(len(document.replace(" ", "")) for document in documents)
    assert together.end.prompt_tokens == letters + len(documents) * (len("hello") + 3)


def test_a_query_that_leaves_no_room_is_refused_even_where_documents_may_be_cut(ranker: VectorClient) -> None:
    refused = ranker.rank("a" * (CONTEXT - 3), "d", truncate=True).refused
    assert refused is not None and refused.reason == "prompt-too-long"
    assert ranker.rank("a" * (CONTEXT - 4), "de", truncate=True).end is not None


# --- many at once ---------------------------------------------------------------------------------------------------


def test_one_who_brings_many_does_not_stop_one_who_brings_one(client: VectorClient) -> None:
    many = ["a" * (CONTEXT - 2)] * MANY
    for number in range(2):
        client.send(f"heavy-{number}", *many, principal="heavy")
    while not client.told["heavy-0"].rows:
        client.hear()
    client.send("light", "hello", principal="light")
    client.wait_for("light", *(f"heavy-{number}" for number in range(2)))
    assert client.ended.index("light") < client.ended.index("heavy-0")


def test_a_cancelled_request_ends_and_the_next_one_is_served(client: VectorClient) -> None:
    many = ["a" * (CONTEXT - 2)] * MANY
    client.send("gone", *many)
    while not client.told["gone"].rows:
        client.hear()
    client.runner.send(Cancel(request_id="gone"))
    told = client.wait_for("gone")[0]
    assert told.end is not None and told.end.reason == "cancelled"
    assert len(told.rows) < len(many)
    assert client.embed("hello").end is not None


def test_a_request_cancelled_before_it_is_whole_costs_what_is_known(client: VectorClient) -> None:
    client.send("early", *["hello"] * MANY)
    client.runner.send(Cancel(request_id="early"))
    told = client.wait_for("early")[0]
    assert told.started is not None and told.end is not None and told.end.reason == "cancelled"
    assert 1 <= told.end.prompt_tokens <= 7 * MANY


def test_after_a_reset_nothing_is_said_about_what_was_asked_before(client: VectorClient) -> None:
    client.send("before", *["a" * (CONTEXT - 2)] * MANY)
    client.runner.send(Reset(nonce="n"))
    while getattr(client.runner.receive(), "nonce", "") != "n":
        pass
    assert client.embed("hello").end is not None  # anything said about the other would be an error here


# --- the vocabulary -------------------------------------------------------------------------------------------------


def test_a_text_comes_back_from_its_tokens(talker: VectorClient) -> None:
    text = STORY.replace(" ", "_") * 50  # more than one block, and more than one frame of ids
    ids = talker.tokenise(text)
    assert ids.end is not None and ids.end.prompt_tokens == len(ids.ids)
    assert talker.detokenise(*ids.ids[:65_536]).text == text


def test_a_control_token_is_never_the_token_of_a_text(talker: VectorClient) -> None:
    ids = talker.tokenise("<|im_start|>system").ids
    assert 3 not in ids and talker.detokenise(*ids).text == "<|im_start|>system"


def test_no_more_tokens_are_told_than_were_paid_for(talker: VectorClient) -> None:
    text = "qqqq"
    assert len(talker.tokenise(text, max_prompt_tokens=4).ids) == 4
    refused = talker.tokenise(text, max_prompt_tokens=3).refused
    assert refused is not None and refused.reason == "prompt-too-long"


def test_an_id_that_stands_for_nothing_is_refused(talker: VectorClient) -> None:
    refused = talker.detokenise(5, 2**21).refused
    assert refused is not None and refused.reason == "field-invalid"


# --- under the filters ----------------------------------------------------------------------------------------------


def test_an_encoder_serves_with_the_whole_sandbox_on() -> None:
    with sandboxed_runner(bert_model(), context_tokens=512, slots=2) as runner:
        assert runner.first == Ready(context_tokens=CONTEXT, slots=2)
        client = VectorClient(runner)
        assert client.embed(*TEXTS * 8, "x" * 500, truncate=True).vectors.shape == (len(TEXTS) * 8 + 1, WIDTH)
        assert client.tokenise("hello").ids


def test_nobody_takes_the_places_of_all_others(client: VectorClient) -> None:
    heavy = [f"places-{number}" for number in range(MAX_WAITING_OF_ONE + 1)]
    for request_id in heavy:
        client.send(request_id, *["hello " * 20] * MANY, principal="heavy")
    client.send("places-light", "hello", principal="light")
    *_, refused, light = client.wait_for(*heavy, "places-light")
    assert refused.refused is not None
    assert (refused.refused.reason, light.refused) == ("overloaded", None)
    assert light.end is not None and light.end.reason == "stop"
