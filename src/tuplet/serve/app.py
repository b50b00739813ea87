"""The search server's routes and pages, and its errors as one line of JSON."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from tuplet.errors import RequestError, SearchIndexError
from tuplet.report.pages import page_template
from tuplet.search.index import bytes_hash
from tuplet.serve.access import Access, Gate
from tuplet.serve.answers import (
    Health,
    LabelsAnswer,
    MapAnswer,
    PicturesAnswer,
    Problem,
    SampleQuery,
    SearchAnswer,
    SearchQuery,
    SimilarQuery,
)
from tuplet.serve.files import (
    byte_range,
    picture_file,
    unmet_condition,
)
from tuplet.serve.metrics import Counted
from tuplet.serve.service import SearchService


def _service(request: Request) -> SearchService:
    service: SearchService = request.app.state.service
    return service


Service = Annotated[SearchService, Depends(_service)]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_BODY = {
    "requestBody": {
        "required": True,
        "description": "the bytes of a picture file",
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_STATIC = Path(__file__).parent / "static"
_KEPT = "private, max-age=60"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
"""The methods of HTTP that are known; others are answered with 501 instead of 405."""


async def _refuse_unknown(request: Request) -> None:
    """Refuse parameters that would be ignored, or of which another value than the one meant may be read."""
    query = request.scope["query_string"].decode("latin-1")
    try:
        names = [name for name, _ in parse_qsl(query, keep_blank_values=True, errors="strict")]
    except UnicodeDecodeError:
        raise HTTPException(422, "the query is not UTF-8; want each character as %XX of its UTF-8") from None
    for name, times in Counter(names).items():
        if times > 1:
            raise HTTPException(422, f"{name[:60]} is given {times} times; want it once")
    if names and not request.scope["route"].dependant.query_params:
        raise HTTPException(422, f"{names[0][:60]} is no parameter of this route; want none")


_router = APIRouter(responses={"4XX": {"model": Problem}, "5XX": {"model": Problem}})


_STRICT = [Depends(_refuse_unknown)]


def build_service(service: SearchService, access: Access) -> ASGIApp:
    """Build the whole server as an ASGI application."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="tuplet serve",
        description="Pictures that look like a picture.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service, app.state.access = service, access
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(SearchIndexError, _unreadable)
    app.add_exception_handler(Exception, _failed)
    app.include_router(_router)
    return Counted(Gate(app, access), service.metrics)


def _get(path: str, **options: Any) -> Callable[[Endpoint], Endpoint]:
    """Route GET and HEAD to a function; uvicorn omits the body in the answer to HEAD."""
    options.setdefault("dependencies", _STRICT)

    def added(endpoint: Endpoint) -> Endpoint:
        _router.get(path, **options)(endpoint)
        _router.head(path, **{**options, "include_in_schema": False})(endpoint)
        return endpoint

    return added


@_get("/", include_in_schema=False, dependencies=[])
async def page() -> HTMLResponse:
    """Return the page to search with."""
    return _search_page()


@_get("/favicon.ico", include_in_schema=False, status_code=204)
async def favicon() -> None:
    """Answer browsers that ask for an icon."""


@_get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """Return a page that describes every route of the server."""
    return _page(page_template("docs.html", folder=_STATIC).render(api=request.app.openapi()))


@_get("/health")
async def health(service: Service, response: Response) -> Health:
    """Whether the server can answer; needs no token."""
    problem = service.collection.problem
    response.status_code = 503 if problem else 200
    if service.stale_since and not problem:
        since = service.stale_since.isoformat(timespec="seconds")
        return Health(status=f"ok, but the index has not been refreshed since {since}; the log says why")
    return Health(status=problem or "ok")


@_get("/metrics", response_class=Response)
async def metrics(service: Service) -> Response:
    """Counts, times and sizes, as Prometheus reads them."""
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@_router.post("/login", status_code=204, dependencies=_STRICT)
async def login() -> None:
    """A cookie that stands for the token, for a browser; the token itself comes in the header.

    The gate before all routes sets it, which knows how the server is called.
    """


@_get("/search")
async def search(service: Service, query: Annotated[SimilarQuery, Query()]) -> SearchAnswer:
    """What looks like a picture of the index."""
    return await service.similar_to_picture(query.id, query)


@_router.post("/search", openapi_extra=_BODY, dependencies=_STRICT)
async def search_upload(
    service: Service, request: Request, query: Annotated[SearchQuery, Query()]
) -> SearchAnswer:
    """What looks like the picture in the body."""
    return await service.similar_to_upload(request, query)


@_get("/labels")
async def labels(service: Service) -> LabelsAnswer:
    """The labels by name, and how many pictures each has."""
    return service.collection.labels_answer


@_get("/pictures")
async def pictures(service: Service, query: Annotated[SampleQuery, Query()]) -> PicturesAnswer:
    """Some pictures of the index, drawn at random, always the same ones."""
    return await service.sample(query)


@_get("/map")
async def collection_map(service: Service) -> MapAnswer:
    """The collection in two dimensions; it takes a while after the start until there is one."""
    return MapAnswer.of(service.map.drawn, service.map.problem)


@_get("/images/{name}", response_class=Response)
async def image(service: Service, request: Request, name: str) -> Response:
    """The file of a picture, byte for byte as it was indexed."""
    picture = await service.of_picture(name, service.index.row)
    file = await service.read(partial(picture_file, picture))
    return _bytes(request, file.parts, file.size, file.media_type, picture.content)


