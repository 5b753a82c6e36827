"""The HTTP application: the routes, and what each does with the pipeline.

Errors leave it as exceptions; ``gate.Gate``, which wraps it, answers and records all of them in one place.

Trusts: ``gate.Gate`` to let in only guarded requests of verified principals.
Promises: every route takes its principal from the gate's exchange.
Not here: any rule about who may do what (``pipeline``); how an answer is written (``generation``, ``surfaces``).
"""

from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

from litestar import Litestar, Request, Response, asgi, get
from litestar.enums import MediaType
from litestar.params import FromPath

from appliance.core.exposition import MEDIA_TYPE
from appliance.gateway.answering import BodyLimits
from appliance.gateway.asgi import Receive, Scope, Send
from appliance.gateway.computation import ComputationRoute
from appliance.gateway.gate import exchange_of
from appliance.gateway.generation import GenerationRoute
from appliance.gateway.metrics import MetricsPage
from appliance.gateway.pipeline import Exchange, Pipeline
from appliance.gateway.surfaces import vectors, vocabulary
from appliance.gateway.surfaces.openai.chat import ChatSurface
from appliance.gateway.surfaces.openai.completions import CompletionSurface
from appliance.gateway.surfaces.openai.models import model_object

_Request = Request[Any, Any, Any]
AsgiRoute = Callable[[Exchange, Scope, Receive, Send], Awaitable[None]]


def build_app(pipeline: Pipeline, limits: BodyLimits, metrics: MetricsPage) -> Litestar:
    """The routes. Litestar's OpenAPI pages are off."""
    answers: dict[str, AsgiRoute] = {
        "/v1/chat/completions": GenerationRoute(pipeline, limits, ChatSurface()),
        "/v1/completions": GenerationRoute(pipeline, limits, CompletionSurface()),
        "/v1/embeddings": ComputationRoute(pipeline, limits, vectors.EmbeddingsSurface()),
        "/v1/rerank": ComputationRoute(pipeline, limits, vectors.RerankSurface()),
        "/rerank": ComputationRoute(pipeline, limits, vectors.RerankSurface()),
        "/tokenize": ComputationRoute(pipeline, limits, vocabulary.TokenizeSurface()),
        "/detokenize": ComputationRoute(pipeline, limits, vocabulary.DetokenizeSurface()),
    }

    @get("/healthz", media_type=MediaType.JSON)
    async def healthz() -> dict[str, str]:
        """Liveness, the one route without a token: it says nothing but that the process answers."""
        return {"status": "ok"}

    @get("/v1/models", media_type=MediaType.JSON)
    async def list_models(request: _Request) -> dict[str, Any]:
        models = await pipeline.visible_models(exchange_of(request.scope, "/v1/models"))
        return {"object": "list", "data": [model_object(model) for model in models]}

    @get("/v1/models/{model_id:str}", media_type=MediaType.JSON)
    async def get_model(request: _Request, model_id: FromPath[str]) -> dict[str, Any]:
        """An absent model and a forbidden one get the same answer; the record tells them apart."""
        return model_object(await pipeline.visible_model(exchange_of(request.scope, "/v1/models/{model_id}"), model_id))

    @get("/metrics")
    async def read_metrics(request: _Request) -> Response[bytes]:
        page = await metrics.text(exchange_of(request.scope, "/metrics"))
        return Response(page.encode(), media_type=MEDIA_TYPE, headers={"cache-control": "no-store"})

    @asgi(list(answers), copy_scope=False)
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        await answers[path](exchange_of(scope, path), scope, receive, send)

    return Litestar(
        route_handlers=[healthz, list_models, get_model, read_metrics, answer],
        exception_handlers={Exception: _to_the_gate},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


def _to_the_gate(_request: _Request, error: Exception) -> NoReturn:
    raise error
