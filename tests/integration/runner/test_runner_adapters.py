"""A runner answers with its adapters or not at all, and with what llama.cpp's own server says on the same files."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from appliance.ipc.messages import AskFigures, Figures, Load, LoadFailed, TokenPrompt
from tests.support.adapter_files import RANK, drawn_adapter, small_adapter
from tests.support.bert_model import bert_model
from tests.support.chain_model import chain_model
from tests.support.drawn_model import FIRST_WORD, TINY, write_drawn_model
from tests.support.gguf_files import F32, STRING, Gguf
from tests.support.llama_server import llama_server
from tests.support.runner_client import RunnerClient, bare_runner, sandboxed_runner

_NEW_TOKENS = 24
_PROMPTS = [tuple(range(FIRST_WORD + first, FIRST_WORD + first + 20)) for first in (0, 100, 200)]
_LOAD = Load(runner_id="adapters", context_tokens=512, slots=1, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "tiny.gguf"
    write_drawn_model(path, TINY)
    return path


@pytest.fixture(scope="module")
def adapter(model: Path) -> Path:
    return drawn_adapter(model.with_name("adapter.gguf"), model)


@pytest.fixture(scope="module")
def other(model: Path) -> Path:
    return drawn_adapter(model.with_name("other.gguf"), model, seed=2, kind=np.float16, rank=8)


def said(runner: RunnerClient) -> list[str]:
    answers = [
        runner.ask(TokenPrompt(ids=ids), max_prompt_tokens=512, max_completion_tokens=_NEW_TOKENS) for ids in _PROMPTS
    ]
    assert all(answer.end is not None for answer in answers)
    return [answer.text for answer in answers]


def said_with(model: Path, *adapters: tuple[Path, int]) -> list[str]:
    with bare_runner(model, slots=1, context_tokens=_LOAD.context_tokens, adapters=adapters) as runner:
        return said(runner)


@pytest.fixture(scope="module")
def plain(model: Path) -> list[str]:
    return said_with(model)


def test_scale_decides_how_much_of_an_adapter_counts(model: Path, adapter: Path, other: Path, plain: list[str]) -> None:
    assert said_with(model, (adapter, 0)) == plain
    whole = said_with(model, (adapter, 1000))
    assert all(ours != base for ours, base in zip(whole, plain, strict=True))
    assert said_with(model, (adapter, 500)) not in (plain, whole)
    both = said_with(model, (adapter, 1000), (other, 1000))
    assert both not in (plain, whole)
    assert said_with(model, (adapter, 1000), (other, 0)) == whole


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the first time on a machine, llama-server is compiled
def test_no_token_differs_from_llama_server(model: Path, adapter: Path, tmp_path: Path) -> None:
    with llama_server(model, _LOAD, tmp_path, "--lora", str(adapter)) as peer:
        expected = [
            peer.ask("/completion", prompt=list(ids), n_predict=_NEW_TOKENS, temperature=0.0, cache_prompt=False)
            for ids in _PROMPTS
        ]
    assert said_with(model, (adapter, 1000)) == [answer["content"] for answer in expected]


def test_adapter_is_loaded_behind_the_filters(model: Path, adapter: Path) -> None:
    with sandboxed_runner(model, slots=1, threads=1, context_tokens=512, adapters=[(adapter, 1000)]) as runner:
        inside = said(runner)
    assert inside == said_with(model, (adapter, 1000))


def _write(path: Path, file: Gguf) -> Path:
    path.write_bytes(file.build())
    return path


def _misfit(**what: object) -> Callable[[Path, Path], Path]:
    return lambda folder, _model: _write(folder / "bad.gguf", small_adapter(**what))  # type: ignore[arg-type]


def _fits() -> Gguf:
    return small_adapter(n_in=TINY.dim, n_out=TINY.dim)


def _with_key(key: str, kind: int, value: float | str) -> Callable[[Path, Path], Path]:
    def write(folder: Path, _model: Path) -> Path:
        file = _fits()
        file.set(key, kind, value)
        return _write(folder / "bad.gguf", file)

    return write


def _half(folder: Path, _model: Path) -> Path:
    file = _fits()
    file.tensors.pop()
    return _write(folder / "half.gguf", file)


def _nan(folder: Path, _model: Path) -> Path:
    file = _fits()
    for tensor in file.tensors:
        tensor.data = b"\xff" * len(tensor.data)
    return _write(folder / "nan.gguf", file)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_misfit(matrix="blk.9.attn_q.weight", n_in=TINY.dim, n_out=TINY.dim), "adapter-invalid: gguf-adapter-misfit"),
        (_misfit(n_in=TINY.dim, n_out=2 * TINY.dim), "adapter-invalid: gguf-adapter-misfit"),
        (_misfit(n_in=2 * TINY.dim, n_out=TINY.dim), "adapter-invalid: gguf-adapter-misfit"),
        (_misfit(architecture="qwen3", n_in=TINY.dim, n_out=TINY.dim), "adapter-invalid"),
        (_with_key("adapter.lora.alpha", F32, float("nan")), "adapter-invalid: gguf-float"),
        (_with_key("adapter.type", STRING, "ia3"), "adapter-invalid: gguf-adapter-kind"),
        (_half, "adapter-invalid: gguf-adapter-pair"),
        (_nan, "logits-not-finite"),
        (lambda _folder, model: model, "adapter-invalid: a file that should be an adapter is none"),
    ],
)
def test_no_runner_serves_without_its_adapter(
    make: Callable[[Path, Path], Path], reason: str, model: Path, tmp_path: Path
) -> None:
    """Also where the validator has been got round: what is refused there is refused here."""
    adapters = [(make(tmp_path, model), 1000)]
    with sandboxed_runner(model, slots=1, threads=1, expect=LoadFailed, adapters=adapters) as runner:
        assert f"{runner.first.reason}: {runner.first.detail}".startswith(reason), runner.first
        assert runner.process.wait(30) == 72


def test_small_adapter_that_fits_is_served(model: Path, tmp_path: Path) -> None:
    """So that the ones above fail for what is wrong with them."""
    path = _write(tmp_path / "fits.gguf", _fits())
    assert RANK == 4
    with sandboxed_runner(model, slots=1, threads=1, adapters=[(path, 1000)]) as runner:
        said(runner)


def test_no_model_for_vectors_has_an_adapter(adapter: Path) -> None:
    with sandboxed_runner(bert_model(), expect=LoadFailed, adapters=[(adapter, 1000)]) as runner:
        assert runner.first.reason == "model-unsupported"


# --- the other companion --------------------------------------------------------------------------------------------


def test_draft_model_is_loaded_behind_the_filters_and_guesses(model: Path, adapter: Path) -> None:
    """The model itself, without the adapter, guesses for the model with it."""
    with sandboxed_runner(
        model, slots=1, threads=1, context_tokens=512, adapters=[(adapter, 100)], draft=model
    ) as runner:
        inside = said(runner)
        runner.send(AskFigures(call=1))
        told = runner.receive()
    assert isinstance(told, Figures)
    assert told.figures.proposed_tokens > 0
    assert inside == said_with(model, (adapter, 100))


def test_no_runner_serves_with_a_draft_model_of_another_vocabulary(model: Path) -> None:
    with sandboxed_runner(model, slots=1, threads=1, expect=LoadFailed, draft=chain_model()) as runner:
        assert runner.first.reason == "draft-unfit"


def test_no_adapter_is_a_draft_model(model: Path, adapter: Path) -> None:
    with sandboxed_runner(model, slots=1, threads=1, expect=LoadFailed, draft=adapter) as runner:
        assert runner.first.reason in {"model-invalid", "draft-unfit"}
