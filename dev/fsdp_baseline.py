# PyTorch FSDP2 on Llama-3-8B with random weights and tokens: what a user would train it with instead. fully_shard around each block and the
# whole model, parameters, gradients and optimizer state in BF16, each block under torch.compile, gathered blocks let go after their forward
# pass, fused AdamW. Prints the median ms of a step, tokens/s of all GPUs and peak GiB of the first.
#
#   torchrun --nproc-per-node N dev/fsdp_baseline.py --batch 4 [--seq 1024] [--layers 32] [--steps 8] [--checkpointing] [--float8]
#
# --float8: torchao's FP8 products in all linears of the blocks, one scale a tensor, weights gathered in FP8 with their scales found together
# after each update: the counterpart of halo0-fp8 --qfsdp.
import argparse
import os
import statistics
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from transformers import LlamaConfig, LlamaForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, required=True, help="rows per GPU")
parser.add_argument("--seq", type=int, default=1024)
parser.add_argument("--layers", type=int, default=32)
parser.add_argument("--steps", type=int, default=8)
parser.add_argument("--checkpointing", action="store_true", help="activations of a block are made again in backward")
parser.add_argument("--float8", action="store_true", help="torchao's FP8 products, and weights gathered in FP8")
args = parser.parse_args()

dist.init_process_group("nccl")
rank, ranks = dist.get_rank(), dist.get_world_size()
torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
torch.manual_seed(rank)

config = LlamaConfig(
    hidden_size=4096, intermediate_size=14336, num_hidden_layers=args.layers, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
    vocab_size=128256, rope_theta=500000.0, rms_norm_eps=1e-5, max_position_embeddings=8192, tie_word_embeddings=False, use_cache=False,
    attention_bias=False)
config._attn_implementation = "sdpa"
with torch.device("meta"):
    model = LlamaForCausalLM(config).to(torch.bfloat16)
if args.checkpointing:
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

if args.float8:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training, precompute_float8_dynamic_scale_for_fsdp
    convert_to_float8_training(model, config=Float8LinearConfig(enable_fsdp_float8_all_gather=True),
                               module_filter_fn=lambda module, name: name != "lm_head")

mesh = init_device_mesh("cuda", (ranks,))
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.bfloat16)
for block in model.model.layers:
    block.compile()
    fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
model.to_empty(device="cuda")
with torch.no_grad():
    for name, p in model.named_parameters():
        p.fill_(1.0) if "norm" in name else p.normal_(0, 0.02)
with torch.device("cuda"):
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)   # its buffers were on meta
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
tokens = torch.randint(0, config.vocab_size, (args.batch, args.seq), device="cuda")


def step():
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    if args.float8:
        precompute_float8_dynamic_scale_for_fsdp(model)
    optimizer.zero_grad(set_to_none=True)


for _ in range(3):
    step()
times = []
for _ in range(args.steps):
    torch.cuda.synchronize()
    dist.barrier()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    times.append(time.perf_counter() - start)
seconds = torch.tensor(statistics.median(times), device="cuda")
dist.all_reduce(seconds, op=dist.ReduceOp.MAX)
if rank == 0:
    ms, peak = 1e3 * seconds.item(), torch.cuda.max_memory_allocated() / 2**30
    print(f"fsdp2: {ms:.1f} ms a step  {1e3 * ranks * args.batch * args.seq / ms:.0f} tok/s  {peak:.3f} GiB  ({ranks} GPUs, {args.layers} layers, "
          f"{args.batch} x {args.seq} a GPU{', checkpointing' if args.checkpointing else ''}{', float8' if args.float8 else ''}, PyTorch {torch.__version__})", flush=True)
dist.destroy_process_group()
