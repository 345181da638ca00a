#!/usr/bin/env python3
"""The LoRA baseline that a user would pick instead: transformers' Llama with peft under torch.compile, one step (forward, backward,
fused AdamW over the adapter), rank 16 on all linears, random weights and tokens, everything in BF16.

usage: lora_baseline.py MODEL,LAYERS(0=all),BATCH,SEQ,eager|compile,CHECKPOINTING(0|1) ...      (needs torch, transformers, peft)
  without arguments: 8b,0,4,1024,compile,1 8b,0,4,1024,compile,0 8b,0,2,4096,compile,1
The same by this program:
  train_llama3 bench --preset llama3-8b --adapter lora --batch 4 --seq 1024 --recompute block|none
Prints the median ms of a step, tok/s, and the peak GiB.
"""
import gc
import sys
import time

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, head_dim=64,
               tie_word_embeddings=True),
    "3b": dict(hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8, head_dim=128,
               tie_word_embeddings=True),
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
               tie_word_embeddings=False),
}
WARMUP, STEPS = 3, 8
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build(name, layers, checkpointing):
    sizes = dict(SIZES[name], vocab_size=128256, rope_theta=500000.0, rms_norm_eps=1e-5, max_position_embeddings=8192, use_cache=False)
    if layers:
        sizes["num_hidden_layers"] = layers
    config = LlamaConfig(**sizes)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=MODULES), autocast_adapter_dtype=False)
    torch.set_default_dtype(torch.float32)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
    return model.train(), config


def run(name, layers, batch, length, mode, checkpointing):
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model, config = build(name, layers, checkpointing)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)
    compiled = torch.compile(model) if mode == "compile" else model
    tokens = torch.randint(0, config.vocab_size, (batch, length), device="cuda")
    times = []
    for step in range(WARMUP + STEPS):
        torch.cuda.synchronize()
        start = time.time()
        loss = compiled(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        if step >= WARMUP:
            times.append(time.time() - start)
    median = sorted(times)[len(times) // 2]
    print(f"peft {name} L={config.num_hidden_layers} B={batch} T={length} {mode} checkpointing={checkpointing}: {1e3 * median:.1f} ms  "
          f"{batch * length / median:.0f} tok/s  peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB  loss {loss.item():.3f}", flush=True)


def main():
    print(torch.__version__, transformers.__version__, peft.__version__, torch.cuda.get_device_name())
    for case in sys.argv[1:] or ["8b,0,4,1024,compile,1", "8b,0,4,1024,compile,0", "8b,0,2,4096,compile,1"]:
        name, layers, batch, length, mode, checkpointing = case.split(",")
        try:
            run(name, int(layers), int(batch), int(length), mode, checkpointing == "1")
        except Exception as error:   # one that does not fit must not end the others
            print("FAIL", case, repr(error)[:300], flush=True)
        gc.collect()
        torch._dynamo.reset()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
