"""Draws what ``speed.py`` found, from its JSON: it has matplotlib here, and ingestd has not.

python plot.py benchmarks-out/speed.json benchmarks-out/speed.png
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

GOOD, BAD, PLAIN = "#2a7f62", "#b5423c", "#5b6b7b"


def wanted(figures: dict[str, Any], axes: Axes) -> None:
    """Draw each figure over what is wanted of it: to the right of 1 is better, whichever way that is."""
    lines = [line for line in figures["table"] if line["wanted"] is not None][::-1]
    for at, line in enumerate(lines):
        better = [_better(line, value) for value in line["rounds"]]
        if not better:
            axes.text(1.05, at, "not measured", va="center", color=BAD)
            continue
        axes.barh(at, statistics.median(better) - 1, left=1, color=GOOD if line["holds"] else BAD, height=0.6)
        axes.plot(better, [at] * len(better), "o", color="black", markersize=3)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    least, most = axes.get_xlim()
    ticks = [at for at in (0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 50, 100) if least <= at <= most]
    axes.set_xticks(ticks, [f"{at:g}" for at in ticks])
    axes.set_xticks([], minor=True)
    axes.set_yticks(range(len(lines)), [_label(line) for line in lines])
    axes.set_xlabel("figure over what is wanted (right of 1: better; dots: rounds)")


def _better(line: dict[str, Any], value: float) -> float:
    if line["at_most"]:
        return float(line["wanted"] / max(value, line["wanted"] / 1000))
    return float(value / line["wanted"])


def _label(line: dict[str, Any]) -> str:
    figure = "none" if line["median"] is None else f"{line['median']:.3g}"
    return f"{line['name']}\n{figure}, wanted {'≤' if line['at_most'] else '≥'} {line['wanted']:g}"


def rates(figures: dict[str, Any], axes: Axes) -> None:
    """Draw the characters a second of each."""
    said = figures["against"]["characters_per_second"]
    names = sorted(said, key=said.get)
    colours = [GOOD if name.startswith("ours") else PLAIN for name in names]
    labels = [name.removeprefix("with_") for name in names]
    axes.barh(labels, [said[name] for name in names], color=colours, height=0.6)
    axes.set_xlabel("characters of the sources a second, median")


def cost(figures: dict[str, Any], axes: Axes) -> None:
    """Draw what a document costs as more are there."""
    said = figures["growth"]
    for name, colour in (("daemon", GOOD), ("milvus", PLAIN)):
        values = [1000 * statistics.median(rounds) for rounds in said["seconds_per_document"][name]]
        axes.plot(said["sizes"][: len(values)], values, "o-", color=colour, label=name)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("documents there")
    axes.set_ylabel("processor ms a document")
    axes.legend()


def main() -> None:
    """Draw the panels that there are figures for."""
    source, target = map(Path, sys.argv[1:])
    figures = json.loads(source.read_text())
    panels: list[tuple[Callable[[dict[str, Any], Axes], None], float]] = []
    count = sum(line["wanted"] is not None for line in figures["table"])
    if count:
        panels.append((wanted, 0.5 * count + 1))
    if figures.get("against", {}).get("characters_per_second"):
        panels.append((rates, 0.3 * len(figures["against"]["characters_per_second"]) + 1))
    if figures.get("growth", {}).get("rss"):
        panels.append((cost, 2.5))
    if not panels:
        sys.exit("there is nothing to draw")
    heights = [height for _, height in panels]
    figure, all_axes = plt.subplots(
        len(panels), figsize=(12, sum(heights) + 1), height_ratios=heights, squeeze=False, layout="constrained"
    )
    for (draw, _), axes in zip(panels, all_axes[:, 0], strict=True):
        draw(figures, axes)
    machine = figures["environment"]
    where = machine["gpu"] or machine["cpu"]
    figure.suptitle(
        f"{where}, {machine['cores']} cores, {machine['threads']} threads, torch {machine['torch']}, "
        f"auto is {machine['auto']}",
        fontsize=10,
    )
    figure.savefig(target, dpi=120)


main()
