"""Draw SVG: pictures with a title, linear scales with round ticks, and panels with axes.

Colours are CSS classes of the report's style sheet, so that a picture follows the light or dark theme: `f-NAME` fills
and `s-NAME` strokes, with NAME one of tuned, before, alone, without, baseline, ink, muted, grid, c0 to c6.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape

from markupsafe import Markup

_ids = itertools.count()


def figure(value: float, beside: float = 0.0) -> str:
    """Format a number with about three significant digits; a dash if it is undefined.

    Args:
        value: the number.
        beside: the size of the numbers shown beside it; a tiny number beside one of 0.01 or more is 0.000.
    """
    if not math.isfinite(value):
        return "\N{EN DASH}"
    size = max(abs(value), beside)
    if size != 0 and size < 0.0095:
        text = f"{value:.2g}"
    else:
        decimals = 3 if size < 10 else 2 if size < 100 else 1 if size < 1000 else 0
        text = f"{value:,.{decimals}f}"
        text = text.removeprefix("-") if float(text.replace(",", "")) == 0 else text
    return text.replace("-", "\N{MINUS SIGN}")


def figures(values: Sequence[float]) -> list[str]:
    """Format numbers that are shown together, all with the decimals of the largest."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return [figure(value, largest) for value in values]


def signed(values: Sequence[float]) -> list[str]:
    """Format differences that are shown together, always with a sign."""
    return [f"+{text}" if value > 0 else text for value, text in zip(values, figures(values), strict=True)]


