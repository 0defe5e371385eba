"""A block as a small drawing, from its configuration: the residual stream from left to right, a box for each part.

Every part has its own place. Where it is removed the stream runs through, so that drawings can be compared at a glance.
What stands in a box, and whether there is one, is in the table of switches; a position without a symbol is drawn with
its words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from xml.sax.saxutils import escape, quoteattr

from ablations.report.columns import title_of
from lit_simplified.config import CHOICES, SWITCHES, BlockConfig, Position

COLOURS = {"norm": "#cfe6cc", "value": "#cbdff5", "projection": "#cbdff5", "mlp": "#fbeaa0", "gain": "#ffffff"}
"""The colours of the boxes by their place; light enough for dark text on any page."""
MIXINGS = ("#fbd5a6", "#f6c5cd", "#dccdf3", "#c3e8e4", "#e5dcc3", "#f4c2e8", "#d5e0a8")
"""The colours of the mixings of tokens, by their place in the table of switches."""
SQUEEZE = 1.6
"""By how much more text than fits a box may be squeezed into it; the rest is cut."""
GLYPH = 0.62
"""Width of a character, in font sizes."""


@dataclass(frozen=True)
class _Size:
    """Lengths of a drawing."""

    box: float
    font: float
    gap: float
    rise: float
    """From the top of the boxes to the arc of a skip."""
    widths: dict[str, float]
    large: bool

    @property
    def plus(self) -> float:
        """Radius of a sum."""
        return self.box * 0.3

    @property
    def top(self) -> float:
        """Where the highest boxes begin: below the arcs."""
        return self.rise + 4

    @property
    def below(self) -> float:
        """Room for a line of text below the lowest boxes."""
        return self.font + 1 if self.large else 2


SMALL = _Size(box=16, font=8.5, gap=4, rise=6, large=False,
              widths={"norm": 24, "value": 15, "mixing": 36, "projection": 15, "mlp": 30, "gain": 13})
LARGE = _Size(box=34, font=12.5, gap=9, rise=12, large=True,
              widths={"norm": 82, "value": 88, "mixing": 116, "projection": 88, "mlp": 92, "gain": 30})


@dataclass(frozen=True)
class _Part:
    """A part in its place; one without a label is removed, and takes room only."""

    place: str
    colour: str = ""
    label: tuple[str, ...] = ()
    kept: bool = False
    """Removed from all blocks but this first one: drawn with a dashed border."""
    room: str = ""
    """The place whose room it takes, where that is not its own."""


class _Canvas:
    """What is drawn, in three layers: lines, boxes above them, and texts above all."""

    def __init__(self, size: _Size) -> None:
        self.size = size
        self.lines: list[str] = []
        self.boxes: list[str] = []
        self.texts: list[str] = []

    def svg(self, width: float, height: float, *, label: str) -> str:
        """The drawing as SVG; lines have the colour of the text around it."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
            f'height="{height:g}" role="img" aria-label={quoteattr(label)} fill="none" stroke="currentColor">'
            f'<path d="{"".join(self.lines)}"/><g stroke="#555">{"".join(self.boxes)}</g>'
            f'<g fill="#1c1c1c" stroke="none" font-family="sans-serif" font-size="{self.size.font:g}" '
            f'text-anchor="middle">{"".join(self.texts)}</g></svg>'
        )

    def text(self, x: float, y: float, text: str, *, more: str = "") -> None:
        self.texts.append(f'<text x="{x:g}" y="{y:.4g}"{more}>{escape(text)}</text>')

    def text_within(self, x: float, y: float, text: str, width: float) -> None:
        """A text in a box: squeezed where it is too long, and cut where it is much too long."""
        fits = width / (GLYPH * self.size.font)
        most = int(SQUEEZE * fits)
        text = text if len(text) <= most else f"{text[:most - 1]}…"
        squeezed = f' textLength="{width - 3:g}" lengthAdjust="spacingAndGlyphs"' if len(text) > fits else ""
        self.text(x, y, text, more=squeezed)

    def stream(self, begin: float, end: float, y: float) -> None:
        """A stretch of the residual stream."""
        self.lines.append(f"M{begin:g} {y:g}H{end:g}")

    def arrow(self, begin: float, end: float, y: float) -> None:
        """Where the stream leaves the block."""
        self.stream(begin, end, y)
        self.lines.append("m-4 -3l4 3l-4 3")

    def skip(self, begin: float, end: float, y: float) -> None:
        """An arc from the stream over all that is skipped to a sum."""
        top, bend = 2.0, self.size.rise
        self.lines.append(f"M{begin:g} {y:g}V{top + bend:g}Q{begin:g} {top:g} {begin + bend:g} {top:g}"
                          f"H{end - bend:g}Q{end:g} {top:g} {end:g} {top + bend:g}V{y:g}")
        self.sum(end, y)

    def sum(self, x: float, y: float) -> None:
        """A plus in a circle."""
        arm = self.size.plus * 0.6
        self.boxes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{self.size.plus:g}" fill="#fff"/>'
                          f'<path d="M{x - arm:g} {y:g}h{2 * arm:g}M{x:g} {y - arm:g}v{2 * arm:g}"/>')

    def row(self, parts: Iterable[_Part], x: float, y: float) -> float:
        """The boxes side by side from x on, each in the middle of its room; returns where they end."""
        for part in parts:
            room = self.size.widths[part.room or part.place]
            if part.label:
                draw = self.gain if part.place == "gain" else self.box
                draw(part, x + room / 2, y)
            x += room + self.size.gap
        return x

    def gain(self, part: _Part, x: float, y: float) -> None:
        """A circle, and in a large drawing the initial value below."""
        radius, font = self.size.widths["gain"] / 2, self.size.font
        self.boxes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{radius - 0.5:g}" fill="{part.colour}"/>')
        self.text(x, y + font * 0.33, part.label[0])
        for value in part.label[1:]:
            self.text(x, y + radius + font * 0.85, value, more=' fill="currentColor"')

    def box(self, part: _Part, x: float, y: float) -> None:
        """A box with a line of text for each label."""
        width, font = self.size.widths[part.place], self.size.font
        dashed = ' stroke="currentColor" stroke-width="1.5" stroke-dasharray="3 2"' if part.kept else ""
        self.boxes.append(f'<rect x="{x - width / 2:g}" y="{y - self.size.box / 2:g}" width="{width:g}" '
                          f'height="{self.size.box:g}" rx="2.5" fill="{part.colour}"{dashed}/>')
        line = font * 1.15
        top = y + font * 0.35 - line * (len(part.label) - 1) / 2
        for index, text in enumerate(part.label):
            self.text_within(x, top + line * index, text, width)


