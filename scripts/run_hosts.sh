#!/usr/bin/env bash
# Trains on several hosts that see this folder, the model and the data under the same paths, and that ssh reaches without a password:
#
#   scripts/run_hosts.sh hosts.txt --model ... --data ... --qfsdp --out /shared/tuned
#
# hosts.txt has a line a host, slots being its GPUs:
#   node1 slots=8
#   node2 slots=8
# Ctrl-C, TERM and a closed terminal let the ranks save and stop (exit code 4); the same line with --resume goes on.
# IFACE names the network interface that hosts reach each other by (default: NCCL and MPI choose); it matters where there are several.
set -euo pipefail
cd "$(dirname "$0")/.."
hostfile=$1
shift
pass=(-x OMP_WAIT_POLICY=passive -x PATH)
[ -z "${LD_LIBRARY_PATH:-}" ] || pass+=(-x LD_LIBRARY_PATH)
[ -z "${IFACE:-}" ] || pass+=(-x NCCL_SOCKET_IFNAME="$IFACE" --mca btl_tcp_if_include "$IFACE" --mca oob_tcp_if_include "$IFACE")
for name in $(compgen -e NCCL_); do pass+=(-x "$name"); done
root=()
[ "$(id -u)" -ne 0 ] || root=(--allow-run-as-root)
slots=$(awk -F 'slots=' 'NF > 1 { n = $2 + 0; if (n > most) most = n } END { print most ? most : 1 }' "$hostfile")
threads=$(($(nproc) / slots))
. scripts/until_done.sh
until_done mpirun "${root[@]}" --hostfile "$hostfile" --bind-to none -x OMP_NUM_THREADS=$((threads > 0 ? threads : 1)) "${pass[@]}" \
    ./train_llama3 "$@"
