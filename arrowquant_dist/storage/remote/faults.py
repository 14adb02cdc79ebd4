"""Interprets the errors of the libraries behind fsspec: whether they may pass, and what a user can do about them."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from typing import Any

from arrowquant_dist.errors import AccessDenied, ArrowQuantError, NotFound, StorageError
from arrowquant_dist.storage.remote.secrets import Secrets
from arrowquant_dist.storage.system_errors import storage_error

_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_PASSING_CODES = frozenset(
    {
        "BadDigest",  # these five: the body was truncated or changed in transit
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
        "ContentSHA256Mismatch",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "RequestThrottledException",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TransientError",
    }
)
# By name, so that no library has to be imported to recognize its errors. A subclass counts as its base.
_PASSING_TYPES = frozenset(
    {
        "aiohttp.ClientConnectionError",
        "aiohttp.ClientPayloadError",
        "azure.ServiceRequestError",
        "azure.ServiceResponseError",
        "botocore.ConnectionError",
        "botocore.FlexibleChecksumError",
        "botocore.HTTPClientError",
        "botocore.IncompleteReadError",
        "botocore.ResponseParserError",
        "gcsfs.ChecksumError",
        "google.TransportError",
        "http.IncompleteRead",
        "httpx.TransportError",
        "requests.ChunkedEncodingError",
        "requests.ConnectionError",
        "requests.Timeout",
        "urllib3.HTTPError",
        "arrowquant_dist.ShortAnswer",
    }
)
_PASSING_ERRNO = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EPIPE,
        errno.ETIMEDOUT,
    }
)
_LASTING_TYPES = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
_ENVIRONMENT = {
    **dict.fromkeys(("gs", "gcs"), "GOOGLE_APPLICATION_CREDENTIALS"),
    **dict.fromkeys(
        ("az", "abfs", "abfss"), "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_ACCOUNT_NAME and _KEY"
    ),
    "hf": "HF_TOKEN",
}
_ENVIRONMENT_OF_S3 = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE"
_HINTS = {
    "InvalidAccessKeyId": "the access key is not known there; {credentials}",
    "SignatureDoesNotMatch": "the secret does not belong to the access key; {credentials}",
    "InvalidToken": "the session token is not valid; {credentials}",
    "ExpiredToken": "the session token has expired, get a new one; {credentials}",
    "NoCredentialsError": "no credentials were found; {credentials}, or set `anon: true` there",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "NoSuchBucket": "the bucket does not exist; create it, or check its name and the endpoint",
    "PermanentRedirect": "the bucket is in another region; set AWS_DEFAULT_REGION or the endpoint",
    "AuthorizationHeaderMalformed": "the bucket is in another region; set AWS_DEFAULT_REGION or the endpoint",
}
_DENIED = "access denied; check what these credentials may do, or use others: {credentials}"
_DENIALS = {  # permanent, unlike a token that expires in the middle of a run
    _DENIED,
    *map(
        _HINTS.__getitem__,
        ("InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "NoCredentialsError"),
    ),
}
_LONGEST = 500  # maximum characters of a library's message; Azure's errors are pages of XML
_DEEPEST = 10


def may_pass(error: BaseException) -> bool:
    """Whether the same request may succeed later: time-outs, lost connections, truncated responses, throttling, 5xx."""
    chain = list(_chain(error))
    if any(isinstance(link, ArrowQuantError) or _is_unreachable(link) for link in chain):
        return False
    return next((verdict for link in chain if (verdict := _verdict(link)) is not None), False)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of the response behind this error, as botocore, aiohttp, httpx, azure and gcsfs keep it."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status if isinstance(status, int) else None
    found = (getattr(error, name, None) for name in ("status", "status_code", "code"))
    status = next(
        (value for value in found if isinstance(value, int)), getattr(response, "status_code", None)
    )
    return status if isinstance(status, int) else None


def code_of(error: BaseException) -> str:
    """S3's code for the error; for other errors the name of its class."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return type(error).__name__


def translated(
    error: BaseException, url: str, byte_range: tuple[int, int] | None, secrets: Secrets
) -> ArrowQuantError:
    """The error as one of ours, with a next step and without secrets."""
    if isinstance(error, ArrowQuantError):
        error.uri, error.byte_range = error.uri or url, error.byte_range or byte_range
        return error
    if isinstance(error, OSError) and error.errno is not None and type(error).__module__ == "builtins":
        plain = storage_error(error, url, byte_range)
        said = secrets.hidden_in(plain.message)
    else:
        said = f"{type(error).__name__}: {_one_line(secrets.hidden_in(str(error)))}"
    code, status = code_of(error), status_of(error)
    if code == "NoSuchBucket":
        return NotFound(_HINTS[code], uri=url)
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFound("nothing is there; check the spelling and the credentials", uri=url)
    hint = _hint(error, code, status)
    kind = AccessDenied if hint in _DENIALS else StorageError
    said = f"{hint.format(credentials=_credentials(url))} ({said})"
    return kind(said, uri=url, byte_range=byte_range)


def _hint(error: BaseException, code: str, status: int | None) -> str:
    """What the user can do about it; `{credentials}` stands for where credentials are set."""
    if may_pass(error):
        return "all retries failed; run the same command again, or raise transfer.retries"
    if code in _HINTS:
        return _HINTS[code]
    if isinstance(error, PermissionError) or status in (401, 403):
        return _DENIED
    return "the storage failed, look at the cause and run the same command again"


def _credentials(url: str) -> str:
    """Where credentials are set for that kind of storage."""
    variables = _ENVIRONMENT.get(url.partition("://")[0], _ENVIRONMENT_OF_S3)
    places = "in fsspec's configuration, or in storage_options of the config file"
    return f"set them in the environment ({variables}), {places}"


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"


def _verdict(error: BaseException) -> bool | None:
    """Whether the error may pass; None if this link of the chain does not tell."""
    status = status_of(error)
    if status is not None:
        return status in _PASSING_STATUS or code_of(error) in _PASSING_CODES
    if isinstance(error, _LASTING_TYPES):
        return False
    if isinstance(error, TimeoutError | ConnectionError | EOFError) or _passes_by_name(error):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING_ERRNO
    return None


def _passes_by_name(error: BaseException) -> bool:
    names = {f"{cls.__module__.split('.')[0]}.{cls.__name__}" for cls in type(error).__mro__}
    return not names.isdisjoint(_PASSING_TYPES)


def _is_unreachable(error: BaseException) -> bool:
    """Whether the host is unknown to the name servers, or its certificate is wrong: waiting does not help."""
    if isinstance(error, socket.gaierror):
        return error.errno != socket.EAI_AGAIN
    return isinstance(error, ssl.SSLCertVerificationError)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes; botocore keeps the cause among its arguments."""
    link: Any = error
    for _ in range(_DEEPEST):
        if not isinstance(link, BaseException):
            return
        yield link
        kept = getattr(link, "kwargs", None)
        link = link.__cause__ or (kept.get("error") if isinstance(kept, dict) else None) or link.__context__
