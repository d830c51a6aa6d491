"""`Problem`: a request that is not answered as asked, with its HTTP status and the reason."""

from __future__ import annotations

from typing import Any

from fusetune.errors import UserError


class Problem(Exception):
    """A request that is refused or fails.

    Attributes:
        status: the HTTP status.
        kind: a word for programs, such as "invalid_json".
        message: a sentence for people.
        retry_after: seconds after which the client may try again, or None.
        challenge: how the client has to say who it is, where it has not.
        details: further entries of the answer, such as `row` and `column`.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        retry_after: int | None = None,
        challenge: str = "Bearer",
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.retry_after = status, kind, message, retry_after
        self.challenge = challenge
        self.details = {name: value for name, value in details.items() if value is not None}

    @classmethod
    def of(cls, error: UserError) -> Problem:
        """Return the problem of a user's mistake that was noticed while predicting."""
        parts = [error.what, error.expected and f"expected: {error.expected}", error.came and f"came: {error.came}"]
        text = "; ".join(part for part in parts if part)
        return cls(422, "invalid_rows", text, row=error.row, column=error.column)

    @property
    def body(self) -> dict[str, Any]:
        """The answer's JSON: `{"error": {"type", "message", ...}}`, which OpenAI's clients read, too."""
        return {"error": {"type": self.kind, "message": self.message, **self.details}}

    def body_for(self, path: str) -> dict[str, Any]:
        """Return the answer's JSON under a path; in the Open Inference Protocol an error is a text."""
        return {"error": self.message} if path.startswith("/v2") else self.body

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": self.challenge} if self.status == 401 else {})