def short(text: str, limit: int) -> str:
    """Return at most `limit` characters of the text, with white space collapsed."""
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def readable(text: str) -> str:
    """Replace characters that XML or UTF-8 does not allow: control characters and lone surrogates."""
    return "".join(
        char if (char >= " " or char in "\n\t") and not 0xD800 <= ord(char) <= 0xDFFF else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def clean(text: str) -> str:
    """Return the text for SVG: readable, with markup escaped."""
    return escape(readable(text), quote=True)


class Scale:
    """A linear map from data to pixels, with round ticks."""

    def __init__(self, low: float, high: float, start: float, end: float, *, num_ticks: int = 5) -> None:
        """
        Args:
            low, high: the data's range; an empty range is widened.
            start, end: the pixels of `low` and `high`.
            num_ticks: the approximate number of ticks.
        """
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = 0.0, 1.0
        if high <= low:
            low, high = low - max(abs(low), 1) * 0.5, high + max(abs(high), 1) * 0.5
        self.low, self.high, self.start, self.end = low, high, start, end
        step = 10 ** math.floor(math.log10((high - low) / num_ticks))
        self.step = next(step * many for many in (1, 2, 5, 10) if (high - low) / (step * many) <= num_ticks)
        first, last = math.ceil(low / self.step - 1e-9), math.floor(high / self.step + 1e-9)
        self.ticks = [index * self.step for index in range(first, last + 1)]

    def __call__(self, value: float) -> float:
        """Return the pixel of a value, clamped to the range."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 2)

    def label(self, tick: float) -> str:
        """Return a tick's label, with as many decimals as the step needs."""
        decimals = max(0, -math.floor(math.log10(self.step) + 1e-9))
        text = f"{tick:,.{decimals}f}" if decimals <= 6 and abs(tick) < 1e7 else f"{tick:.3g}"
        return text.replace("-", "\N{MINUS SIGN}")


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """Return the range of the finite values with a margin; 0 to 1 if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return 0.0, 1.0
    margin = (max(finite) - min(finite)) * share
    return min(finite) - margin, max(finite) + margin


class Svg:
    """A picture that scales with the page; all text is escaped."""

    def __init__(self, width: float, height: float, title: str, description: str = "") -> None:
        """
        Args:
            width, height: the picture's size, in pixels at full scale.
            title, description: the alternative text for screen readers.
        """
        self.width, self.height, self.title, self.description = width, height, title, description
        self.parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str, *, width: float = 1, dash: str = "") -> None:
        """Draw a straight line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{css}" stroke-width="{width}"{dashes}/>'
        )

    def rect(
        self, x: float, y: float, w: float, h: float, css: str, *, opacity: float = 1, hint: str = "", round_: float = 0
    ) -> None:
        """Draw a rectangle; `hint` is its tooltip."""
        tail = f"><title>{clean(hint)}</title></rect>" if hint else "/>"
        corner = f' rx="{round_}"' if round_ else ""
        self.parts.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(w, 0):.2f}" height="{max(h, 0):.2f}" class="{css}"'
            f' fill-opacity="{opacity:.3g}"{corner}{tail}'
        )

    def circle(self, x: float, y: float, r: float, css: str, *, opacity: float = 1, hint: str = "") -> None:
        """Draw a disc."""
        tail = f"><title>{clean(hint)}</title></circle>" if hint else "/>"
        self.parts.append(f'<circle cx="{x}" cy="{y}" r="{r}" class="{css}" fill-opacity="{opacity:.3g}"{tail}')

    def mark(self, x: float, y: float, r: float, css: str, shape: str, hint: str = "") -> None:
        """Draw a marker of a shape: disc, square, diamond, triangle, wedge, star or ring."""
        corners = {
            "square": f"{x - r},{y - r} {x + r},{y - r} {x + r},{y + r} {x - r},{y + r}",
            "diamond": f"{x},{y - 1.3 * r} {x + 1.3 * r},{y} {x},{y + 1.3 * r} {x - 1.3 * r},{y}",
            "triangle": f"{x},{y - 1.2 * r} {x + 1.2 * r},{y + r} {x - 1.2 * r},{y + r}",
            "wedge": f"{x - 1.2 * r},{y - r} {x + 1.2 * r},{y - r} {x},{y + 1.2 * r}",
            "star": " ".join(
                f"{x + (1.5 if corner % 2 else 0.65) * r * math.sin(math.pi * corner / 5):.1f},"
                f"{y + (1.5 if corner % 2 else 0.65) * r * math.cos(math.pi * corner / 5):.1f}"
                for corner in range(10)
            ),
        }
        if shape in corners:
            self.parts.append(
                f'<polygon points="{corners[shape]}" class="{css}"><title>{clean(hint)}</title></polygon>'
            )
        else:
            self.circle(x, y, r, f"{css} ring" if shape == "ring" else css, hint=hint)

    def path(
        self, points: Sequence[tuple[float, float]], css: str, *, width: float = 2, dash: str = "", hint: str = ""
    ) -> None:
        """Draw an open line through points."""
        if not points:
            return
        moves = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        tail = f"><title>{clean(hint)}</title></path>" if hint else "/>"
        self.parts.append(
            f'<path d="{moves}" class="{css}" fill="none" stroke-width="{width}" stroke-linejoin="round"{dashes}{tail}'
        )

    def text(
        self,
        x: float,
        y: float,
        text: str,
        css: str = "f-ink",
        *,
        anchor: str = "start",
        turn: float = 0,
        size: float = 0,
    ) -> None:
        """Draw text; `anchor` is start, middle or end; `turn` is the rotation in degrees."""
        turned = f' transform="rotate({turn} {x} {y})"' if turn else ""
        sized = f' style="font-size:{size}px"' if size else ""
        self.parts.append(
            f'<text x="{x}" y="{y}" class="{css}" text-anchor="{anchor}"{turned}{sized}>{clean(text)}</text>'
        )

    def draw(self) -> Markup:
        """Return the picture as markup."""
        name = f"svg{next(_ids)}"
        described = f'<desc id="{name}d">{clean(self.description)}</desc>' if self.description else ""
        labelled = f"{name}t {name}d" if self.description else f"{name}t"
        return Markup(
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" style="max-width:{self.width:g}px" role="img"'
            f' aria-labelledby="{labelled}"><title id="{name}t">{clean(self.title)}</title>{described}'
            f"{''.join(self.parts)}</svg>"
        )