def diagram(block: BlockConfig, *, first: bool = False, large: bool = False, depth: int = 18) -> str:
    """An SVG of the block.

    Args:
        block: its switches and gains.
        first: draw the first block of a stack, which keeps some parts that the others lack.
        large: full names in the boxes, and the initial gains.
        depth: number of blocks in the stack; initial gains depend on it.
    """
    canvas = _Canvas(LARGE if large else SMALL)
    if block.own is not None:
        return canvas.svg(*_whole(canvas, block.own), label=words(block))
    attention = _attention(block, first=first, size=canvas.size)
    mlp = _mlp(block, depth=depth, size=canvas.size)
    draw = _parallel if block.layout == "parallel" else _sequential
    width, height = draw(canvas, block, first=first, attention=attention, mlp=mlp)
    return canvas.svg(width, height, label=words(block, first=first))


def words(block: BlockConfig, *, first: bool = False) -> str:
    """The block in words, for those who cannot see the drawing: every switch with its position."""
    if block.own is not None:
        return f"a block of your own: {_class_of(block.own)}"
    found = []
    for name, switch in SWITCHES.items():
        kept = ", kept in this first block" if _is_kept(block, name, first=first) else ""
        found.append(f"{title_of(switch)}: {position_of(block, name).words}{kept}")
    return "; ".join(found)


def _class_of(own: str) -> str:
    """The class in `FILE.py:CLASS@DIGEST`."""
    return own.rpartition(":")[2].partition("@")[0]


def _whole(canvas: _Canvas, own: str) -> tuple[float, float]:
    """One box, for a block of your own, of which nothing else is known; returns width and height."""
    size = canvas.size
    y = size.top + size.box / 2
    end = canvas.row([_Part("mixing", COLOURS["gain"], (_class_of(own),))], 3 * size.gap, y) + 2 * size.gap
    canvas.arrow(0, end, y)
    return end + 2, y + size.box / 2 + size.below


def position_of(block: BlockConfig, name: str) -> Position:
    """What the table says of a block's position."""
    return CHOICES[name][getattr(block, name)]


def _is_kept(block: BlockConfig, name: str, *, first: bool) -> bool:
    """Whether the first block keeps a part that the others lack (`first_norm`, `first_value`)."""
    return first and position_of(block, name).absent and bool(getattr(block, f"first_{name}", False))


