"""Every error people can meet, as one tree.

AdapterHubError
├── UsageError                what was asked makes no sense (bad option, bad combination)
│   └── ConfigError           a recipe, an override or a setting is wrong
├── DataError                 a file of examples is wrong
├── InvalidRequest            a request to the engine or the server is wrong
│   ├── PromptTooLong         the tokens do not fit
│   └── UnsupportedRequest    this task or base cannot answer that kind of request
├── NotFound                  a name leads nowhere
│   ├── BaseNotFound
│   ├── RefNotFound
│   └── FileMissing
├── Conflict                  what is there already forbids it
│   ├── BaseMismatch          an adapter and a base that do not belong together
│   └── NameTaken             a name or alias that cannot be used so
├── AdapterError              an adapter's files are not acceptable
│   ├── UnsafeAdapter         pickle, links, traversal
│   └── CorruptAdapter        bytes that do not match their hash, non-finite or ill-shaped tensors
├── BaseError                 a base cannot be used (no pad token, unknown architecture)
├── TrainingError             training cannot go on (NaN loss, nothing to learn from)
├── HubError                  the Hugging Face Hub refused or could not be reached
├── EndpointError             another server that was asked for answers refused or could not be reached
├── Forbidden                 the key that was sent does not allow it
├── LimitReached              a key has sent as many requests as it may for now
│   └── QuotaSpent            the tokens a key may use are used
├── Overloaded                no room now; the same request may succeed later
│   └── TimedOut              the answer took longer than a request may
└── Cancelled                 the asker went away, or the service is stopping

A message says what was wrong (the value quoted), where, and what to do. `status` is the HTTP status and `code` the name
that programs read in the server's answer; both are part of the class, so the table cannot fall behind the tree.
"""

from __future__ import annotations

from collections.abc import Iterator


class AdapterHubError(Exception):
    """Root of everything this program raises on purpose."""

    status = 500
    code = "internal_error"


class UsageError(AdapterHubError):
    """The command or call itself makes no sense."""

    status = 400
    code = "invalid_request"


class ConfigError(UsageError):
    """A recipe, an override or a setting is wrong."""

    code = "invalid_config"


class DataError(AdapterHubError):
    """A file of examples is wrong; the message names file and line."""

    status = 400
    code = "invalid_data"


class InvalidRequest(AdapterHubError):
    """A request cannot be answered as asked."""

    status = 400
    code = "invalid_request"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        """Keep the name of the offending request field in `param`."""
        super().__init__(message)
        self.param = param


class PromptTooLong(InvalidRequest):
    """The prompt, or prompt and answer together, exceed the context."""

    code = "context_length_exceeded"


class UnsupportedRequest(InvalidRequest):
    """The task or base cannot answer this kind of request."""

    code = "unsupported_request"


class NotFound(AdapterHubError):
    """A name leads nowhere."""

    status = 404
    code = "not_found"


class BaseNotFound(NotFound):
    """No such base, or it is not here and cannot be fetched."""

    code = "base_not_found"


class RefNotFound(NotFound):
    """No such task, version, alias or digest."""

    code = "model_not_found"


class FileMissing(NotFound):
    """A file that was named does not exist."""

    code = "file_not_found"


class Conflict(AdapterHubError):
    """What is there already forbids it."""

    status = 409
    code = "conflict"


class BaseMismatch(Conflict):
    """An adapter was made for another base."""

    status = 400
    code = "base_mismatch"


class NameTaken(Conflict):
    """A name or alias cannot be used so."""

    code = "name_taken"


class AdapterError(AdapterHubError):
    """An adapter's files are not acceptable."""

    status = 422
    code = "invalid_adapter"


class UnsafeAdapter(AdapterError):
    """Pickle, links or path traversal in an adapter folder."""

    code = "unsafe_adapter"


class CorruptAdapter(AdapterError):
    """Bytes that do not match their hash, non-finite or ill-shaped tensors."""

    code = "corrupt_adapter"


class BaseError(AdapterHubError):
    """A base cannot be used for what was asked."""

    status = 422
    code = "unsupported_base"


class TrainingError(AdapterHubError):
    """Training cannot go on."""

    status = 422
    code = "training_failed"


class HubError(AdapterHubError):
    """The Hugging Face Hub refused or could not be reached."""

    status = 502
    code = "hub_error"


class EndpointError(AdapterHubError):
    """Another server that was asked for answers refused or could not be reached."""

    status = 502
    code = "endpoint_error"


class Forbidden(AdapterHubError):
    """The key that was sent does not allow it."""

    status = 403
    code = "permission_denied"


class LimitReached(AdapterHubError):
    """A key has sent as many requests as it may for now."""

    status = 429
    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        """Keep after how many seconds the same request may succeed in `retry_after`."""
        super().__init__(message)
        self.retry_after = retry_after


class QuotaSpent(LimitReached):
    """The tokens a key may use are used."""

    code = "insufficient_quota"


class Overloaded(AdapterHubError):
    """No room now; the same request may succeed later."""

    status = 503
    code = "overloaded"
    retry_after = 1.0


class TimedOut(Overloaded):
    """The answer took longer than a request may."""

    code = "timed_out"


class Cancelled(AdapterHubError):
    """The asker went away, or the service is stopping."""

    status = 503
    code = "cancelled"


def all_errors(root: type[AdapterHubError] = AdapterHubError) -> Iterator[type[AdapterHubError]]:
    """Yield `root` and every class below it."""
    yield root
    for child in root.__subclasses__():
        yield from all_errors(child)