class Panel:
    """A picture with a frame, round ticks on both axes and their labels."""

    def __init__(
        self,
        title: str,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        *,
        x_label: str,
        y_label: str,
        description: str = "",
        width: float = 420,
        height: float = 280,
        right: float = 16,
        below: float = 0,
    ) -> None:
        """
        Args:
            title, description: the alternative text for screen readers; the title is also drawn.
            x_range, y_range: the ranges of the data.
            x_label, y_label: the axes' labels, with the unit.
            width, height: the picture's size.
            right: space to the right of the frame.
            below: space below the frame's labels, for a legend.
        """
        self.svg = Svg(width, height, title, description)
        self.num_labels = 0
        self.x = Scale(*x_range, 58, width - right)
        self.y = Scale(*y_range, height - 46 - below, 30)
        self.bottom = height - below
        left, bottom, end, top = self.x.start, self.y.start, self.x.end, self.y.end
        for tick in self.y.ticks:
            self.svg.line(left, self.y(tick), end, self.y(tick), "s-grid")
            self.svg.text(left - 7, self.y(tick) + 4, self.y.label(tick), "f-muted", anchor="end", size=11)
        for tick in self.x.ticks:
            self.svg.line(self.x(tick), bottom, self.x(tick), bottom + 4, "s-muted")
            self.svg.text(self.x(tick), bottom + 17, self.x.label(tick), "f-muted", anchor="middle", size=11)
        self.svg.line(left, bottom, end, bottom, "s-muted")
        self.svg.text(left, 17, title, "f-ink bold", size=13)
        self.svg.text((left + end) / 2, self.bottom - 8, x_label, "f-muted", anchor="middle", size=12)
        self.svg.text(14, (top + bottom) / 2, y_label, "f-muted", anchor="middle", turn=-90, size=12)

    def curve(
        self, x: Sequence[float], y: Sequence[float], css: str, *, width: float = 2, dash: str = "", hint: str = ""
    ) -> None:
        """Draw a line through the points with finite coordinates."""
        finite = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
        self.svg.path([(self.x(a), self.y(b)) for a, b in finite], css, width=width, dash=dash, hint=hint)

    def horizontal_line(self, y: float, css: str = "s-muted", dash: str = "4 4") -> None:
        """Draw a horizontal line at `y`."""
        self.svg.line(self.x.start, self.y(y), self.x.end, self.y(y), css, dash=dash)

    def vertical_line(self, x: float, label: str = "", css: str = "s-muted", dash: str = "4 4") -> None:
        """Draw a vertical line at `x`, with its label below those of earlier lines."""
        self.svg.line(self.x(x), self.y.start, self.x(x), self.y.end, css, dash=dash)
        if label:
            left = self.x(x) > (self.x.start + self.x.end) / 2
            self.svg.text(
                self.x(x) + (-5 if left else 5),
                self.y.end + 10 + 14 * self.num_labels,
                label,
                "f-muted",
                anchor="end" if left else "start",
                size=11,
            )
            self.num_labels += 1

    def legend(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Draw a legend of (text, stroke class, dash) beside the title."""
        widths = [len(text) * 6.2 + 42 for text, _, _ in entries]
        for index, entry in enumerate(entries):
            self._entry(self.x.end + 14 - sum(widths[index:]), 17, entry)

    def legend_below(self, entries: Sequence[tuple[str, str, str]], title: str = "") -> None:
        """Draw a legend of (text, stroke class, dash) in two columns below the frame, under a title."""
        if title:
            self.svg.text(self.x.start, self.bottom + 8, title, "f-muted", size=11)
        for index, entry in enumerate(entries):
            across = self.x.start + (index % 2) * (self.x.end - self.x.start) / 2
            self._entry(across, self.bottom + 25 + 17 * (index // 2), entry)

    def _entry(self, x: float, y: float, entry: tuple[str, str, str]) -> None:
        text, css, dash = entry
        self.svg.line(x, y - 4, x + 20, y - 4, css, width=2.5, dash=dash)
        self.svg.text(x + 26, y, text, "f-ink", size=11)

    def draw(self) -> Markup:
        """Return the picture as markup."""
        return self.svg.draw()
