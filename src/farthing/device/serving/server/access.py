"""Who may do what: bearer tokens, compared in constant time."""

from __future__ import annotations

import hmac
from pathlib import Path

from farthing.device.serving.server.http import Refusal
from farthing.errors import ConfigError

SHORTEST = 16
_ASK = ((b"www-authenticate", b"Bearer"),)


class Access:
    """The rules of a server.

    Args:
        token: that requests must carry; empty asks for none.
        management: whether models may be loaded and unloaded by clients.
        management_token: that such requests must carry; empty: the same as others.
    """

    def __init__(self, token: str = "", management: bool = False, management_token: str = "") -> None:
        self._expected = token.encode()
        self._management = management
        self._managing = management_token.encode() or self._expected
        self.open = not token

    def check(self, authorization: bytes) -> None:
        """Let a request in.

        Raises:
            Refusal: 401, its token is missing or wrong.
        """
        if self._expected and not self._is(authorization, self._expected, self._managing):
            raise Refusal(401, "this server asks for a token: send it as Authorization: Bearer ...", _ASK)

    def check_management(self, authorization: bytes, origin: bytes | None) -> None:
        """Let a request load or unload models.

        Raises:
            Refusal: 401 or 403, it may not.
        """
        if not self._management:
            raise Refusal(403, "management is off: start the server with --manage")
        if origin is not None:
            raise Refusal(403, "web pages may not manage models: send no Origin header")
        self.check(authorization)
        if self._managing and not self._is(authorization, self._managing):
            raise Refusal(403, "this token does not allow to manage models: send the management token")

    @staticmethod
    def _is(given: bytes, *expected: bytes) -> bool:
        """Whether it is one of those expected; how long that takes tells nothing about them."""
        scheme, _, token = given.partition(b" ")
        same = [hmac.compare_digest(token, one) for one in expected]
        return scheme.lower() == b"bearer" and True in same


def read_token(path: Path) -> str:
    """The token in a file, without the white space around it.

    Raises:
        ConfigError: not readable, readable for everyone, or too short to be a secret.
    """
    try:
        facts, text = path.stat(), path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token in {path}: {error}") from error
    if facts.st_mode & 0o007:
        raise ConfigError(f"{path} holds a token, but everyone may open it: chmod 600 {path}")
    return checked_token(text, str(path))


def checked_token(text: str, where: str) -> str:
    """A token that is fit to be one.

    Raises:
        ConfigError: it is not.
    """
    if len(text) < SHORTEST or not text.isprintable() or " " in text:
        raise ConfigError(f"{where}: a token has at least {SHORTEST} printable characters and no spaces")
    return text
