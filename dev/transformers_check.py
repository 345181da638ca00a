# Holds a model that was read from a GGUF file against transformers on the same weights: the loss on a data file before any training,
# and greedy answers. Needs torch and transformers, no network.
#
#   train_llama3 export --model FILE.gguf --out DIR --backend cpu-f32
#   train_llama3 eval --model DIR --data VIGGO.csv --seq 512 ... > loss.txt
#   train_llama3 eval --model DIR --data VIGGO.csv --metric exact --max-tokens 64 ... --answers answers.jsonl
#   transformers_check.py DIR VIGGO.csv loss.txt answers.jsonl [ANSWERS, 50] [MAX_TOKENS, 64] [bf16|f32]
#
# The prompts come from answers.jsonl's own order: the records of the file. They are rendered here by the model's chat template and
# encoded by its tokenizer, independently of ours. An answer that differs counts as a tie if, where it first differs, both tokens have
# logits of transformers (in F32) that are at most TIE apart. Exits with 1 if a loss is further off than 0.5% or an answer differs by more
# than a tie.
import csv
import json
import re
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

LOSS_TOLERANCE, TIE = 0.005, 0.15


def records(path, instruction):
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.reader(file))
    head = rows[0]
    meaning = head.index("mr") if "mr" in head else head.index("meaning_representation")
    return [(instruction + row[1 - meaning], row[meaning]) for row in rows[1:]]


def instruction_of(prompt, sentence):
    """What our program puts before the sentence of a ViGGO record: the text of a decoded prompt between the user's header and it."""
    start = prompt.index("user\n") + len("user\n")
    return prompt[start:prompt.index(sentence, start)]


def main():
    directory, data, loss_path, answers_path = sys.argv[1:5]
    wanted = int(sys.argv[5]) if len(sys.argv) > 5 else 50
    max_tokens = int(sys.argv[6]) if len(sys.argv) > 6 else 64
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[sys.argv[7] if len(sys.argv) > 7 else "f32"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype=dtype).to(device).eval()
    with open(answers_path, encoding="utf-8") as file:
        answers = [json.loads(line) for line in file]

    plain = records(data, "")
    examples = records(data, instruction_of(answers[0]["prompt"], plain[0][0].strip()))
    assert wanted <= len(answers) <= len(examples), "the answers are not those of this file"

    total = tokens = 0
    ties = wrong = 0
    for i, (question, reference) in enumerate(examples):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": reference}]
        text = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        completion = tokenizer(reference, add_special_tokens=False)["input_ids"] + [end]
        ids = torch.tensor([prompt + completion], device=device)
        with torch.no_grad():
            logits = model(ids).logits[0].float()
        scored = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
        total += torch.nn.functional.cross_entropy(logits[scored], ids[0, len(prompt):], reduction="sum").item()
        tokens += len(completion)
        if i < wanted:
            kind = compare_answer(model, tokenizer, prompt, answers[i]["generated"], max_tokens, end, device, i)
            ties += kind == "tie"
            wrong += kind == "other"

    match = re.search(r"loss (\d+\.\d+) .* over (\d+) tokens", open(loss_path, encoding="utf-8").read())
    ours, our_tokens = float(match.group(1)), int(match.group(2))
    theirs = total / tokens
    off = abs(ours / theirs - 1)
    print(f"loss: ours {ours:.6f} over {our_tokens} tokens, transformers {theirs:.6f} over {tokens}: {100 * off:.3f}% apart")
    print(f"answers: {wanted - ties - wrong} of {wanted} equal, {ties} differ from a tie on, {wrong} otherwise")
    sys.exit(off > LOSS_TOLERANCE or our_tokens != tokens or wrong > 0)


def compare_answer(model, tokenizer, prompt, generated, max_tokens, end, device, number):
    ids = torch.tensor([prompt], device=device)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, temperature=None,
                             top_p=None, top_k=None, eos_token_id=end, pad_token_id=end)[0, len(prompt):].tolist()
    if out and out[-1] == end:
        out = out[:-1]
    theirs = tokenizer.decode(out, skip_special_tokens=True)
    if theirs == generated:
        return "equal"
    ours = tokenizer(generated, add_special_tokens=False)["input_ids"]
    at = 0
    while at < min(len(ours), len(out)) and ours[at] == out[at]:
        at += 1
    with torch.no_grad():
        logits = model(torch.tensor([prompt + out[:at]], device=device)).logits[0, -1].float()
    a = logits[out[at] if at < len(out) else end].item()
    b = logits[ours[at] if at < len(ours) else end].item()
    kind = "tie" if abs(a - b) <= TIE else "other"
    print(f"answer {number}: {kind} at token {at}, logits {a:.3f} and {b:.3f}\n  ours   {generated!r}\n  theirs {theirs!r}")
    return kind


main()
