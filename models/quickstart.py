"""One model, two strategies, one picture: Old Faithful by EM and by SVI from the same start.

`python -m models.quickstart` prints both fits side by side and writes `quickstart.png`.
"""

from collections.abc import Callable
from functools import partial
from itertools import product
from math import tau

import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from torch import Tensor

from models.gaussian_mixture import load, model
from pyro_em import EM, SVI, FitResult, fit

REFERENCE = -1130.264  # mclust, model VVV with two components
PICTURE = "quickstart.png"

COMPONENTS = ("#d1495b", "#00798c")  # short eruptions, long eruptions
INK, MUTED, GRID = "#22272e", "#6b7480", "#e6e8eb"
CURVES = {"EM": INK, "SVI": "#e08e0b"}
OUTLINES = {"EM": ("-", 2.4), "SVI": ((0, (3, 2.5)), 1.4)}
TITLE = {"loc": "left", "color": INK, "fontsize": 12, "pad": 12}


def main() -> None:
    """Fit Old Faithful twice, print the table and write the picture."""
    (x,) = load()
    fits = {
        "EM": fit(model, x, strategy=EM()),
        "SVI": fit(model, x, strategy=SVI(optim=partial(torch.optim.Adam, lr=0.1))),
    }
    print(table(fits))
    picture(x, fits).savefig(PICTURE, dpi=160)
    print(f"\nWrote {PICTURE}")


def table(fits: dict[str, FitResult]) -> str:
    """Both fits side by side, one row a number, components in order of their first mean."""
    rows: list[tuple[str, Callable[[FitResult], str]]] = [
        ("log evidence", lambda result: f"{result.log_evidence:.4f}"),
        ("iterations", lambda result: f"{result.n_steps}"),
        ("seconds", lambda result: f"{result.seconds:.2f}"),
        ("status", lambda result: result.status.name.lower()),
        ("weights", lambda result: _numbers(result.params["weights"][order(result)])),
        ("mean, short", lambda result: _numbers(result.params["locs"][order(result)[0]])),
        ("mean, long", lambda result: _numbers(result.params["locs"][order(result)[1]])),
    ]
    lines = ["Old Faithful, two Gaussians with full covariances (272 eruptions)", ""]
    lines.append(f"{'':<14}" + "".join(f"{name:>18}" for name in fits))
    for label, show in rows:
        lines.append(f"{label:<14}" + "".join(f"{show(result):>18}" for result in fits.values()))
    lines += ["", f"Reference: {REFERENCE} (mclust, model VVV); EM() stops about 0.001 short."]
    return "\n".join(lines)


def picture(x: Tensor, fits: dict[str, FitResult]) -> Figure:
    """Left the data and both fits' components, right how either got there."""
    figure = Figure(figsize=(12, 5), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(MUTED)
        axes.tick_params(colors=MUTED, labelsize=9)
        axes.grid(color=GRID, linewidth=0.8)
        axes.set_axisbelow(True)
    _draw_components(left, x, fits)
    _draw_objectives(right, fits)
    return figure


def _draw_components(axes: Axes, x: Tensor, fits: dict[str, FitResult]) -> None:
    chances = fits["EM"].posterior()["z"].probs[:, order(fits["EM"])]
    colors = chances.to(x) @ x.new_tensor([to_rgb(color) for color in COMPONENTS])
    axes.scatter(*x.T, c=colors.clamp(0, 1), s=24, alpha=0.7, linewidths=0)
    for name, (dashes, width) in OUTLINES.items():
        params = fits[name].params
        for k, radius in product(order(fits[name]), (1, 2)):
            outline = ellipse(params["locs"][k], params["scale_trils"][k], radius)
            axes.plot(*outline.T, color=CURVES[name], linestyle=dashes, linewidth=width)
        axes.plot([], [], color=CURVES[name], linestyle=dashes, linewidth=width, label=name)
    axes.set_title("Two components, at one and two standard deviations", **TITLE)
    axes.set_xlabel("eruption, minutes", color=INK)
    axes.set_ylabel("wait for the next, minutes", color=INK)
    axes.legend(frameon=False, loc="upper left", labelcolor=INK, handlelength=3)


def _draw_objectives(axes: Axes, fits: dict[str, FitResult]) -> None:
    axes.axhline(REFERENCE, color=MUTED, linestyle=":", linewidth=1.2)
    label = f"mclust {REFERENCE}".replace("-", "\N{MINUS SIGN}")
    axes.annotate(label, (1, REFERENCE), (0, 5), textcoords="offset points", color=MUTED)
    for name, result in fits.items():
        values = result.history["objective"]
        label = f"{name}: {result.n_steps} iterations, {result.seconds:.2g} s"
        count = range(1, len(values) + 1)
        axes.plot(count, values, color=CURVES[name], linewidth=2.4, label=label)
        axes.plot(count[-1], values.iloc[-1], "o", color=CURVES[name], markersize=6)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_title("Both climb the same function from the same start", **TITLE)
    axes.set_xlabel("iteration", color=INK)
    axes.set_ylabel("log evidence, nats", color=INK)
    axes.legend(frameon=False, loc="lower right", labelcolor=INK, fontsize=11)


def ellipse(loc: Tensor, scale_tril: Tensor, radius: float) -> Tensor:
    """Points at Mahalanobis distance `radius` from `loc` (2,), shape (200, 2)."""
    angles = torch.linspace(0, tau, 200, dtype=loc.dtype)
    circle = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return loc + radius * circle @ scale_tril.T


def order(result: FitResult) -> Tensor:
    """Components by their first mean: the labels of a mixture carry no meaning."""
    return result.params["locs"][:, 0].argsort()


def _numbers(values: Tensor) -> str:
    return "  ".join(f"{value:.4f}" for value in values.tolist())


if __name__ == "__main__":
    main()
