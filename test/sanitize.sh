#!/usr/bin/env bash
# The GPU kernels under compute-sanitizer: bad accesses (memcheck) and races in shared memory (racecheck), on the small cases of the tests
# that take any backend. Cases that fork on purpose are left out.
set -u
build=${BUILD:-build/release}
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
[ -n "$sanitizer" ] || { echo "sanitize: compute-sanitizer was not found; it comes with the CUDA toolkit"; exit 1; }
failed=0
run() {
    tool=$1 binary=$2
    shift 2
    log=$build/test/$binary.$tool.log
    start=$SECONDS
    if "$sanitizer" --tool "$tool" --error-exitcode 9 "$build/test/$binary" "$@" >"$log" 2>&1; then result=clean; else result=FAILED failed=1; fi
    echo "$tool $binary $*: $result, $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$log" | tail -n 1 | sed 's/=* //') ($((SECONDS - start)) s)"
    [ "$result" = clean ] || grep -E '=========|^FAIL' "$log" | head -n 20
}
for tool in memcheck racecheck; do
    run $tool test_ops embed rmsnorm rope attention swiglu prep backward_maxima cross_entropy sums wire adamw
    run $tool test_quantize rotate.cols rotate.rows absmax quantize.shapes
    run $tool test_gemm gemm.beta gemm.aligned
done
exit $failed
