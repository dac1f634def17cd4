"""Who may change what a running service does: the holder of the operator's key, and nobody where none is set.

An address is no proof: behind a proxy on the same machine, and through a browser that a page has turned against its user,
anybody comes from the loopback.
"""

from __future__ import annotations

import hashlib
import hmac

from fastapi import Depends, Request

from introspect_service.errors import ApiError
from introspect_service.state import ServiceDep


async def require_operator(http: Request, service: ServiceDep) -> None:
    """Let the operator pass; keys are compared in constant time.

    Raises:
        ApiError: 401, no key was given; 403, it is not the operator's, or no operator's key is set.
    """
    key = service.settings.admin_key
    if key is None:
        message = "Probe sets cannot be changed here: the server was started without INTROSPECT_ADMIN_KEY."
        raise ApiError(403, message, code="operator_key_not_set")
    scheme, _, given = http.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise ApiError(
            401, "Give the operator's key: Authorization: Bearer KEY.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
        )
    if not hmac.compare_digest(_digest(given.strip()), _digest(key.get_secret_value())):
        raise ApiError(403, "This needs the operator's key.", code="operator_only")


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("latin-1", "replace")).digest()


OperatorDep = Depends(require_operator)
"""For routes that only the operator may call."""
