#!/usr/bin/env bash
# Holds llama.cpp's own programs against ours on the GGUF files that `export --gguf` writes. Both answer the same questions greedily, llama.cpp
# under the chat template in the file, as a user would talk to it; and its quantizer makes of our bf16 file what ours makes of the model.
#
#   dev/llamacpp_check.sh LLAMA_BIN [MODEL [QUESTION ...]]
#
# LLAMA_BIN: the folder of llama-completion, llama-quantize and llama-gguf-hash (Debian sid: /usr/bin, of llama.cpp-tools and llama.cpp-examples).
# MODEL: a folder or GGUF file, by default what `make demo` leaves. QUESTIONs: by default every tenth of the demo's test. MAX_TOKENS=64;
# TRAIN_LLAMA3 names another binary of ours. RUN is put before llama.cpp's command lines ("chroot DIR"), with GGUF_DIR a folder for the files and
# GGUF_SEEN its name there.
#
# bf16 and f16 have to give our answers, all of them. Of q8_0 the tensors have to be llama-quantize's, byte for byte, while answers that differ are
# only shown: llama.cpp then quantizes the inputs of products too, and we do not. Exits with 1 where something differs that may not, with 2 if
# anything cannot be run.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" | grep -v '^set ' >&2; exit 2; }
llama=$1 model=build/demo/halo2-int8
[ $# -eq 1 ] || model=$(realpath "$2")
shift $(($# > 1 ? 2 : 1))
cd "$(dirname "$0")/.."
program=${TRAIN_LLAMA3:-./train_llama3} longest=${MAX_TOKENS:-64}
read -ra run <<<"${RUN:-}"
files=${GGUF_DIR:-$(mktemp -d)}
seen=${GGUF_SEEN:-$files}
[ -n "${GGUF_DIR:-}" ] || trap 'rm -rf "$files"' EXIT
fail() { echo "llamacpp_check.sh: $*" >&2; exit 2; }

questions=("$@")
if [ $# -eq 0 ]; then
    while IFS= read -r line; do questions+=("$(printf '%b' "$line")"); done < <(
        awk 'NR % 10 == 1' data/demo/test.jsonl | sed -E 's/.*"role": "user", "content": "(([^"\\]|\\.)*)".*/\1/')
fi
[ ${#questions[@]} -gt 0 ] || fail "no questions in data/demo/test.jsonl"

version=$("${run[@]}" "$llama/llama-completion" --version 2>&1) || fail "$llama/llama-completion: $version"
echo "llama.cpp: $(head -n 1 <<<"$version")"
[ -e "$model" ] || fail "$model: not there (make demo, or name a model)"

# What llama.cpp answers: without the prompt, its mark of an end, and the empty lines behind. llama-completion 0.7.0 now and then ends before it has
# printed its last words (on a busy machine in one run of ten), so that an answer without the mark is asked for again, and the longest counts.
theirs() {   # file, question
    local text whole=
    for _ in 1 2 3 4 5; do
        text=$("${run[@]}" "$llama/llama-completion" -m "$1" --jinja -cnv -st --no-display-prompt --no-perf --temp 0 -n "$longest" -p "$2" \
            </dev/null 2>"$files/llama.log") || { tail -n 20 "$files/llama.log" >&2; fail "llama-completion failed on $1"; }
        [ ${#text} -le ${#whole} ] || whole=$text
        [[ $text != *" [end of text]" ]] || break
    done
    printf '%s\n' "${whole% \[end of text\]}"
}
ours() {   # in FP32: rounded to BF16, a near tie between two tokens may turn
    "$program" generate --backend cpu-f32 --model "$1" --prompt "$2" --max-tokens "$longest" 2>"$files/ours.log" ||
        { cat "$files/ours.log" >&2; fail "generate failed on $1"; }
}

bad=0
for type in bf16 f16 q8_0; do
    file=$files/check_$type.gguf equal=0
    "$program" export --model "$model" --gguf "$file" --gguf-type $type --overwrite >/dev/null
    for question in "${questions[@]}"; do
        a=$(ours "$file" "$question")
        b=$(theirs "$seen/check_$type.gguf" "$question")
        if [ "$a" = "$b" ]; then
            equal=$((equal + 1))
        else
            printf '%s differs: %s\n  ours:   %s\n  theirs: %s\n' $type "$question" "$a" "$b"
        fi
    done
    echo "$type: $equal of ${#questions[@]} answers equal"
    [ $type = q8_0 ] || [ $equal -eq ${#questions[@]} ] || bad=1
done

# The hashes of a file's tensors, in the order of their names.
tensors() {
    "${run[@]}" "$llama/llama-gguf-hash" --xxh64 "$seen/$1" 2>"$files/llama.log" | awk 'sub(/:/, " ") { print $4, $2 }' | sort | grep . ||
        fail "llama-gguf-hash failed on $1"
}
"${run[@]}" "$llama/llama-quantize" "$seen/check_bf16.gguf" "$seen/check_theirs.gguf" Q8_0 >"$files/llama.log" 2>&1 ||
    { tail -n 20 "$files/llama.log" >&2; fail "llama-quantize failed"; }
ours=$(tensors check_q8_0.gguf)
theirs=$(tensors check_theirs.gguf)
other=$(diff <(echo "$ours") <(echo "$theirs") | grep -c '^[<>]') || true
echo "q8_0: $(wc -l <<<"$ours") tensors, $other that differ from llama-quantize's"
[ "$other" -eq 0 ] || bad=1
exit $bad
