"""Linear layers of a model's sizes on this CPU: torch's own products beside oneDNN's, as they are and packed."""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from mipo_exp.kernels import onednn

ROWS = (1, 8, 32, 128, 512, 2048)
REPEATS = 15


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `linear`."""
    parser.add_argument("--width", type=int, default=576, help="of the hidden state (default: SmolLM2-135M)")
    parser.add_argument("--inner", type=int, default=1536, help="width of the feed-forward layers")
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)


def main(args: argparse.Namespace) -> None:
    """Print the rate of torch's products, 10⁹ operations a second, and oneDNN's as multiples of it."""
    if not onednn.available():
        raise SystemExit("error: this build of torch has no oneDNN products that compute what its own do")
    layers = {
        "attention": (args.width, args.width),
        "up": (args.width, args.inner),
        "down": (args.inner, args.width),
        "output head": (args.width, args.vocabulary),
    }
    head = "| layer | rows | torch, GFLOP/s | oneDNN, as it is | packed | as it is, transposed (backward) |"
    lines = [head, "| --- | --- | --- | --- | --- | --- |"]
    for name, (width, out) in layers.items():
        for count in args.rows:
            rates = [2 * count * width * out / seconds / 1e9 for seconds in _measure(count, width, out)]
            forward, as_it_is, packed, backward, transposed = rates
            ratios = f"{as_it_is / forward:.2f} | {packed / forward:.2f} | {transposed / backward:.2f}"
            lines.append(f"| {name} | {count} | {forward:.0f} | {ratios} |")
    sys.stdout.write("\n".join([*lines, ""]))


def _measure(count: int, width: int, out: int) -> list[float]:
    """Median seconds: torch, oneDNN as it is, packed, torch's backward product, oneDNN's."""
    rows, gradient, weight = torch.randn(count, width), torch.randn(count, out), torch.randn(out, width)
    laid_out = onednn.packed(weight)
    ways: list[Callable[[], torch.Tensor]] = [
        lambda: nn.functional.linear(rows, weight),
        lambda: onednn.product(rows, weight, None),
        lambda: onednn.product(rows, laid_out, None),
        lambda: gradient @ weight,
        lambda: onednn.product(gradient, weight.T, None),
    ]
    found: list[list[float]] = [[] for _ in ways]
    with torch.inference_mode():
        for repeat in range(REPEATS + 2):  # in turn, the first two to warm up
            for times, way in zip(found, ways, strict=True):
                started = time.perf_counter()
                way()
                if repeat > 1:
                    times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in found]
