#!/usr/bin/env bash
# The GPU kernels under compute-sanitizer: bad accesses (memcheck) and races in shared memory (racecheck), on the small cases of the tests
# that take any backend. Cases that fork on purpose are left out; nothing may be skipped, the GPU least of all.
set -u
build=${BUILD:-build/release}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -n "$sanitizer" ] || { echo "sanitize: compute-sanitizer was not found; it comes with the CUDA toolkit"; exit 1; }
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
run() {   # tool, "" or NAME=VALUE for the environment, binary, cases; beside the others
    tool=$1 setting=$2 binary=$3
    shift 3
    name=$binary${setting:+.$setting}.$tool
    log=$build/test/$name.log
    start=$SECONDS
    result=FAILED
    env $setting "$sanitizer" --tool "$tool" --error-exitcode 9 "$build/test/$binary" "$@" >"$log" 2>&1 &&
        grep -qE '^[1-9][0-9]* passed, 0 failed, 0 skipped$' "$log" && result=clean
    {
        echo "$tool $setting $binary $*: $result, $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/=* //') ($((SECONDS - start)) s)"
        [ "$result" = clean ] || grep -E '=========|^(FAIL|skip)' "$log" | head -n 20
    } >"$results/$name"
}
# Hopper's attention is left out of racecheck, which takes a bulk copy to shared memory for a write of the thread that starts it, and does
# not see that its readers wait for it at an mbarrier: each of its reports was of that pair. The older kernels stand in.
layers="embed rmsnorm rope swiglu prep backward_maxima cross_entropy argmax sums wire adamw"
run memcheck "" test_ops $layers attention &
run racecheck "" test_ops $layers attention.cached &
run racecheck HALO_CAPABILITY=80 test_ops attention &
for tool in memcheck racecheck; do
    run $tool "" test_quantize rotate.cols rotate.rows rotate.many_tokens absmax quantize.shapes quantize.rotated &
    run $tool "" test_gemm gemm.beta gemm.aligned &
    run $tool "" test_adapter dropout &
done
wait
cat "$results"/*
! grep -q FAILED "$results"/*
