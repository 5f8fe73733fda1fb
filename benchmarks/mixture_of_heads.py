"""What a mixture of heads saves: the same layer with all heads, beside a share of them, interleaved.

python benchmarks/mixture_of_heads.py [--lengths 1024,2048,4096]
"""

import argparse
import statistics
import time

import torch

from limelight import Causal
from limelight.nn import ForwardContext, MixtureOfHeads, MultiHead, QueryNorm, Rotary, TwoStage

WIDTH, HEADS, D = 512, 8, 64
SHARED = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", default="1024,2048,4096")
    lengths = [int(n) for n in parser.parse_args().lengths.split(",")]
    torch.manual_seed(0)
    print(f"width {WIDTH}, {HEADS} heads x {D}, {SHARED} shared, causal, float32, {torch.get_num_threads()} threads")
    print(f"{'tokens':>6}  {'all heads':>10}  {'router':>9}  {'heads':>5}  {'time':>10}  {'of all':>6}")
    for L in lengths:
        settings = {"pattern": Causal(), "rotary": Rotary(D), "bias": False, "output_bias": False}
        layers = {("all", HEADS): MultiHead(WIDTH, query_heads=HEADS, key_value_heads=HEADS, head_width=D, **settings)}
        for router in (TwoStage, QueryNorm):
            for k in (1, 2, 4):
                layers[router.__name__, SHARED + k] = MixtureOfHeads(
                    WIDTH,
                    query_heads=HEADS,
                    key_value_heads=HEADS,
                    head_width=D,
                    shared=SHARED,
                    k=k,
                    router=router,
                    **settings,
                )
        states = torch.randn(1, L, WIDTH)
        times = measure({name: layer.requires_grad_(False) for name, layer in layers.items()}, states)
        whole = times.pop(("all", HEADS))
        for (router, heads), each in times.items():
            row = f"{L:>6}  {1e3 * whole:>7.1f} ms  {router:>9}  {heads}/{HEADS:<3}  {1e3 * each:>7.1f} ms"
            print(f"{row}  {each / whole:>6.2f}")


def measure(layers, states, rounds=7):
    """The median seconds of each layer, run in turn."""
    times = {name: [] for name in layers}
    places = ForwardContext(None, torch.arange(states.shape[1])[None])
    for number in range(rounds + 1):
        for name, layer in layers.items():
            begin = time.perf_counter()
            layer(states, places)
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - begin)
    return {name: statistics.median(each) for name, each in times.items()}


if __name__ == "__main__":
    main()
