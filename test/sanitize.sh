#!/usr/bin/env bash
# The GPU kernels under compute-sanitizer: bad accesses (memcheck) and races in shared memory (racecheck), on the small cases of the tests
# that take any backend. Cases that fork on purpose are left out; nothing may be skipped, the GPU least of all.
set -u
build=${BUILD:-build/release}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -n "$sanitizer" ] || { echo "sanitize: compute-sanitizer was not found; it comes with the CUDA toolkit"; exit 1; }
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
run() {   # tool, binary, cases; beside the others
    tool=$1 binary=$2
    shift 2
    log=$build/test/$binary.$tool.log
    start=$SECONDS
    result=FAILED
    "$sanitizer" --tool "$tool" --error-exitcode 9 "$build/test/$binary" "$@" >"$log" 2>&1 &&
        grep -qE '^[1-9][0-9]* passed, 0 failed, 0 skipped$' "$log" && result=clean
    {
        echo "$tool $binary $*: $result, $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/=* //') ($((SECONDS - start)) s)"
        [ "$result" = clean ] || grep -E '=========|^FAIL' "$log" | head -n 20
    } >"$results/$tool.$binary"
}
for tool in memcheck racecheck; do
    run $tool test_ops embed rmsnorm rope attention swiglu prep backward_maxima cross_entropy sums wire adamw &
    run $tool test_quantize rotate.cols rotate.rows rotate.many_tokens absmax quantize.shapes quantize.rotated &
    run $tool test_gemm gemm.beta gemm.aligned &
done
wait
cat "$results"/*
! grep -q FAILED "$results"/*
