"""The routes of the server, each one line to the room that answers it."""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, Response

from .classify import classify
from .described import ASKED, CLASSIFIED, GUARDED, POSTED, STREAMED, refusals
from .embed import embed
from .errors import install_handlers
from .generate import chat, complete
from .metrics import CONTENT_TYPE
from .middleware import Guard, Observe
from .models import list_models, show_model
from .schemas import ChatBody, ClassifyBody, CompletionBody, EmbeddingBody
from .service import Service
from .wire import Json


def create_app(service: Service) -> FastAPI:
    """Return the ASGI application over `service`."""
    app = FastAPI(
        title="adapterhub",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Observe, service=service), Middleware(Guard, service=service)],
    )
    install_handlers(app)
    _add_probes(app, service)
    _add_models(app, service)
    _add_answers(app, service)
    return app


def _add_probes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> Response:
        """Answer 200 while the process is up."""
        return Json({"status": "ok"})

    @app.get("/ready", responses=refusals(503))
    async def ready() -> Response:
        """Answer 200 once requests are answered; 503 while the base loads and while the server stops."""
        service.check_ready()
        return Json({"status": "ready"})

    @app.get("/metrics", responses=refusals(*GUARDED), response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Count in Prometheus' text format."""
        return Response(await service.look_up(service.metrics.render), headers={"content-type": CONTENT_TYPE})


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/v1/models", responses=refusals(*GUARDED, 503))
    async def models(request: Request) -> Response:
        """List the base and every ref that the key may ask."""
        return await list_models(service, request)

    @app.get("/v1/models/{model:path}", responses=refusals(*ASKED))
    async def model(request: Request, model: str) -> Response:
        """Describe one model."""
        return await show_model(service, request, model)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", responses=STREAMED | refusals(*POSTED))
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Generate the next turn of a conversation."""
        return await chat(service, request, body)

    @app.post("/v1/completions", responses=STREAMED | refusals(*POSTED))
    async def completions(request: Request, body: CompletionBody) -> Response:
        """Continue one prompt or several."""
        return await complete(service, request, body)

    @app.post("/v1/classify", responses=CLASSIFIED | refusals(*POSTED))
    async def classification(request: Request, body: ClassifyBody) -> Response:
        """Label one input or several; a task that was made to may give none of its labels, null."""
        return await classify(service, request, body)

    @app.post("/v1/embeddings", responses=refusals(*POSTED))
    async def embeddings(request: Request, body: EmbeddingBody) -> Response:
        """Return a vector for one input or several."""
        return await embed(service, request, body)
