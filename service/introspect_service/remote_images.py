"""Pictures from other servers, for operators who allow it: from listed hosts at public addresses, within bounds, and nothing else.

A URL is taken apart by one parser and the request is made of its parts, so that no second parser can read another host
from it (CVE-2026-24779). A name is resolved once, all its addresses are judged, and the connection goes to one of those
that were judged: what the name resolves to later (DNS rebinding) is of no consequence. Every redirect begins anew.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress

import httpx

from introspect_service.errors import ImageError

MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
MOST_REDIRECTS = 3
MOST_AT_ONCE = 8
"""Requests whose pictures are fetched at the same time."""

Resolve = Callable[[str, int], Awaitable[list[str]]]
IsAllowed = Callable[[str], bool]

_URL = re.compile(r"https?://[!-\[\]-~]{1,2000}", re.IGNORECASE)  # printable ASCII without a backslash
_PORTS = {"https": 443, "http": 80}
_HEADERS = {"Accept": ", ".join(MEDIA_TYPES), "Accept-Encoding": "identity", "User-Agent": "introspect"}


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and so are the IPv4 addresses that an IPv6 address may carry.

    Addresses of NAT64 are none: what they lead to is the translator's choice.
    """
    judged = [ipaddress.ip_address(address)]
    if isinstance(parsed := judged[0], ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            judged = [parsed.ipv4_mapped]
        elif parsed.is_site_local:
            return False
        judged += [carried for carried in (parsed.sixtofour, *(parsed.teredo or ())) if carried is not None]
    return all(each.is_global and not each.is_multicast and not each.is_reserved for each in judged)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system knows them.

    Raises:
        OSError: it has none.
    """
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


class RemoteImages:
    """Fetches encoded pictures.

    Args:
        hosts: names that may be asked, in lower case; at the scheme's own port, or `name:port`.
        max_bytes: largest encoded picture.
        total_bytes: most bytes of all pictures of a request.
        seconds: for all pictures of a request, from the first name to the last byte.
        allow_http: whether `http` addresses are taken too.
        resolve: finds the addresses of a name.
        is_allowed: whether an address may be connected to.
        tls: whom to trust; the certificate authorities of `certifi` where absent.
    """

    def __init__(
        self,
        hosts: Collection[str],
        *,
        max_bytes: int,
        total_bytes: int,
        seconds: float,
        allow_http: bool = False,
        resolve: Resolve = resolve,
        is_allowed: IsAllowed = is_public,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._hosts, self._max_bytes, self._total, self._seconds = frozenset(hosts), max_bytes, total_bytes, seconds
        self._schemes = ("https", "http") if allow_http else ("https",)
        self._resolve, self._is_allowed = resolve, is_allowed
        self._tls = tls or httpx.create_ssl_context(trust_env=False)
        self._places = asyncio.Semaphore(MOST_AT_ONCE)

    async def fetch_all(self, urls: Iterable[str]) -> dict[str, bytes | ImageError]:
        """The pictures by URL, each fetched once; of the first that is refused the reason, and those behind it are not asked for."""
        done: dict[str, bytes | ImageError] = {}
        until, left = asyncio.get_running_loop().time() + self._seconds, self._total
        for url in dict.fromkeys(urls):
            try:
                async with asyncio.timeout_at(until), self._places:
                    data = await self._fetch(url, min(left, self._max_bytes))
            except TimeoutError:
                done[url] = ImageError(f"The pictures did not come within {self._seconds:g} seconds.")
            except (httpx.HTTPError, OSError, UnicodeError):  # the last of a name that cannot be one
                done[url] = ImageError("The picture's server could not be reached, or broke off.")
            except ImageError as refused:
                done[url] = refused
            else:
                done[url] = data
                left -= len(data)
                continue
            break
        return done

    async def _fetch(self, text: str, limit: int) -> bytes:
        for _ in range(MOST_REDIRECTS + 1):
            url = self._checked(text)
            # A bare transport, made anew for every hop: it knows no proxy, keeps no cookie and no connection, follows nothing.
            async with httpx.AsyncHTTPTransport(verify=self._tls, trust_env=False) as transport:
                response = await self._ask(transport, url)
                try:
                    if not response.has_redirect_location:
                        return await _body(response, limit)
                    text = str(url.join(response.headers["location"]))
                except httpx.InvalidURL:
                    raise ImageError("The picture's address leads to one that is not valid.") from None
                finally:
                    await response.aclose()
        raise ImageError(f"The picture's address leads on more than {MOST_REDIRECTS} times.")

    def _checked(self, text: str) -> httpx.URL:
        if not _URL.fullmatch(text):
            raise ImageError("Expected a picture's address such as https://host/picture.png, in printable ASCII and without a backslash.")
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL:
            raise ImageError("The picture's address is not valid.") from None
        if url.scheme not in self._schemes:
            raise ImageError("Pictures are fetched over https only.")
        if url.userinfo:
            raise ImageError("A picture's address must not have a user or a password.")
        host, port = _host(url), _port(url)
        if f"{host}:{port}" not in self._hosts and (host not in self._hosts or port != _PORTS[url.scheme]):
            raise ImageError("Pictures are not fetched from this host; send the picture itself as data:image/png;base64,...")
        return url

    async def _ask(self, transport: httpx.AsyncHTTPTransport, url: httpx.URL) -> httpx.Response:
        addresses = await self._resolve(_host(url), _port(url))
        if not addresses or not all(self._is_allowed(address) for address in addresses):
            raise ImageError("The picture's host has no public address.")
        for address in addresses[:-1]:
            with suppress(httpx.ConnectError):
                return await self._send(transport, url, address)
        return await self._send(transport, url, addresses[-1])

    async def _send(self, transport: httpx.AsyncHTTPTransport, url: httpx.URL, address: str) -> httpx.Response:
        """Ask at that address for that URL: the certificate must be the name's, though the connection goes to the address."""
        headers = {**_HEADERS, "Host": url.netloc.decode("ascii")}
        pinned = httpx.Request("GET", url.copy_with(host=address), headers=headers, extensions={"sni_hostname": _host(url)})
        return await transport.handle_async_request(pinned)


def _host(url: httpx.URL) -> str:
    """As it goes over the wire; `url.host` would decode a name of other letters."""
    return url.raw_host.decode("ascii")


def _port(url: httpx.URL) -> int:
    return url.port if url.port is not None else _PORTS[url.scheme]


async def _body(response: httpx.Response, limit: int) -> bytes:
    """The body as it was sent: no content encoding is undone, for a small one may become a large one."""
    if response.status_code != httpx.codes.OK:
        raise ImageError(f"The picture's server answered with status {response.status_code}.")
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise ImageError("The picture's server sent a compressed body.")
    kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in MEDIA_TYPES:
        raise ImageError(f"The picture's server did not send one of {', '.join(MEDIA_TYPES)}.")
    too_large = ImageError(f"The picture is larger than the {limit} bytes that are left to it.")
    declared = response.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > limit:
            raise too_large
    return bytes(body)
