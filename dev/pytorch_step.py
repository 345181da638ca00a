# What one would use instead: a full fine-tuning step of transformers' Llama in PyTorch. Weights, gradients and AdamW's states in BF16,
# the whole model under torch.compile, random weights and tokens. With fp8 the linears of the layers multiply in E4M3, with one dynamic
# scale a tensor, in all three products; lm_head stays in BF16.
#
#   pytorch_step.py 1b|3b|8b LAYERS BATCH SEQ bf16|fp8 [ACCUM]        LAYERS 0: all of them; ACCUM: batches a step (1)
#
# Prints one line: ms (median) | tok/s | model TFLOP/s, counted as train_llama3 bench counts them | peak GiB | seconds until warm.
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {  # hidden, intermediate, layers, heads, head_dim, tied
    "1b": (2048, 8192, 16, 32, 64, True),
    "3b": (3072, 8192, 28, 24, 128, True),
    "8b": (4096, 14336, 32, 32, 128, False),
}
WARMUPS, RUNS = 3, 8
E4M3_MAX = 448.0


def quantized(x):
    scale = x.abs().max().float().clamp(min=1e-12) / E4M3_MAX
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def product(a, a_scale, b_transposed, b_scale):
    return torch._scaled_mm(a, b_transposed, scale_a=a_scale, scale_b=b_scale, out_dtype=torch.bfloat16, use_fast_accum=True)


def columns_first(x):  # _scaled_mm takes its second operand column-major
    return x.t().contiguous().t()


class Fp8Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        rows, row_scale = quantized(x.reshape(-1, x.shape[-1]))
        weight, weight_scale = quantized(w)
        ctx.save_for_backward(rows, row_scale, weight, weight_scale)
        ctx.shape = x.shape
        return product(rows, row_scale, weight.t(), weight_scale).view(*x.shape[:-1], w.shape[0])

    @staticmethod
    def backward(ctx, dy):
        rows, row_scale, weight, weight_scale = ctx.saved_tensors
        grad, grad_scale = quantized(dy.reshape(-1, dy.shape[-1]))
        dx = product(grad, grad_scale, columns_first(weight), weight_scale)
        dw = product(grad.t().contiguous(), grad_scale, columns_first(rows), row_scale)
        return dx.view(ctx.shape), dw


class Fp8Linear(torch.nn.Linear):
    def forward(self, x):
        return Fp8Product.apply(x, self.weight)


def build(size, layers, fp8):
    hidden, intermediate, all_layers, heads, head_dim, tied = SIZES[size]
    config = LlamaConfig(
        vocab_size=128256, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers or all_layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=head_dim, tie_word_embeddings=tied, rope_theta=500000.0,
        rms_norm_eps=1e-5, max_position_embeddings=8192, use_cache=False, attention_bias=False)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if fp8:
        for module in model.model.layers.modules():
            if type(module) is torch.nn.Linear:
                module.__class__ = Fp8Linear
    return model.train(), config


def main(size, layers, batch, seq, dtype, accum):
    torch.manual_seed(0)
    model, config = build(size, layers, dtype == "fp8")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    compiled = torch.compile(model)
    tokens = torch.randint(0, config.vocab_size, (batch, seq), device="cuda")

    def step():
        for _ in range(accum):
            loss = compiled(input_ids=tokens, labels=tokens).loss
            (loss / accum).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    start = time.time()
    for _ in range(WARMUPS):
        loss = step()
    torch.cuda.synchronize()
    warm, times = time.time() - start, []
    for _ in range(RUNS):
        start = time.time()
        loss = step()
        torch.cuda.synchronize()
        times.append(time.time() - start)
    seconds = sorted(times)[RUNS // 2]

    weights = sum(p.numel() for p in model.parameters())
    if not config.tie_word_embeddings:
        weights -= config.vocab_size * config.hidden_size  # the embedding is only looked up
    flops = 6 * weights + 6 * config.num_hidden_layers * seq * config.num_attention_heads * config.head_dim
    rate = batch * accum * seq / seconds
    print(f"pytorch {torch.__version__} {size} layers {config.num_hidden_layers} batch {batch} x {accum} x {seq} {dtype}: {1e3 * seconds:.1f} ms a step  "
          f"{rate:.0f} tok/s  {rate * flops / 1e12:.0f} TFLOP/s  peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB  "
          f"warm after {warm:.0f} s  loss {loss.item():.3f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) not in (6, 7) or sys.argv[1] not in SIZES or sys.argv[5] not in ("bf16", "fp8"):
        sys.exit("usage: pytorch_step.py 1b|3b|8b LAYERS BATCH SEQ bf16|fp8 [ACCUM]")
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]) if len(sys.argv) > 6 else 1)
