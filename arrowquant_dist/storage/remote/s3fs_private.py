"""One S3 request through s3fs: by its private `_call_s3`, or by the client of its session.

Written for s3fs 2026.9. `_call_s3` adds what the user has set for each request (`s3_additional_kwargs`, such as
server-side encryption, and `requester_pays`) and omits what the request does not accept. If an s3fs lacks it, the
same is done here with public names of s3fs and botocore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_CALL = "_call_s3"


async def call_s3(fs: Any, method: str, arguments: Mapping[str, Any]) -> Any:
    """The response to one request. method: botocore's name for it. Errors are botocore's, or s3fs's caused by these."""
    call = getattr(fs, _CALL, None)
    if call is not None:
        return await call(method, **arguments)
    client = await fs.set_session()
    if hasattr(fs, "get_s3"):
        client = await fs.get_s3(arguments["Bucket"])  # for the bucket's region, if s3fs has one per region
    given = {**fs.s3_additional_kwargs, **fs.req_kw, **arguments}
    known = _arguments_of(client, method)
    return await getattr(client, method)(**{name: value for name, value in given.items() if name in known})


def _arguments_of(client: Any, method: str) -> frozenset[str]:
    operation = client.meta.service_model.operation_model(client.meta.method_to_api_mapping[method])
    return frozenset(operation.input_shape.members)
