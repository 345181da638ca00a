#!/usr/bin/env python3
"""Fine-tuning by transformers and torch's AdamW beside this program's: the same examples, learning rates and steps, BF16 products over FP32
weights on both sides. Needs torch and transformers, no network; a GPU if there is one.

  transformers_train.py curve MODEL DATA WORK [--lr X]           30 steps on one fixed batch of 32 (its order cannot matter): every loss
                                                                 within 1%, every learning rate the same. The default rate, 3e-5, does
                                                                 not learn the batch by heart: 1e-4 does within 20 steps, 1e-3 within
                                                                 ten, and what is left of the loss then is both sides' noise of BF16
  transformers_train.py epoch MODEL DATA TEST METRIC WORK [--lr X] [--seed N] [--max-tokens N]
                                                                 one epoch each, both models' answers by this program: within one
                                                                 standard error; and the loss of both on TEST, which no order of
                                                                 the training data is left in
MODEL is a Hugging Face directory (of a GGUF file: train_llama3 export). What an example's text and trained tokens are comes from
`train_llama3 inspect --json`; transformers' tokenizer has to make the same ids of that text. Exits with 1 when the two differ by more.
"""
import argparse
import json
import math
import os
import re
import subprocess
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROGRAM = os.environ.get("TRAIN_LLAMA3", "./train_llama3")
BATCH, SEQ, WARMUP, ROWS = 32, 512, 20, 8   # ROWS: of a forward pass of theirs
CURVE_STEPS, LOSS_TOLERANCE = 30, 0.01
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def ours(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True).stdout


def examples_of(model, data, tokenizer, limit=0):
    """(ids, trained) of every example, cut to a row as the program cuts it; the ids of whole ones are checked against transformers'."""
    examples = [json.loads(line) for line in ours("inspect", "--model", model, "--data", data, "--seq", SEQ, "--limit", limit,
                                             "--examples", 10 ** 8, "--json").splitlines()]
    checked = 0
    for e in examples:
        if len(e["tokens"]) <= SEQ:
            ids = tokenizer(e["text"], add_special_tokens=False)["input_ids"]
            assert ids[:len(e["tokens"])] == e["tokens"], f"transformers encodes this text otherwise: {e['text']!r}"
            checked += 1
    print(f"{data}: {len(examples)} examples, {checked} of them encoded by transformers too: the same ids")
    return [(e["tokens"], e["trained"]) for e in examples if any(e["trained"])]


def rate(step, steps, peak):
    """Warm-up, then linear decay to 0 one step after the last; steps count from 1."""
    if step <= WARMUP:
        return peak * step / WARMUP
    return peak * (steps + 1 - step) / (steps + 1 - WARMUP)


