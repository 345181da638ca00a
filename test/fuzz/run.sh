#!/usr/bin/env bash
# test/fuzz/run.sh SECONDS [TARGET...]: each target (all of fuzz.c's table if none is named) for so long, on seeds that are made here.
# JOBS targets run at a time (default: one a core), each as WORKERS processes (default: 1) that share a corpus. A finding is named, its input
# kept in build/fuzz/findings, and the exit code is 1.
# It needs build/fuzz/fuzz and the repository's files: `make build/fuzz/fuzz STATIC=1` makes a binary to take to a machine without clang.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=$1
shift
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(sed -n 's/^    {"\(fuzz_[a-z_]*\)".*/\1/p' test/fuzz/fuzz.c)
fuzz=build/fuzz findings=build/fuzz/findings
mkdir -p "$findings"
model=data/demo/model

# seeds TARGET FOLDER
seeds() {
    case $1 in
        fuzz_safetensors)
            header='{"a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}, "__metadata__": {"b": "c"}}'
            { printf "\\x$(printf %02x ${#header})\\0\\0\\0\\0\\0\\0\\0"; printf '%s12345678' "$header"; } >"$2/seed" ;;
        fuzz_index) echo '{"metadata": {"total_size": 32}, "weight_map": {"model.norm.weight": "a.safetensors"}}' >"$2/seed" ;;
        fuzz_config)
            cp $model/config.json "$2/seed"
            echo '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                  "intermediate_size": 96, "vocab_size": 300, "max_position_embeddings": 64, "rms_norm_eps": 1e-05, "hidden_act": "silu",
                  "torch_dtype": "bfloat16", "eos_token_id": [1, 2], "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
                  "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}}' >"$2/rope" ;;
        fuzz_tokenizer)
            echo '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, "\u0120": 3}, "merges": ["a b"], "ignore_merges": true},
                  "added_tokens": [{"id": 4, "content": "<|end|>", "special": true}], "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                  {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+"}, "behavior": "Isolated", "invert": false},
                  {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}]}, "decoder": {"type": "ByteLevel"}}' >"$2/seed" ;;
        fuzz_jsonl)
            head -n 3 data/demo/test.jsonl >"$2/demo"
            echo '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}' >"$2/chat"
            echo '{"text": "a\u00e9\ud83d\ude00"}' >"$2/text"
            echo '{"instruction": "a", "input": "", "output": "b"}' >"$2/alpaca" ;;
        fuzz_jinja) echo "{% for m in list %}{{ loop.index ~ m | trim }}{% if not loop.last %}, {% endif %}{% endfor %}{{ word[1:] | tojson }}" >"$2/seed" ;;
        fuzz_toml) printf '# a\nlr = 1e-5\nmodel = "a\\u00e9"\nqfsdp = true\ntarget = ["q", '"'v'"',\n]\nsteps = 1_000 # b\n' >"$2/seed" ;;
        fuzz_csv) printf 'mr,ref\r\n"name[The ""Eagle""], food[x]",A place\n' >"$2/seed" ;;
        fuzz_gguf) printf 'GGUF\3\0\0\0\0\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0\24\0\0\0\0\0\0\0general.architecture\10\0\0\0\5\0\0\0\0\0\0\0llama' >"$2/seed" ;;
        fuzz_checkpoint) echo ' "format": "train_llama3 checkpoint", "rank": 0, "ranks": 1, "numbers": {"step": 3}, "settings": {"seed": "0"},
            "blobs": [{"name": "weights", "bytes": 64, "xxh3": "0"}]}' >"$2/seed" ;;
    esac
}

export ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
kRound=6 kRuns=30000   # a round: seconds, or inputs if those are done earlier: each refusal keeps some 80 KB

# worker TARGET NUMBER: one process after the other until the time is over. A refusal leaves its memory behind: each runs for some seconds,
# and the next goes on with the corpus.
worker() {
    local left end=$((SECONDS + seconds))
    while left=$((end - SECONDS)) && [ $left -gt 0 ]; do
        "$fuzz/$1" -runs=$kRuns -max_total_time=$((left < kRound ? left : kRound)) -timeout=20 -rss_limit_mb=4096 -malloc_limit_mb=1024 -max_len=8192 \
            -artifact_prefix="$findings/$1-" "$fuzz/corpus/$1" >>"$fuzz/$1.$2.log" 2>&1 || return 1
    done
}

# fuzz_target TARGET: prints its line; 1 if there is a finding.
fuzz_target() {
    local target=$1 clean=1 pids=() pid i
    mkdir -p "$fuzz/corpus/$target"
    ln -sf fuzz "$fuzz/$target"
    rm -f "$fuzz/$target".*.log
    seeds "$target" "$fuzz/corpus/$target"
    for ((i = 0; i < ${WORKERS:-1}; i++)); do
        worker "$target" $i &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || clean=0; done
    if [ $clean = 1 ]; then
        echo "ok $target: $(cat "$fuzz/$target".*.log | sed -n 's/^Done \([0-9]*\) runs in .*/\1/p' | awk '{ n += $1 } END { print n + 0 }') runs," \
             "$(grep -ohE 'cov: [0-9]+' "$fuzz/$target".*.log | sort -t: -k2 -n | tail -n 1)"
    else
        echo "FAIL $target: $(grep -hE 'ERROR|SUMMARY|train_llama3:' "$fuzz/$target".*.log | head -n 3 | tr '\n' ' ') (see $fuzz/$target.*.log)"
    fi
    [ $clean = 1 ]
}

failed=0 running=0
for target in "${targets[@]}"; do
    if [ $running -ge "${JOBS:-$(nproc)}" ]; then
        wait -n || failed=1
        running=$((running - 1))
    fi
    fuzz_target "$target" &
    running=$((running + 1))
done
for ((; running > 0; running--)); do wait -n || failed=1; done
exit $failed
