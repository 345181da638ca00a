# PyTorch's FlashAttention-2 on the shapes of bench_attention: 16384 tokens, 32 query heads, causal; median microseconds and TFLOP/s of the
# causal half (2 T^2 HD a head forward, 5 T^2 HD backward). Keys and values are expanded to 32 heads beforehand.
import torch
from torch.nn.attention import sdpa_kernel, SDPBackend


def median_us(run, runs=21, warmups=3):
    times = []
    for i in range(warmups + runs):
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        stop.record()
        stop.synchronize()
        if i >= warmups:
            times.append(start.elapsed_time(stop) * 1e3)
    return sorted(times)[runs // 2]


print("PyTorch", torch.__version__, torch.cuda.get_device_name())
for hd in (64, 128):
    for t in (512, 1024, 2048, 8192):
        b, heads = 16384 // t, 32
        q, k, v = (torch.randn(b, heads, t, hd, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
        dy = torch.randn(b, heads, t, hd, device="cuda", dtype=torch.bfloat16)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            attend = lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            y = attend()
            with torch.no_grad():
                forward = median_us(attend)
            backward = median_us(lambda: torch.autograd.grad(y, (q, k, v), dy, retain_graph=True))
        flops = b * heads * t * t * hd
        for name, us, factor in (("forward ", forward, 2), ("backward", backward, 5)):
            print(f"FA2 T {t:5d} B {b:2d} heads {heads} HD {hd:3d} {name} | {us:9.1f} us | {factor * flops / us * 1e-6:6.1f} TFLOP/s", flush=True)
