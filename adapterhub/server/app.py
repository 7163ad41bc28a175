"""The routes of the server, each one line to the room that answers it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response

from .adapters import change_adapter, list_adapters, load_lora, unload_lora
from .classify import classify
from .described import (
    ADAPTER,
    ADAPTERS,
    ASKED,
    CHAT,
    CLASSIFIED,
    COMPLETION,
    EMBEDDED,
    GUARDED,
    HEALTH,
    MODEL,
    MODELS,
    NOTED,
    POSTED,
    READY,
    DescribedApp,
    refusals,
)
from .embed import embed
from .errors import install_handlers
from .feedback import give_feedback
from .generate import chat, complete
from .metrics import CONTENT_TYPE
from .middleware import Guard, Observe
from .models import list_models, show_model
from .schemas import (
    AdapterBody,
    ChatBody,
    ClassifyBody,
    CompletionBody,
    EmbeddingBody,
    FeedbackBody,
    LoadLoraBody,
    UnloadLoraBody,
)
from .service import Service
from .wire import Json


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application over `service`."""
    app = DescribedApp(
        title="adapterhub",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Observe, service=service), Middleware(Guard, service=service)],
    )
    app.guarded = service.access is not None
    install_handlers(app)
    _add_probes(app, service)
    _add_models(app, service)
    _add_answers(app, service)
    _add_adapters(app, service)
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/health", responses=HEALTH)
    async def health() -> Response:
        """Answer 200 while the process is up."""
        return Json({"status": "ok"})

    @app.get("/ready", responses=READY | refusals(503))
    async def ready() -> Response:
        """Answer 200 once requests are answered; 503 while the base loads and while the server stops."""
        service.check_ready()
        return Json({"status": "ready"})

    @app.get("/metrics", responses=refusals(*GUARDED, 403), response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Count in Prometheus' text format."""
        return Response(await service.look_up(service.metrics.render), headers={"content-type": CONTENT_TYPE})


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=MODELS | refusals(*GUARDED, 503))
    async def models(request: Request) -> Response:
        """List the base and every ref that the key may ask."""
        return await list_models(service, request)

    @app.get("/v1/models/{model:path}", responses=MODEL | refusals(*ASKED))
    async def model(request: Request, model: str) -> Response:
        """Describe one model."""
        return await show_model(service, request, model)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=CHAT | refusals(*POSTED))
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Generate the next turn of a conversation."""
        return await chat(service, request, body)

    @app.post("/v1/completions", responses=COMPLETION | refusals(*POSTED))
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Continue one prompt or several."""
        return await complete(service, request, body)

    @app.post("/v1/classify", responses=CLASSIFIED | refusals(*POSTED))
    async def classification(request: Request, body: ClassifyBody) -> Response:
        """Label one input or several; a task that was made to may give none of its labels, null."""
        return await classify(service, request, body)

    @app.post("/v1/embeddings", responses=EMBEDDED | refusals(*POSTED))
    async def embeddings(request: Request, body: EmbeddingBody) -> Response:
        """Return a vector for one input or several."""
        return await embed(service, request, body)

    @app.post("/v1/feedback", responses=NOTED | refusals(*POSTED))
    async def feedback(request: Request, body: FeedbackBody) -> Response:
        """Say what an answer should have been; 200 says that it is on the disk."""
        return await give_feedback(service, request, body)


def _add_adapters(app: FastAPI, service: Service) -> None:
    @app.get("/v1/adapters", responses=ADAPTERS | refusals(*GUARDED, 403, 503))
    async def adapters() -> Response:
        """List every version, and whether it is in a slot, in memory or on disk."""
        return await list_adapters(service)

    @app.post("/v1/adapters/load", responses=ADAPTER | refusals(*POSTED))
    async def load_adapter(request: Request, body: AdapterBody) -> Response:
        """Read and check a version, and have it at hand."""
        return await change_adapter(service, request, body, "load")

    @app.post("/v1/adapters/pin", responses=ADAPTER | refusals(*POSTED))
    async def pin_adapter(request: Request, body: AdapterBody) -> Response:
        """Load a version, and keep it ready to run."""
        return await change_adapter(service, request, body, "pin")

    @app.post("/v1/adapters/unpin", responses=ADAPTER | refusals(*POSTED))
    async def unpin_adapter(request: Request, body: AdapterBody) -> Response:
        """Let a version make room for others again."""
        return await change_adapter(service, request, body, "unpin")

    @app.post("/v1/adapters/unload", responses=ADAPTER | refusals(*POSTED))
    async def unload_adapter(request: Request, body: AdapterBody) -> Response:
        """Free a version's memory, once the requests that came before are done."""
        return await change_adapter(service, request, body, "unload")

    @app.post("/v1/load_lora_adapter", responses=refusals(*POSTED), response_class=PlainTextResponse)
    async def load(request: Request, body: LoadLoraBody) -> Response:
        """Load a version, as vLLM's clients ask for it."""
        return await load_lora(service, request, body)

    @app.post("/v1/unload_lora_adapter", responses=refusals(*POSTED), response_class=PlainTextResponse)
    async def unload(request: Request, body: UnloadLoraBody) -> Response:
        """Free the memory of a version, as vLLM's clients ask for it."""
        return await unload_lora(service, request, body)
