#!/usr/bin/env python3
"""Where HQ-FSDP pays: a simulation of one optimizer step of Llama-3-8B's full fine-tuning over many GPUs, from kernel times measured on one
H200 and the speed of the links. Two queues run beside each other, as in halo/shard.c: products and the other kernels of a layer, and
transfers in their order (the next layer is gathered while one is at work, the gradients of the one before are reduced meanwhile). A layer
waits for its weights; a transfer beside products takes some of their speed.

  fsdp_simulation.py [--tokens 1024,4096,8192] [--accum 1]

First it is held against steps that were measured on two GPUs (dev/RESULTS.md) and says how far off it is; then it prints, for each fabric and
recipe, tokens a second and GPU, the share of a step that is waited for, and the tokens from which less than 2% of it is. A fabric is what one GPU receives at
best while all do: bytes a second, seconds before the first byte, and what products beside a transfer lose.
"""
import argparse

LAYERS, LAYER_WEIGHTS, HEAD_WEIGHTS = 32, 218.1e6, 2 * 525.3e6
PARAMETERS = LAYERS * LAYER_WEIGHTS + HEAD_WEIGHTS

# ms of a layer: `layer` for 8192 tokens grows with the tokens, `fixed` does not (weights to read and to prepare, launches). Their sum is what 8B cut to 8
# layers takes at B 8, T 1024, without lm_head, loss and AdamW, over 8; the fixed part of bf16 and halo0-fp8 was fitted to steps of two GPUs at 4096
# and 8192 tokens (with NCCL's transfers), those of the other recipes are a guess between them.
RECIPES = {
    "bf16": dict(layer=16.8, fixed=1.1, gather_bytes=2.0),
    "halo0-fp8 --qfsdp": dict(layer=10.4, fixed=0.8, gather_bytes=1.0),
    "halo2-int8 --qfsdp": dict(layer=11.8, fixed=1.0, gather_bytes=1.0),
    "halo1-fp6 --qfsdp": dict(layer=11.1, fixed=0.9, gather_bytes=0.75),
}
HEAD_MS = 33.4                    # lm_head and loss, 8192 tokens
ADAMW_MS = 9.36 / 2.80e9          # a parameter, BF16 states
GRADIENT_BYTES = 2.0              # reduced in BF16
NCCL_TOLL = 0.13                  # of the time of a transfer by NCCL's kernels, lost by the products beside it (bench_comm: 7.77 ms alone, 8.73 and 8.49)
ENGINES_TOLL = 0.03               # by copy engines, which take no multiprocessors

FABRICS = {
    "2 GPUs, NVLink": (2, 310e9, 20e-6, ENGINES_TOLL), "8 GPUs, NVLink": (8, 310e9, 40e-6, ENGINES_TOLL),
    "8 GPUs, PCIe 5": (8, 40e9, 60e-6, NCCL_TOLL), "8 GPUs, PCIe 4": (8, 20e9, 60e-6, NCCL_TOLL),
    "64 GPUs, 400 Gb/s each": (64, 44e9, 150e-6, NCCL_TOLL), "64 GPUs, 100 Gb/s each": (64, 11e9, 150e-6, NCCL_TOLL),
}

# (tokens a GPU, recipe): ms of a step and ms waited, two H200s with NVLink, transfers by copy engines.
MEASURED = {(8192, "bf16"): (631.1, 3.4), (8192, "halo0-fp8 --qfsdp"): (415.7, 2.9)}


def step(recipe, fabric, tokens, accum):
    """(ms of a step, ms in which products waited for a transfer)."""
    r, (ranks, rate, start, toll) = RECIPES[recipe], FABRICS[fabric]
    share = (ranks - 1) / ranks

    def transfer(values, bytes_each):
        return 1e3 * (start + share * values * bytes_each / rate)

    layer = r["fixed"] + r["layer"] * tokens / 8192
    passes = []   # (ms of compute, ms to gather its weights first, ms to reduce its gradients after)
    for _ in range(accum):
        gather, reduce = transfer(LAYER_WEIGHTS, r["gather_bytes"]), transfer(LAYER_WEIGHTS, GRADIENT_BYTES)
        head_gather, head_reduce = transfer(HEAD_WEIGHTS / 2, 2.0), transfer(HEAD_WEIGHTS / 2, GRADIENT_BYTES)
        passes.append((0.1, head_gather, 0))                                   # embedding
        passes += [(layer / 3, gather, 0)] * LAYERS
        passes.append((HEAD_MS * tokens / 8192, head_gather, head_reduce))
        passes += [(2 * layer / 3, gather, reduce)] * LAYERS
        passes.append((0.1, 0, head_reduce))

    compute = waited = 0.0             # when the products' queue is free; ms that it stood still
    wire = arrived = passes[0][1]      # when the transfers' queue is free; when the next pass's weights are there
    for i, (ms, gather, reduce) in enumerate(passes):
        begin = max(compute, arrived)
        waited += begin - compute
        if i + 1 < len(passes) and passes[i + 1][1]:   # the next weights may come while this pass is at work
            wire = arrived = max(wire, begin) + passes[i + 1][1]
        compute = begin + ms + toll * (gather + reduce)
        if reduce:                                     # and its gradients leave while the next one is
            wire = max(wire, compute) + reduce
    # Updates follow each layer's reduction; the last ones stand alone.
    updates = ADAMW_MS * PARAMETERS / ranks
    end = max(compute + 0.7 * updates, wire) + 0.3 * updates
    return end, waited + max(0.0, wire - compute - 0.7 * updates)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tokens", default="1024,4096,8192,16384")
    parser.add_argument("--accum", type=int, default=1)
    args = parser.parse_args()
    print("| tokens a GPU | recipe | measured, ms (waited) | simulated | apart |\n|---|---|---|---|---|")
    for (tokens, recipe), (ms, waited) in MEASURED.items():
        got, idle = step(recipe, "2 GPUs, NVLink", tokens, 1)
        print(f"| {tokens} | {recipe} | {ms} ({waited}) | {got:.1f} ({idle:.1f}) | {100 * (got / ms - 1):+.1f}% |")
    for fabric in FABRICS:
        print(f"\n{fabric}, tok/s a GPU (of a step waited for):\n\n| tokens a GPU |", " | ".join(RECIPES), "|\n|---|" + "---|" * len(RECIPES))
        for tokens in map(int, args.tokens.split(",")):
            cells = []
            for recipe in RECIPES:
                ms, waited = step(recipe, fabric, tokens, args.accum)
                cells.append(f"{1e3 * tokens * args.accum / ms:.0f} ({100 * waited / ms:.0f}%)")
            print(f"| {tokens} |", " | ".join(cells), "|")
        line = []
        for recipe in RECIPES:
            tokens = 256
            while tokens < 1 << 20:
                ms, waited = step(recipe, fabric, tokens, args.accum)
                if waited < 0.02 * ms:
                    break
                tokens *= 2
            line.append(f"{recipe} {tokens}")
        print("tokens from which less than 2% is waited for:", ", ".join(line))


main()
