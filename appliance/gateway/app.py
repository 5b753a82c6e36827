"""The HTTP application: the routes, and what each does with the pipeline.

Errors leave it as exceptions; ``gate.Gate``, which wraps it, answers and records all of them in one place.

Trusts: ``gate.Gate`` to let in only guarded requests of verified principals.
Promises: every route takes its principal from the gate's exchange.
Not here: any rule about who may do what (``pipeline``); how an answer is written (``generation``, ``surfaces``).
"""

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, NoReturn

import msgspec
from litestar import Litestar, Request, Response, asgi, get
from litestar.enums import MediaType
from litestar.params import FromPath

from appliance import __version__
from appliance.core import oauth
from appliance.core.exposition import MEDIA_TYPE
from appliance.core.refusals import Reason, Refused
from appliance.gateway import openapi
from appliance.gateway.answering import BodyLimits
from appliance.gateway.asgi import Receive, Scope, Send
from appliance.gateway.challenges import METADATA_PATH
from appliance.gateway.computation import ComputationRoute
from appliance.gateway.gate import exchange_of
from appliance.gateway.generation import GenerationRoute
from appliance.gateway.metrics import MetricsPage
from appliance.gateway.pipeline import Exchange, Pipeline
from appliance.gateway.surfaces import vectors, vocabulary
from appliance.gateway.surfaces.oauth import OAuthRoute
from appliance.gateway.surfaces.openai.chat import ChatSurface
from appliance.gateway.surfaces.openai.completions import CompletionSurface
from appliance.gateway.surfaces.openai.models import model_object

_Request = Request[Any, Any, Any]
AsgiRoute = Callable[[Exchange, Scope, Receive, Send], Awaitable[None]]


GENERATING: Final[dict[str, ChatSurface | CompletionSurface]] = {
    "/v1/chat/completions": ChatSurface(),
    "/v1/completions": CompletionSurface(),
}
COMPUTING: Final[dict[str, Any]] = {
    "/v1/embeddings": vectors.EmbeddingsSurface(),
    "/v1/rerank": vectors.RerankSurface(),
    "/rerank": vectors.RerankSurface(),
    "/tokenize": vocabulary.TokenizeSurface(),
    "/detokenize": vocabulary.DetokenizeSurface(),
}
BODIES: Final[dict[str, type[msgspec.Struct]]] = {
    path: surface.wire for path, surface in {**GENERATING, **COMPUTING}.items()
}
"""Route of a ``POST`` -> the type of its body."""


class _App(Litestar):
    """Litestar, with the way to the routes that answer cut short: its own takes a tenth of what a whole request costs.
    They are routes of its table all the same, and whatever is not exactly one of them is found, or not, by it."""

    answers: Mapping[str, AsgiRoute] = MappingProxyType({})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        route = self.answers.get(scope["path"]) if scope["type"] == "http" else None
        if route is None:
            await super().__call__(scope, receive, send)
        else:
            await route(exchange_of(scope, scope["path"]), scope, receive, send)


def build_app(
    pipeline: Pipeline,
    limits: BodyLimits,
    metrics: MetricsPage,
    resource_metadata: bytes | None = None,
    authority: OAuthRoute | None = None,
) -> Litestar:
    """The routes. Litestar's own OpenAPI is off: it knows nothing of bodies that are read as bytes. Without
    ``resource_metadata`` their route finds nothing, without ``authority`` its routes."""
    answers: dict[str, AsgiRoute] = {
        **{path: GenerationRoute(pipeline, limits, surface) for path, surface in GENERATING.items()},
        **{path: ComputationRoute(pipeline, limits, surface) for path, surface in COMPUTING.items()},
    }
    description = openapi.document(__version__, BODIES)

    @get("/healthz", media_type=MediaType.JSON)
    async def healthz() -> dict[str, str]:
        """Liveness, for which no token is needed: it says nothing but that the process answers."""
        return {"status": "ok"}

    @get(METADATA_PATH)
    async def read_resource_metadata() -> Response[bytes]:
        """Where to get a token from, for which none is needed either (RFC 9728 section 3)."""
        return _document(resource_metadata)

    @get(oauth.METADATA_PATH)
    async def read_authority_metadata() -> Response[bytes]:
        """How to get one here (RFC 8414 section 3)."""
        return _document(None if authority is None else authority.metadata)

    @asgi(list(oauth.PATHS), copy_scope=False)
    async def issue(scope: Any, receive: Any, send: Any) -> None:
        if authority is None:
            raise Refused(Reason.NOT_FOUND)
        await authority(scope, receive, send)

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

    @get("/openapi.json")
    async def read_description(request: _Request) -> Response[bytes]:
        await pipeline.require_described(exchange_of(request.scope, "/openapi.json"))
        return Response(description, media_type=MediaType.JSON)

    @asgi(list(answers), copy_scope=False)
    async def answer(scope: Any, receive: Any, send: Any) -> None:
        path = scope["path"]
        await answers[path](exchange_of(scope, path), scope, receive, send)

    app = _App(
        route_handlers=[
            healthz,
            read_resource_metadata,
            read_authority_metadata,
            issue,
            list_models,
            get_model,
            read_metrics,
            read_description,
            answer,
        ],
        exception_handlers={Exception: _to_the_gate},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    app.answers = answers
    return app


def _document(metadata: bytes | None) -> Response[bytes]:
    if metadata is None:
        raise Refused(Reason.NOT_FOUND)
    return Response(metadata, media_type=MediaType.JSON, headers={"cache-control": "no-store"})


def _to_the_gate(_request: _Request, error: Exception) -> NoReturn:
    raise error
