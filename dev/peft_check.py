#!/usr/bin/env python3
"""Adapters between PEFT and this program, on the demo model: PEFT loads one that the program trained and has to give the
program's logits; the program loads ones that PEFT wrote and has to give PEFT's; and PEFT's HiRA with the factors that HUT trained has to
give the merged model's, where the base is in FP32 and the merged model therefore too. In FP32, on the CPU.

usage: make train_llama3 build/release/test/test_adapter && python3 dev/peft_check.py      (needs torch, transformers, peft)
Prints a line per adapter and exits with 1 if one differs.
"""
import os
import shutil
import subprocess
import sys
import tempfile

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BASE = os.path.join(ROOT, "data/demo/model")
TOLERANCE = 2e-5   # of the largest logit; FP32 sums in another order
TOKENS = [1 + 37 * i % 400 for i in range(24)]


def our_logits(adapter):
    tool = os.path.join(ROOT, "build/release/test/test_adapter")
    printed = subprocess.run([tool, "--logits", BASE, adapter] + [str(t) for t in TOKENS], check=True, capture_output=True, text=True).stdout
    return torch.tensor([float(x) for x in printed.split()]).view(len(TOKENS), -1)


def base_model(folder=BASE):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@torch.no_grad()
def their_logits(model):
    return model(input_ids=torch.tensor([TOKENS])).logits[0].float()


def compare(name, adapter, model):
    ours, theirs, plain = our_logits(adapter), their_logits(model), their_logits(base_model())
    scale = theirs.abs().max()
    difference, adapted = ((ours - theirs).abs().max() / scale).item(), ((plain - theirs).abs().max() / scale).item()
    good = difference < TOLERANCE and adapted > 100 * TOLERANCE   # an adapter that does nothing would pass unseen
    print(f"{'ok' if good else 'FAIL'} {name}: logits differ by {difference:.1e} of the largest; from the base by {adapted:.1e}", flush=True)
    return good


def compare_hira(folder):
    base, out = os.path.join(folder, "base"), os.path.join(folder, "hut")
    base_model().save_pretrained(base)
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(os.path.join(BASE, name), base)
    train(out, "--rank", "8", "--alpha", "12", base=base, adapter="hut")
    hira = their_logits(PeftModel.from_pretrained(base_model(base), os.path.join(out, "hira")).eval())
    merged, plain = their_logits(base_model(out)), their_logits(base_model())
    scale = merged.abs().max()
    difference, adapted = ((hira - merged).abs().max() / scale).item(), ((plain - merged).abs().max() / scale).item()
    good = difference < TOLERANCE and adapted > 100 * TOLERANCE
    print(f"{'ok' if good else 'FAIL'} PEFT's HiRA is the merged HUT: logits differ by {difference:.1e}; from the base by {adapted:.1e}", flush=True)
    return good


def train(out, *flags, base=BASE, adapter="lora"):
    command = [os.path.join(ROOT, "train_llama3"), "--model", base, "--data", os.path.join(ROOT, "data/demo/train.jsonl"), "--adapter", adapter,
               "--steps", "8", "--warmup", "0", "--lr", "5e-3", "--batch", "4", "--seq", "64", "--backend", "cpu", "--out", out]
    subprocess.run(command + list(flags), check=True, stdout=subprocess.DEVNULL)


def main():
    good = True
    with tempfile.TemporaryDirectory() as folder:
        for name, flags in {"all-linear": [], "q,v rank 4": ["--target", "q,v", "--rank", "4"],
                            "rslora": ["--rslora", "--rank", "8", "--alpha", "12"], "halo2-int8": ["--recipe", "halo2-int8"]}.items():
            out = os.path.join(folder, "ours-" + name.replace(",", "").replace(" ", "-"))
            train(out, *flags)
            good &= compare("PEFT loads ours, " + name, out, PeftModel.from_pretrained(base_model(), out).eval())
        modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        for name, options in {"all-linear": dict(r=8, lora_alpha=16, target_modules="all-linear"),
                              "rslora on a few": dict(r=4, lora_alpha=7, use_rslora=True, target_modules=["v_proj", "up_proj", "down_proj"]),
                              "gaussian": dict(r=16, lora_alpha=32, lora_dropout=0.1, init_lora_weights="gaussian", target_modules=modules)}.items():
            torch.manual_seed(1)
            model = get_peft_model(base_model(), LoraConfig(task_type="CAUSAL_LM", **options)).eval()
            for key, value in model.named_parameters():
                if "lora_B" in key:
                    torch.nn.init.normal_(value, std=0.05)
            out = os.path.join(folder, "theirs-" + name.replace(" ", "-"))
            model.save_pretrained(out)
            good &= compare("ours loads PEFT's, " + name, out, model)
        good &= compare_hira(folder)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
