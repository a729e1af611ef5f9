"""The one shape in which people and programs see that something went wrong."""

from __future__ import annotations


class TdieError(Exception):
    """Something a caller can act on: a stable code, what happened, where, and what to do next.

    Subclasses are named for what the caller can do. `str(error)` is one line without secrets or paths into our code.
    """

    code = "ERROR"
    status = 500  # HTTP status when the error leaves through an API

    def __init__(self, detail: str, *, code: str | None = None, where: str = "", hint: str = "") -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.code, self.detail]
        if self.where:
            parts.insert(0, f"{self.where}:")
        text = " ".join(parts)
        return f"{text} ({self.hint})" if self.hint else text


class Waiting(TdieError):
    """The other side cannot be reached now; nothing is known to have changed. Try again later."""

    code = "UNREACHABLE"
    status = 503


class Late(Waiting):
    """The other side did not answer within the time it was given; what it was told may be done all the same."""


class Denied(TdieError):
    """The other side knows us and says no; trying again with the same credentials is useless."""

    code = "DENIED"
    status = 403


class Refused(TdieError):
    """The request is understood and cannot be carried out as it stands; nothing was changed."""

    code = "REFUSED"
    status = 409


class Invalid(TdieError):
    """The input is wrong; the sender must change it."""

    code = "INVALID"
    status = 422


class Missing(TdieError):
    """What was asked for is not there."""

    code = "NOT_FOUND"
    status = 404