def _has(block: BlockConfig, name: str) -> bool:
    return not position_of(block, name).absent


def _norm(block: BlockConfig, *, first: bool, may_keep: bool, size: _Size) -> _Part:
    """`may_keep`: the place where a block without norms may keep one."""
    position, kept = position_of(block, "norm"), may_keep and _is_kept(block, "norm", first=first)
    if position.absent and not kept:
        return _Part("norm")
    shown = SWITCHES["norm"][block.resolved_outer_norm] if kept else position
    return _Part("norm", COLOURS["norm"], (shown.words if size.large else shown.symbol or shown.words,), kept=kept)


def _attention(block: BlockConfig, *, first: bool, size: _Size) -> list[_Part]:
    return [
        _matrix("value", block, first=first, size=size), _mixing(block, size=size),
        _matrix("projection", block, first=first, size=size), _gain(block.resolved_attention_gain, size=size),
    ]


def _mixing(block: BlockConfig, *, size: _Size) -> _Part:
    mixing = position_of(block, "attention")
    label = tuple(filter(None, (mixing.words, mixing.formula))) if size.large else (mixing.symbol or mixing.words,)
    known = SWITCHES["attention"].positions  # a part of your own is in no table: the colour behind those that are
    colour = MIXINGS[(known.index(mixing) if mixing in known else len(known)) % len(MIXINGS)]
    return _Part("mixing", colour, () if mixing.absent else label)


def _matrix(name: str, block: BlockConfig, *, first: bool, size: _Size) -> _Part:
    position, kept = position_of(block, name), _is_kept(block, name, first=first)
    if position.absent and not kept:
        return _Part(name)
    label = (name, position.formula or position.words) if size.large else (position.symbol or position.words,)
    return _Part(name, COLOURS[name], label, kept=kept)


def _mlp(block: BlockConfig, *, depth: int, size: _Size) -> list[_Part]:
    activation = position_of(block, "activation").words
    label = ("MLP", f"gated {activation}" if block.glu else activation) if size.large else ("MLP",)
    return [_Part("mlp", COLOURS["mlp"], label), _gain(block.resolved_mlp_gain(depth), size=size)]


def _gain(initial: float | None, *, size: _Size) -> _Part:
    if initial is None:
        return _Part("gain")
    return _Part("gain", COLOURS["gain"], ("β", f"{initial:.2g}") if size.large else ("β",))


def _sequential(
    canvas: _Canvas, block: BlockConfig, *, first: bool, attention: list[_Part], mlp: list[_Part]
) -> tuple[float, float]:
    """Two branches, one behind the other; returns width and height."""
    size = canvas.size
    x, y = size.gap, size.top + size.box / 2
    branches = ((True, _has(block, "attention_skip"), attention), (False, _has(block, "mlp_skip"), mlp))
    for may_keep, skip, parts in branches:
        begin = x + size.gap / 2
        norm = _norm(block, first=first, may_keep=may_keep, size=size)
        x = canvas.row([norm, *parts], x + 2 * size.gap, y) + size.plus
        if skip:
            canvas.skip(begin, x, y)
        x += size.plus
    end = x + 2.5 * size.gap
    canvas.arrow(0, end, y)
    return end + 2, y + size.box / 2 + size.below


def _parallel(
    canvas: _Canvas, block: BlockConfig, *, first: bool, attention: list[_Part], mlp: list[_Part]
) -> tuple[float, float]:
    """Two branches, one below the other, behind one norm and under one skip; returns width and height."""
    size = canvas.size
    lane = size.box / 2 + (size.font * 0.7 if size.large else 2)  # from the stream to either branch
    upper = size.top + size.box / 2
    y, lower = upper + lane, upper + 2 * lane
    split = canvas.row([_norm(block, first=first, may_keep=True, size=size)], 3 * size.gap, y)
    below = [_Part("value"), replace(mlp[0], room="mixing"), _Part("projection"), mlp[1]]
    join = canvas.row(attention, split + 2 * size.gap, upper) + size.gap + size.plus
    canvas.row(below, split + 2 * size.gap, lower)
    canvas.stream(0, split, y)
    canvas.lines += [f"M{split:g} {y:g}V{at:g}H{join:g}V{y:g}" for at in (upper, lower)]
    canvas.sum(join, y)
    if _has(block, "mlp_skip"):
        canvas.skip(1.5 * size.gap, join + 2 * size.plus + size.gap, y)
    end = join + 4 * size.plus + 3.5 * size.gap
    canvas.arrow(join, end, y)
    return end + 2, lower + size.box / 2 + size.below
