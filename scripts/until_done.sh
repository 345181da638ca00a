# Sourced by the launchers: until_done COMMAND... runs it and gives its exit code. Ctrl-C, a closed terminal (HUP) and TERM reach the ranks
# as USR1, which lets them finish the step, save and end with code 4; mpirun by itself would kill them a second later. The command has a
# session of its own, because a terminal sends Ctrl-C to everything in the foreground.
until_done() {
    local job code
    setsid "$@" </dev/null &
    job=$!
    trap 'kill -USR1 "$job" 2>/dev/null' INT HUP TERM
    while :; do   # a trap ends wait early
        code=0
        wait "$job" || code=$?
        kill -0 "$job" 2>/dev/null || break
    done
    wait "$job" 2>/dev/null || code=$?   # the code of the job, where the trap's came first
    trap - INT HUP TERM
    return "$code"
}
