"""Reads ranges by repeating an earlier request of botocore's with another key, range, time and signature.

botocore takes 2.7 ms of Python per request, on the only thread of the event loop, which limits ranges of 8 MiB to 3
GB/s; a repetition takes 0.8 ms. A request of botocore's own shows what may be repeated: it must be signed by plain
signature version 4 or not at all, with a URL that ends with the key. Errors are botocore's, and if the storage wants
a different request (to another region, say), botocore makes it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from arrowquant_dist.storage.remote.aiobotocore_private import http_session_of

_METHOD = "GetObject"
_SIGNED_BY = re.compile(r"AWS4-HMAC-SHA256 Credential=[^/]+/\d{8}/([^/,]+)/s3/aws4_request, ")
_ANEW = frozenset({"authorization", "range", "x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request"})
_ANOTHER_WAY = frozenset({*range(300, 400), 400})  # another region, endpoint or signature
_HANDLER = "arrowquant-dist"


@dataclass
class WatchedRequest:
    """What botocore did for one request."""

    signer: Any = None
    signature: Any = None
    checksums: Sequence[str] = ()
    request: Any = None


_seen: ContextVar[WatchedRequest | None] = ContextVar("arrowquant_dist_seen", default=None)


@dataclass(frozen=True)
class _Form:
    """What the requests for ranges of a bucket's objects have in common.

    region: None if they are not signed. checksums: which checksums of a response botocore compares.
    """

    client: Any
    http: Any
    signer: Any
    region: str | None
    checksums: Sequence[str]
    before_key: str
    headers: Mapping[str, str]


class RepeatedReads:
    """Repeats reads of one bucket, for one s3fs whose session is open, on its event loop."""

    def __init__(self, fs: Any, bucket: str) -> None:
        self._fs, self._bucket = fs, bucket
        self._form: _Form | None = None

    async def ask(self, key: str, byte_range: str) -> Mapping[str, Any] | None:
        """What `get_object` would return, as far as a read needs it. None: botocore has to make this request."""
        form = self._form
        if form is None or form.client is not await self._fs.get_s3(self._bucket):
            return None
        response = await form.http.send(await _request(form, key, byte_range))
        if response.status_code in _ANOTHER_WAY:
            response.raw.close()
            self._form = None
            return None
        return await _answer(form, response)

    async def watch(self) -> WatchedRequest:
        """Records what botocore does for the next request of this task."""
        events = (await self._fs.get_s3(self._bucket)).meta.events
        for event, handler in (("before-sign", _see_signer), ("before-send", _see_request)):
            events.register(f"{event}.s3.{_METHOD}", handler, unique_id=f"{_HANDLER}-{event}")
        seen = WatchedRequest()
        _seen.set(seen)
        return seen

    async def learn(self, key: str, seen: WatchedRequest) -> None:
        """Makes the request that was watched the form for later ones. seen: of a request that succeeded."""
        self._form = _form(await self._fs.get_s3(self._bucket), key, seen)


def _see_signer(request: Any, request_signer: Any, signature_version: Any, **_: Any) -> None:
    if (seen := _seen.get()) is not None:
        seen.signer, seen.signature = request_signer, signature_version
        seen.checksums = (request.context.get("checksum") or {}).get("response_algorithms") or ()


def _see_request(request: Any, **_: Any) -> None:
    if (seen := _seen.get()) is not None:
        seen.request = request


def _form(client: Any, key: str, seen: WatchedRequest) -> _Form | None:
    from botocore import UNSIGNED

    http, end = http_session_of(client), _quoted(key)
    if http is None or seen.request is None or not seen.request.url.endswith(f"/{end}"):
        return None
    headers = {name.lower(): _text(value) for name, value in seen.request.headers.items()}
    signed_by = _SIGNED_BY.match(headers.get("authorization", ""))
    if seen.signature is UNSIGNED and "authorization" not in headers:
        region = None
    elif seen.signature == "s3v4" and signed_by is not None:
        region = signed_by[1]
    else:
        return None
    kept = {name: value for name, value in headers.items() if name not in _ANEW}
    before_key = seen.request.url.removesuffix(end)
    return _Form(client, http, seen.signer, region, seen.checksums, before_key, kept)


async def _request(form: _Form, key: str, byte_range: str) -> Any:
    from botocore.awsrequest import AWSRequest

    headers = {**form.headers, "range": byte_range}
    request = AWSRequest("GET", form.before_key + _quoted(key), headers=headers, stream_output=True)
    if form.region is not None:
        auth = await form.signer.get_auth_instance(
            signing_name="s3", region_name=form.region, signature_version="s3v4"
        )
        auth.add_auth(request)
    return request.prepare()


async def _answer(form: _Form, response: Any) -> Mapping[str, Any]:
    from aiobotocore.httpchecksum import handle_checksum_body
    from aiobotocore.response import StreamingBody

    if response.status_code >= 300:
        raise await _refusal(response)
    headers = response.headers
    context = {"checksum": {"response_algorithms": form.checksums}}
    body = StreamingBody(response.raw, headers.get("content-length"))
    answer = {"headers": headers, "body": body, "context": context}
    operation = form.client.meta.service_model.operation_model(_METHOD)
    await handle_checksum_body(response, answer, context, operation)
    return {
        "Body": answer["body"],
        "ContentLength": int(headers["content-length"]),
        "ContentRange": headers.get("content-range"),
        "ETag": headers["etag"],
    }


async def _refusal(response: Any) -> BaseException:
    from botocore.exceptions import ClientError
    from botocore.parsers import create_parser

    said = {
        "status_code": response.status_code,
        "headers": response.headers,
        "body": await response.content,
    }
    refusal: BaseException = ClientError(create_parser("rest-xml").parse(said, None), _METHOD)
    return refusal


def _quoted(key: str) -> str:
    return quote(key, safe="/~")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
