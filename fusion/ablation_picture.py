"""The picture of an ablation: how much the mean F1 changes without each group of modalities."""

from pathlib import Path

import numpy as np

from fusion.ablation import WAYS, Ablation
from fusion.pictures import bar_style, new_figure, save_figure, styled


def draw_ablation(ablation: Ablation, folder: str | Path, name: str = "ablation") -> list[Path]:
    """Write ``name.png`` and ``name.svg`` into ``folder``; whiskers are paired 95 % intervals over source videos.

    Nothing is written if nothing was removed.

    Raises:
        MachineError: the disk is full, read-only or gone.
    """
    groups = list(dict.fromkeys(one.modalities for one in ablation.removed))
    ways = [way for way in WAYS if any(one.how == way for one in ablation.removed)]
    if not groups:
        return []
    with styled():
        figure = new_figure(8.0, 1.2 + 0.2 * len(groups) * (len(ways) + 0.5))
        axes = figure.subplots()
        height = 0.8 / len(ways)
        for number, way in enumerate(ways):
            mine = [one for one in ablation.removed if one.how == way]
            place = np.array([groups.index(one.modalities) for one in mine]) + (number - (len(ways) - 1) / 2) * height
            changes = np.array([100 * one.change for one in mine])
            axes.barh(
                place, changes, height * 0.92, label=way, **bar_style(number + 1)
            )  # the first fill hides whiskers
            for y, x, one in zip(place, changes, mine, strict=True):
                if one.change_interval is not None:
                    low, high = (100 * end for end in one.change_interval)
                    reach = [[max(x - low, 0.0)], [max(high - x, 0.0)]]
                    axes.errorbar(x, y, xerr=reach, color="black", capsize=2.5, linewidth=1)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(groups)), [f"without {' + '.join(group)}" for group in groups])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("change of mean F1, points")
        axes.set_title(f"Split {ablation.about.split}, whole network {100 * ablation.f1:.1f}")
        figure.legend(loc="outside upper right", ncols=len(ways))
    return save_figure(figure, folder, name)
