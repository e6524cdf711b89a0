"""Draw the MALoRA layer as an SVG that is readable on light and on dark pages.

`make docs` runs this; the picture is `docs/images/layer.svg`.

    python -m docs.draw_layer
"""

import pathlib
import re
from collections.abc import Sequence

TARGET = pathlib.Path(__file__).resolve().parent / 'images' / 'layer.svg'

# Fills are light with dark text on them; lines and free text are gray, which both pages can show.
FROZEN, SHARED, EXPERT, ROUTER, PLAIN = '#d5d8dc', '#aed6f1', '#f9d6a5', '#abebc6', '#f2f3f4'
LINE = '#808b96'

WIDTH, HEIGHT = 960, 430
EXPERT_Y = (184, 246, 346)  # Experts 1, 2 and N.
EXPERT_NAMES = ('1', '2', 'N')


def main() -> None:
    """Write the picture."""
    TARGET.write_text(picture(), 'utf-8')


def picture() -> str:
    """Return the picture as SVG text."""
    parts = [
        *input_and_base(),
        *router(),
        *experts(),
        *output(),
        *legend(),
    ]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="Helvetica, Arial, sans-serif" '
        'font-size="15">\n'
        '<title>A linear layer with MALoRA</title>\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 z" fill="{LINE}"/></marker></defs>\n'
    )
    return head + '\n'.join(parts) + '\n</svg>\n'


def input_and_base() -> list[str]:
    """Return the input x and the frozen weight W."""
    return [
        box(20, 240, 60, 40, 'x', PLAIN),
        label(50, 300, 'D inputs'),
        *arrow((80, 260), (110, 260), (110, 60), (330, 60)),
        box(330, 35, 190, 50, 'W', FROZEN, 'frozen base weight'),
        *arrow((520, 60), (846, 60), (846, 252)),
    ]


def router() -> list[str]:
    """Return the router, whose gates multiply the experts."""
    return [
        *arrow((110, 130), (330, 130)),
        box(330, 105, 190, 50, 'W_g', ROUTER, 'router: top 2 of N'),
        *arrow((520, 130), (565, 130), (565, 186)),
        label(578, 135, 'gates G_1 … G_N', 'start'),
    ]


def experts() -> list[str]:
    """Return the shared down-projection and the core and up-projection of each expert."""
    parts = [
        *arrow((110, 260), (150, 260)),
        box(150, 225, 110, 70, 'S_A', SHARED, 'd × D', 'shared'),
        label(205, 318, 'd dimensions'),
    ]
    for y, name in zip(EXPERT_Y, EXPERT_NAMES, strict=True):
        parts += [
            *arrow((260, 260), (295, 260), (295, y + 20), (330, y + 20)),
            box(330, y - 4, 110, 48, f'P_{name}', EXPERT, 'r̄ × d'),
            *arrow((440, y + 20), (545, y + 20)),
            circle(565, y + 20, '×'),
            label(492, y + 12, f'G_{name}'),
            *arrow((585, y + 20), (620, y + 20)),
            box(620, y - 4, 110, 48, f'B_{name}', EXPERT, 'F × r̄'),
            *arrow((730, y + 20), (752, y + 20), (752, 270), (772, 270)),
        ]
    parts += [label(385, 322, '⋮'), label(675, 322, '⋮'), label(565, 322, '⋮')]
    return parts


def output() -> list[str]:
    """Return the scaled sum of the experts and the output y."""
    return [
        circle(790, 270, 'Σ'),
        label(790, 312, '× α / r̄'),
        *arrow((808, 270), (828, 270)),
        circle(846, 270, '+'),
        *arrow((864, 270), (888, 270)),
        box(888, 250, 52, 40, 'y', PLAIN),
        label(914, 312, 'F outputs'),
    ]


def legend() -> list[str]:
    """Return the explanation of the colors."""
    entries = ((FROZEN, 'frozen'), (SHARED, 'trained, shared by all experts'))
    entries += ((EXPERT, 'trained, one per expert'), (ROUTER, 'trained router'))
    parts, x = [], 60
    for fill, text in entries:
        parts += [
            f'<rect x="{x}" y="402" width="16" height="16" rx="3" fill="{fill}"/>',
            label(x + 24, 415, text, 'start'),
        ]
        x += 60 + 8 * len(text)
    return parts


def box(x: int, y: int, width: int, height: int, name: str, fill: str, *notes: str) -> str:
    """Return a box with a name, and smaller notes below the name."""
    center, top = x + width / 2, y + height / 2 + 5 - 8 * len(notes)
    rows = [
        f'<text x="{center}" y="{top}" text-anchor="middle" font-weight="bold" fill="#1b2631">'
        f'{symbol(name)}</text>'
    ]
    for number, note in enumerate(notes, start=1):
        rows.append(
            f'<text x="{center}" y="{top + 16 * number}" text-anchor="middle" font-size="12" '
            f'fill="#1b2631">{note}</text>'
        )
    shape = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6"'
    return f'{shape} fill="{fill}" stroke="{LINE}"/>' + ''.join(rows)


def circle(x: int, y: int, sign: str) -> str:
    """Return an operation in a circle."""
    return (
        f'<circle cx="{x}" cy="{y}" r="18" fill="{PLAIN}" stroke="{LINE}"/>'
        f'<text x="{x}" y="{y + 6}" text-anchor="middle" fill="#1b2631">{sign}</text>'
    )


def label(x: int, y: int, text: str, anchor: str = 'middle') -> str:
    """Return gray text."""
    return (
        f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="13" fill="{LINE}">'
        f'{symbol(text)}</text>'
    )


def arrow(*points: tuple[int, int]) -> Sequence[str]:
    """Return a line through points, with a tip at the end."""
    path = ' '.join(f'{x},{y}' for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5" '
        'marker-end="url(#tip)"/>',
    )


def symbol(text: str) -> str:
    """Return text with the letter after each `_` as a subscript, as in S_A and G_1 … G_N."""
    # The empty second span, a zero-width space, returns to the base line.
    subscript = r'<tspan dy="4" font-size="0.75em">\1</tspan><tspan dy="-4">&#8203;</tspan>'
    return re.sub(r'_(\w)', subscript, text)


if __name__ == '__main__':
    main()
