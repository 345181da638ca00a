#!/usr/bin/env bash
# Runs the test binaries given as arguments and adds up their closing lines. A binary that crashes, or that ends without its
# closing line, counts as a failure. NAME=VALUE,binary runs it with that in its environment.
set -u
TRAIN_LLAMA3=$(realpath "${TRAIN_LLAMA3:-${BUILD:-.}/train_llama3}")   # some tests change the directory
export TRAIN_LLAMA3 OMP_WAIT_POLICY=passive
passed=0 failed=0 skipped=0
for argument in "$@"; do
    t=${argument##*,} setting=
    [ "$t" = "$argument" ] || setting=${argument%%,*}
    echo "== ${t##*/} $setting"
    log=$t${setting:+.$setting}.log
    start=$SECONDS
    env $setting "$t" >"$log" 2>&1
    status=$?
    closing=$(grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$' "$log" | tail -n 1)
    grep -E '^(FAIL|skip)' "$log"
    if [ -z "$closing" ]; then
        tail -n 20 "$log"
        echo "FAIL ${t##*/} ended with status $status and no closing line"
        failed=$((failed + 1))
        continue
    fi
    read -r p _ f _ s _ <<<"${closing//,/}"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$status" -ne 0 ] && [ "$f" -eq 0 ]; then
        tail -n 20 "$log"
        echo "FAIL ${t##*/} exit status $status"
        failed=$((failed + 1))
    fi
    echo "   $closing ($((SECONDS - start)) s)"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
