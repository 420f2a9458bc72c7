"""matplotlib -> SVG that lives inside the page: coloured by the page's CSS variables, so it follows light and dark.

The figures are drawn in stand-in colours, and the stand-ins are replaced by `var(--...)` in the SVG text. The same
numbers always give the same bytes: no date, a fixed salt for ids, and a name in front of every id (two inline SVGs
share one document, and the browser takes the first of two equal ids).
"""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# name of the CSS variable -> the stand-in that matplotlib draws with
COLOURS = {
    name: f"#0{i:x}0b0c"
    for i, name in enumerate(("ink", "quiet", "grid", "base", "sft", "dpo", "grpo", "bad", "other", "plain"), start=1)
}
WIDTH = 400  # pixels at which the text has its nominal size; two stand side by side on a desktop

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "groundup", "font.family": "DejaVu Sans", "font.size": 11,
    "axes.edgecolor": COLOURS["grid"], "axes.labelcolor": COLOURS["quiet"], "axes.linewidth": 0.8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.grid": True,
    "axes.grid.axis": "y", "axes.axisbelow": True, "grid.color": COLOURS["grid"], "grid.linewidth": 0.8,
    "xtick.color": COLOURS["quiet"], "ytick.color": COLOURS["quiet"], "xtick.major.size": 0, "ytick.major.size": 0,
    "xtick.minor.size": 0, "ytick.minor.size": 0, "text.color": COLOURS["ink"], "lines.linewidth": 2,
    "lines.solid_capstyle": "round", "lines.solid_joinstyle": "round", "figure.facecolor": "none",
    "axes.facecolor": "none", "axes.formatter.useoffset": False, "text.parse_math": False,
}  # fmt: skip


class Canvas:
    """`with Canvas("loss", height=205) as (figure, axes): ...; canvas.svg(alt)` - one figure in the house style."""

    def __init__(self, name: str, height: int = 205, width: int = WIDTH) -> None:
        from matplotlib import rc_context

        self.name, self.size = name, (width / 72, height / 72)
        self.context = rc_context()

    def __enter__(self) -> tuple[Figure, Axes]:
        from matplotlib import rcdefaults, rcParams
        from matplotlib.figure import Figure  # no pyplot: no window, no list of open figures

        self.context.__enter__()
        rcdefaults()  # a matplotlibrc of the reader's must not change the page
        for key, setting in _STYLE.items():
            rcParams[key] = setting  # type: ignore[index]
        self.figure = Figure(figsize=self.size, layout="constrained")
        return self.figure, self.figure.subplots()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            if kind is None:
                file = io.StringIO()
                self.figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
                self.raw = file.getvalue()
        finally:
            self.context.__exit__(kind, error, trace)

    def svg(self, alt: str) -> Markup:
        """The figure as inline SVG; `alt` is what a screen reader says."""
        return inline(self.raw, self.name, alt)


def inline(svg: str, name: str, alt: str) -> Markup:
    """An SVG file's text, ready to stand inside HTML."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style)\b.*?</\1>", "", svg, flags=re.DOTALL)  # a style here would rule the whole page
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))  # ids that nothing points to are only weight
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"font-family: [^;\"]*", "font-family: inherit", svg)
    svg = re.sub(r"font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"font-size: \2", svg)
    for variable, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{variable})")
    head = f'<svg role="img" aria-label="{escape(alt)}" '
    return Markup(re.sub(r"\n\s*", "\n", svg.replace("<svg ", head, 1)))
