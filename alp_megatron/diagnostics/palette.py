"""How figures look. Colours are Okabe and Ito's, which colour-blind readers can tell apart.

Where several series share axes, each also has its own line style, for print and for grey.
"""

BLUE, ORANGE, GREEN, PINK, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#666666"
SKY, AMBER, BLACK, PALE = "#56B4E9", "#E69F00", "#000000", "#BBBBBB"
COLORS = (BLUE, ORANGE, GREEN, PINK, BLACK, SKY, AMBER)
DASHES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (6, 1.5, 1, 1.5)))
STYLE = {
    "font.size": 12,
    "axes.formatter.limits": (-4, 6),  # beyond, the power of ten stands once above the axis
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


def series_style(index: int) -> dict:
    """Colour and line style of the series number `index`; 28 are different."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index % len(DASHES)],
    }