def train(model, batches, peak):
    """The loss of every step: the mean over the trained tokens of its batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.999), eps=1e-8, weight_decay=0)
    losses = []
    for step, batch in enumerate(batches, 1):
        scored = sum(sum(trained[1:]) for _, trained in batch)
        total = 0.0
        for first in range(0, len(batch), ROWS):
            rows = batch[first:first + ROWS]
            longest = max(len(ids) for ids, _ in rows)
            ids = torch.zeros(len(rows), longest, dtype=torch.long)
            mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
            for i, (tokens, trained) in enumerate(rows):
                n = len(tokens)
                ids[i, :n] = torch.tensor(tokens)
                mask[i, :n] = 1
                labels[i, :n] = torch.tensor([t if on else -100 for t, on in zip(tokens, trained)])
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                logits = model(input_ids=ids.to(DEVICE), attention_mask=mask.to(DEVICE), use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten().to(DEVICE), reduction="sum")
            (loss / scored).backward()
            total += loss.item()
        for group in optimizer.param_groups:
            group["lr"] = rate(step, len(batches), peak)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(total / scored)
    return losses


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).to(DEVICE).train()


def log_of(directory):
    with open(os.path.join(directory, "log.jsonl"), encoding="utf-8") as file:
        return [line for line in map(json.loads, file) if "loss" in line]


def flags_of(lr):
    return ["--recipe", "bf16", "--lr", lr, "--warmup", WARMUP, "--schedule", "linear", "--batch", BATCH, "--seq", SEQ]


def curve(args):
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ours("train", "--model", args.model, "--data", args.data, "--limit", BATCH, "--steps", CURVE_STEPS, *flags_of(args.lr), "--log", args.work)
    batch = examples_of(args.model, args.data, tokenizer, BATCH)
    theirs = train(load(args.model), [batch] * CURVE_STEPS, args.lr)
    worst, same_rates = 0.0, True
    print("| step | learning rate | ours | transformers | apart |\n|---|---|---|---|---|")
    for line, loss in zip(log_of(args.work), theirs, strict=True):
        apart = abs(line["loss"] / loss - 1)
        worst = max(worst, apart)
        same_rates &= abs(line["lr"] / rate(line["step"], CURVE_STEPS, args.lr) - 1) < 1e-5
        print(f"| {line['step']} | {line['lr']:.3e} | {line['loss']:.5f} | {loss:.5f} | {100 * apart:.3f}% |")
    print(f"largest difference {100 * worst:.3f}%, learning rates {'the same' if same_rates else 'DIFFER'}")
    return worst <= LOSS_TOLERANCE and same_rates


def score(directory, args, answers):
    line = ours("eval", "--model", directory, "--data", args.test, "--metric", args.metric, "--max-tokens", args.max_tokens, "--answers",
                answers).splitlines()[-1]
    share, error = re.search(r"([\d.]+)% \(standard error ([\d.]+)\)", line).groups()
    loss = re.search(r": loss ([\d.]+)", ours("eval", "--model", directory, "--data", args.test, "--seq", SEQ)).group(1)
    return f"{line}, loss on its answers {loss}", float(share), float(error)


def epoch(args):
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    out, their_out = os.path.join(args.work, "ours"), os.path.join(args.work, "theirs")
    ours("train", "--model", args.model, "--data", args.data, "--seed", args.seed, *flags_of(args.lr), "--out", out, "--overwrite", "--log", args.work)
    examples = examples_of(args.model, args.data, tokenizer)
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(args.seed)).tolist()
    batches = [[examples[i] for i in order[at:at + BATCH]] for at in range(0, len(order), BATCH)]
    model = load(args.model)
    losses = train(model, batches, args.lr)
    model.to(torch.bfloat16).save_pretrained(their_out)
    tokenizer.save_pretrained(their_out)
    line, share, error = score(out, args, os.path.join(args.work, "ours.jsonl"))
    their_line, their_share, their_error = score(their_out, args, os.path.join(args.work, "theirs.jsonl"))
    log = log_of(args.work)
    print(f"{len(losses)} steps, mean loss of the last ten: ours {sum(x['loss'] for x in log[-10:]) / 10:.4f}, transformers {sum(losses[-10:]) / 10:.4f}")
    print(f"ours         {line}\ntransformers {their_line}\n{abs(share - their_share) / error:.2f} standard errors apart, "
          f"{abs(share - their_share) / math.hypot(error, their_error):.2f} of the difference's")
    return len(log) == len(losses) and abs(share - their_share) <= error


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    for name, fields in {"curve": ["model", "data", "work"], "epoch": ["model", "data", "test", "metric", "work"]}.items():
        command = commands.add_parser(name)
        for field in fields:
            command.add_argument(field)
        command.add_argument("--lr", type=float, default=3e-5 if name == "curve" else 3e-4)
        command.add_argument("--seed", type=int, default=1)
        command.add_argument("--max-tokens", type=int, default=320)
    args = parser.parse_args()
    os.makedirs(args.work, exist_ok=True)
    sys.exit(not {"curve": curve, "epoch": epoch}[args.command](args))


main()