@_get("/thumbnails/{name}", response_class=Response)
async def thumbnail(service: Service, request: Request, name: str) -> Response:
    """A small copy of a picture, JPEG, as it was when it was indexed."""
    content = await service.of_picture(name, service.index.thumbnail)
    if not content.startswith(b"\xff\xd8\xff"):
        raise HTTPException(410, "the picture's thumbnail is broken; want the folder indexed again")
    return _bytes(
        request, lambda start, end: [content[start:end]], len(content), "image/jpeg", bytes_hash(content)
    )


def _bytes(
    request: Request,
    parts: Callable[[int, int], Iterable[bytes]],
    size: int,
    media_type: str,
    digest: str,
) -> Response:
    """Answer with bytes, a range of them, or nothing where the client has them (RFC 9110, 13 and 14)."""
    tag = f'"{digest}"'
    headers = {"cache-control": _KEPT, "etag": tag, "accept-ranges": "bytes"}
    status = unmet_condition(request.headers, tag)
    if status == 304:
        return Response(status_code=304, headers=headers)
    if status is not None:
        raise HTTPException(status, f"the picture's ETag is {tag}; want it in If-Match", {"etag": tag})
    start, end, status = 0, size, 200
    if request.method == "GET" and request.headers.get("if-range", tag) == tag:
        try:
            wanted = byte_range(request.headers.get("range", ""), size)
        except RequestError as error:
            raise HTTPException(416, str(error), {"etag": tag, "content-range": f"bytes */{size}"}) from None
        if wanted is not None:
            (start, end), status = wanted, 206
            headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
    headers["content-length"] = str(end - start)
    body = () if request.method == "HEAD" else parts(start, end)
    return StreamingResponse(body, status, headers, media_type)


@cache
def _search_page() -> HTMLResponse:
    return _page((_STATIC / "page.html").read_text(encoding="utf-8"))


def _page(html: str) -> HTMLResponse:
    """Put a page's style sheets and scripts into it, and allow these alone.

    On the disk they are files of their own, which a browser shows and editors know. The answer holds all of
    them, because a further request would need the token.
    """
    html = re.sub(r'<link rel="stylesheet" href="([^"]+)">', _element("style"), html)
    html = re.sub(r'<script src="([^"]+)"></script>', _element("script"), html)
    policy = [
        "default-src 'none'",
        f"script-src {_hashes(html, 'script')}",
        f"style-src {_hashes(html, 'style')}",
        "img-src 'self' blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return HTMLResponse(html, headers={"content-security-policy": "; ".join(policy)})


def _element(name: str) -> Callable[[re.Match[str]], str]:
    def with_content(reference: re.Match[str]) -> str:
        file = _STATIC / reference[1]
        # The report's style sheets are templates, which include each other.
        ours = file.parent == _STATIC
        content = file.read_text(encoding="utf-8") if ours else page_template(file.name).render()
        return f"<{name}>\n{content}</{name}>"

    return with_content


def _hashes(html: str, element: str) -> str:
    """Name the elements of a page by their hashes, so that a browser runs or applies no other one."""
    found = re.findall(rf"<{element}>(.*?)</{element}>", html, flags=re.DOTALL)
    digests = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in found]
    return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"


async def _refused(request: Request, error: Exception) -> Response:
    """Answer with the one line of an error, whoever raised it."""
    assert isinstance(error, AnyHTTPException)
    status, detail = error.status_code, str(error.detail)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    path, method = request.scope["path"], request.method
    if method not in _METHODS:
        headers.pop("allow", None)
        status, detail = 501, f"the method {method[:20]!r} is not known; want GET, HEAD, POST or OPTIONS"
    elif status == 405 or (method == "OPTIONS" and path == "*"):
        headers["allow"] = allowed = ", ".join(_allowed_methods(request.app, path))
        if method == "OPTIONS":
            return Response(status_code=204, headers=headers)
        detail = f"{method} cannot be used here; want {allowed}"
    elif status == 404 and request.scope.get("endpoint") is None:
        detail = "there is nothing at this URL; /docs lists what there is"
    return JSONResponse({"detail": " ".join(detail.split())}, status, headers)


def _allowed_methods(app: FastAPI, path: str) -> list[str]:
    """Return the methods of all routes at a path, for the header Allow; * is any path."""
    # Newer versions of FastAPI show a router that was included as one route.
    routes = [route for route in (*app.routes, *_router.routes) if isinstance(route, Route | APIRoute)]
    at_path = [route for route in routes if path == "*" or route.path_regex.match(path)]
    return sorted({"OPTIONS"}.union(*(route.methods or () for route in at_path)))


async def _unreadable(request: Request, error: Exception) -> JSONResponse:
    """Answer where the index cannot be read now."""
    return JSONResponse({"detail": str(error)}, 503, {"retry-after": "5"})


async def _failed(request: Request, error: Exception) -> JSONResponse:
    """Answer after a defect of ours; the server's log has its traceback."""
    return JSONResponse({"detail": f"the server failed ({type(error).__name__}); its log says why"}, 500)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    """Answer with what is wrong with the first bad parameter."""
    assert isinstance(error, RequestValidationError)
    return JSONResponse({"detail": _in_a_line(error.errors())}, 422)


def _in_a_line(errors: Sequence[Any]) -> str:
    first = errors[0]
    name, limits = str(first["loc"][-1])[:60], first.get("ctx", {})
    wanted = {
        "extra_forbidden": "want only parameters that /docs lists",
        "greater_than_equal": f"want {limits.get('ge')} or more",
        "less_than_equal": f"want {limits.get('le')} or less",
        "int_parsing": "want a whole number",
        "int_parsing_size": "want a whole number of fewer digits",
        "string_too_long": f"want {limits.get('max_length')} characters or fewer",
    }.get(first["type"], str(first["msg"]))
    if first["type"] == "missing":
        return f"{name} is missing; /docs lists what is wanted"
    return f"{name} is {str(first['input'])[:60]!r}; {wanted}"
