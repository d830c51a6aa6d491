"""Token ids by a fast tokenizer, without torch: shared by `TextInputs` and `fusetune.runtime`."""

from __future__ import annotations

from typing import Any

import numpy as np


def token_ids(tokenizer: Any, text: str, filler: int) -> np.ndarray:
    """Return a text's token ids by a tokenizer of the library `tokenizers`, (tokens,) int32, at least one.

    Args:
        tokenizer: with its truncation set.
        text: a lone surrogate is replaced, as the tokenizer refuses it.
        filler: the id that stands for a text without tokens.
    """
    try:
        ids = tokenizer.encode(text).ids
    except (TypeError, UnicodeError):
        ids = tokenizer.encode(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")).ids
    return np.asarray(ids or [filler], dtype=np.int32)
