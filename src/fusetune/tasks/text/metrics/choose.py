"""The choice of the main metric of a text target from its train rows.

| train targets | metric | why |
| --- | --- | --- |
| at least 90 % are Python | `chrf` | of the metrics without running code, nearest to people's judgement |
| at most 3 words at the median, several people's answers a row | `vqa_accuracy` | the field's for visual questions |
| at most 3 words at the median | `exact_match` | a short answer is right or wrong |
| over 40 words at the median, or lines in most rows, in Latin script | `rouge_lsum` | sentences may be in any order |
| others | `chrf` | for sentences of any script, without a tokenizer |

The first line that holds decides; shares and lengths are medians over rows.

BLEU is no default: on single rows it is mostly 0, and its tokens do not suit all scripts. Transcripts and short
summaries cannot be told from other sentences: choose `wer` or `cer`, or `rouge_lsum`, for them (`trainer.metric=wer`).

Reference: Evtikhiev et al. 2023 (arXiv 2208.03133) on code; Kocmi et al. 2021 (arXiv 2107.10821), which recommends chrF
over BLEU.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from fusetune.tasks.answers.squad import normalise
from fusetune.tasks.text.metrics.answers import has_votes
from fusetune.tasks.text.metrics.code import is_python
from fusetune.tasks.text.metrics.tokens import num_words, rouge_tokens

FEW_WORDS, MANY_WORDS = 3, 40
CODE_SHARE = 0.9
SAMPLE = 2_000
"""The choice reads so many rows, spread evenly over the train rows."""
RELATED = {
    "exact_match": ("token_f1", "vqa_accuracy", "chrf"),
    "token_f1": ("exact_match", "vqa_accuracy", "chrf"),
    "vqa_accuracy": ("exact_match", "token_f1", "chrf"),
    "rouge_lsum": ("rouge1", "rouge2", "chrf"),
    "rouge1": ("rouge2", "rouge_lsum", "chrf"),
    "rouge2": ("rouge1", "rouge_lsum", "chrf"),
    "wer": ("cer", "exact_match", "chrf"),
    "cer": ("wer", "exact_match", "chrf"),
    "bleu": ("chrf", "rouge_lsum", "token_f1"),
}
"""Metrics to show beside a main one, first of all; for others those beside `chrf`."""


def main_metric(values: Sequence[str | Sequence[str]]) -> tuple[str, str]:
    """Return the main metric of a target and the reason, for the user; see the table above.

    Args:
        values: the train rows' targets, each a text or a list of right ones.

    Example:
        >>> main_metric(["red", "two", "a red bus"])
        ('exact_match', 'answers have 1 word at the median')
    """
    step = max(len(values) // SAMPLE, 1)
    rows = [references for value in values[::step] if (references := _references(value))]
    if not rows:
        return "chrf", "no answer has any text"
    texts = [row[0] for row in rows]
    if (share := _share(map(is_python, texts))) >= CODE_SHARE:
        return "chrf", f"{share:.0%} of the answers are Python"
    words = statistics.median(map(num_words, texts))
    has = f"answers have {words:g} {'word' if words == 1 else 'words'} at the median"
    if words <= FEW_WORDS:
        if _share(map(_agrees, rows)) >= 0.5:
            return "vqa_accuracy", f"{has} and are given by several people"
        return "exact_match", has
    if _latin(texts) < 0.5:
        return "chrf", has
    if words > MANY_WORDS:
        return "rouge_lsum", has
    if _share("\n" in text.strip() for text in texts) >= 0.5:
        return "rouge_lsum", f"{has} and several lines"
    return "chrf", has


def in_order(metrics: Mapping[str, float], main: str) -> dict[str, float]:
    """Return metrics with the main one first, then those of `RELATED` and `parses`, and undefined ones last.

    Args:
        metrics: as `metrics_of` returns them, of all rows.
        main: the main metric's name.
    """
    first = (main, *RELATED.get(main, ("chrf", "bleu", "rouge_lsum", "token_f1")), "parses", "length_ratio")
    names = [*(name for name in first if name in metrics), *(name for name in metrics if name not in first)]
    return {name: metrics[name] for name in sorted(names, key=lambda name: math.isnan(metrics[name]) and name != main)}


def _references(value: str | Sequence[str]) -> list[str]:
    """Return the references that are not blank."""
    return [text for text in ([value] if isinstance(value, str) else value) if text.strip()]


def _share(values: Iterable[bool]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _agrees(references: Sequence[str]) -> bool:
    """Return whether short references are several people's answers, of which two are equal: other ones are synonyms."""
    if not has_votes(references):
        return False
    return max(Counter(map(normalise, references)).values()) > 1


def _latin(texts: Sequence[str]) -> float:
    """Return the share of characters, white space left out, that ROUGE reads."""
    total = sum(len("".join(text.split())) for text in texts)
    return sum(len(word) for text in texts for word in rouge_tokens(text)) / total
