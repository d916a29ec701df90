#!/usr/bin/env bash
# Sinew beside programs that do parts of its work: the same small workload by turns, and the ratio of the times.
#
#     bench/peers.sh [PATH OF sinew]
#
# Peers that are not installed are skipped, with a line that says so. Sizes come from variables:
#
#     TASKS=10000   tasks that run `true`           TRIPS=20     single tasks, one after the other
#     CALLS=10000   Python calls that do nothing    COPY_MB=1024 MB that are copied
#     TURNS=3       turns of each workload          SLOTS=cores  processes at a time, on both sides
#     PYTHON=python3  the Python that has ray and dask
#     SANDBOX=best-effort  how Sinew isolates programs: required, best-effort or off
#
# A ratio is Sinew's time over the peer's, each the median of its turns: below 1, Sinew is faster. What Sinew does besides
# (isolation, a durable ledger, checked copies into a store of its own) is in its time. Nothing is left behind: all files
# are in one temporary directory, about 4 TURNS COPY_MB large, and all processes end with this script.
set -euo pipefail

sinew=${1:-sinew}
: "${TASKS:=10000}" "${TRIPS:=20}" "${CALLS:=10000}" "${COPY_MB:=1024}" "${TURNS:=3}"
: "${SLOTS:=$(nproc)}" "${PYTHON:=python3}" "${SANDBOX:=best-effort}"

if ! command -v "$sinew" >/dev/null; then
    echo "peers.sh: there is no program $sinew: bench/peers.sh PATH" >&2
    exit 2
fi
sinew=$(realpath "$(command -v "$sinew")")

dir=$(mktemp -d)
# Peers leave files where they like: here they like this.
export TMPDIR=$dir RAY_TMPDIR=$dir/ray DASK_TEMPORARY_DIRECTORY=$dir/dask PARALLEL_HOME=$dir/parallel
daemons=()

cleanup() {
    local pid
    for pid in "${daemons[@]}"; do
        kill "$pid" 2>/dev/null || true
    done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

have() {
    command -v "$1" >/dev/null
}

have_module() {
    have "$PYTHON" && "$PYTHON" -c "import $1" 2>/dev/null
}

skip() {
    echo "skipped: $1 is not installed"
}

on() {
    "$sinew" --data-dir "$dir/node$1" "${@:2}"
}

wait_for() {
    local try
    for try in $(seq 300); do
        if "$@" >/dev/null 2>&1; then
            return 0
        fi
        sleep 0.1
    done
    echo "peers.sh: waited $((try / 10)) s in vain for: $*" >&2
    return 1
}

# Starts node NUMBER.
up() {
    "$sinew" --data-dir "$dir/node$1" up --no-mdns --listen /ip4/127.0.0.1/tcp/0 --cpus "$SLOTS" --sandbox "$SANDBOX" \
        >"$dir/node$1.log" 2>&1 </dev/null &
    daemons+=($!)
    wait_for on "$1" status
}

# Milliseconds that the command takes. What it prints goes to a log; if it fails, so does this.
clock() {
    local began ended
    began=$(date +%s%N)
    if ! "$@" >"$dir/last.log" 2>&1 </dev/null; then
        echo "peers.sh: failed: $*" >&2
        tail -n 5 "$dir/last.log" >&2
        return 1
    fi
    ended=$(date +%s%N)
    echo $(((ended - began) / 1000000))
}

median() {
    sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'
}

# versus WORKLOAD PEER OURS THEIRS: two functions by turns, and the ratio of their medians.
versus() {
    local workload=$1 peer=$2 ours=$3 theirs=$4 turn ours_ms theirs_ms
    : >"$dir/ours"
    : >"$dir/theirs"
    for turn in $(seq "$TURNS"); do
        next_copy $((turn - 1))
        # Each goes first as often.
        if ((turn % 2)); then
            clock "$ours" >>"$dir/ours"
            clock "$theirs" >>"$dir/theirs"
        else
            clock "$theirs" >>"$dir/theirs"
            clock "$ours" >>"$dir/ours"
        fi
    done
    ours_ms=$(median <"$dir/ours")
    theirs_ms=$(median <"$dir/theirs")
    awk -v w="$workload" -v p="$peer" -v o="$ours_ms" -v t="$theirs_ms" \
        'BEGIN { printf "%-34s %-9s %9d ms %9d ms   %.2f\n", w, p, o, t, o / (t > 0 ? t : 1) }'
}

# Many processes that do nothing.

sinew_job() {
    local job
    job=$(on 0 submit "$1" | head -n 1)
    on 0 wait "$job"
}

sinew_tasks() {
    sinew_job "$dir/tasks.toml"
}

parallel_tasks() {
    seq "$TASKS" | parallel --will-cite -j "$SLOTS" -n 0 true
}

xargs_tasks() {
    seq "$TASKS" | xargs -n 1 -P "$SLOTS" true
}

hq_here() {
    hq --server-dir "$dir/hq" "$@"
}

hq_tasks() {
    hq_here submit --wait --array "1-$TASKS" --stdout none --stderr none true
}

# One task at a time, there and back.

sinew_trips() {
    local trip
    for trip in $(seq "$TRIPS"); do
        on 0 run -- true || return 1
    done
}

parallel_trips() {
    local trip
    for trip in $(seq "$TRIPS"); do
        parallel --will-cite -n 0 true ::: "$trip"
    done
}

hq_trips() {
    local trip
    for trip in $(seq "$TRIPS"); do
        hq_here submit --wait --stdout none --stderr none true
    done
}

# Python calls.

sinew_calls() {
    sinew_job "$dir/calls.toml"
}

ray_calls() {
    "$PYTHON" "$dir/ray_calls.py" "$CALLS" "$SLOTS"
}

dask_calls() {
    "$PYTHON" "$dir/dask_calls.py" "$CALLS" "$SLOTS"
}

# A large file.

hashes=()
copied=0

sinew_copy() {
    on 1 blob get "${hashes[copied]}" --out "$dir/copied.sinew" --yes
}

rsync_copy() {
    rsync --whole-file "$dir/blob" "$dir/copied.rsync"
}

# A copy that the store has costs nothing: each turn has bytes of its own.
next_copy() {
    rm -f "$dir/copied.sinew" "$dir/copied.rsync"
    copied=$1
}

prepare() {
    mkdir "$dir/ray" "$dir/dask" "$dir/parallel"
    cat >"$dir/tasks.toml" <<TOML
name = "tasks"
type = "batch"
[batch]
tasks = $TASKS
command = ["true"]
TOML
    cat >"$dir/calls.toml" <<TOML
name = "calls"
type = "batch"
[batch]
tasks = $CALLS
inputs = [{ inline = "def nothing():\\n    return None\\n", to = "calls.py" }]
[batch.python]
call = "calls:nothing"
TOML
    cat >"$dir/ray_calls.py" <<'PY'
import sys
import ray
ray.init(num_cpus=int(sys.argv[2]), include_dashboard=False, log_to_driver=False)
nothing = ray.remote(lambda: None)
ray.get([nothing.remote() for _ in range(int(sys.argv[1]))])
PY
    cat >"$dir/dask_calls.py" <<'PY'
import sys
from dask.distributed import Client, LocalCluster
if __name__ == "__main__":
    with LocalCluster(n_workers=int(sys.argv[2]), threads_per_worker=1, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            client.gather(client.map(lambda i: None, range(int(sys.argv[1])), pure=False))
PY
}

start_hq() {
    hq_here server start >"$dir/hq.log" 2>&1 </dev/null &
    daemons+=($!)
    wait_for hq_here server info
    hq_here worker start --cpus "$SLOTS" >"$dir/hq-worker.log" 2>&1 </dev/null &
    daemons+=($!)
}

make_blobs() {
    local turn
    for turn in $(seq "$TURNS"); do
        head -c "$((COPY_MB * 1000000))" /dev/urandom >"$dir/blob"
        hashes+=("$(on 0 blob add "$dir/blob" | awk 'NR == 1 { print $1 }')")
    done
}

processes() {
    local trips="$TRIPS tasks one by one" tasks="$TASKS x true"
    if have hq; then
        start_hq
        versus "$tasks" hq sinew_tasks hq_tasks
        versus "$trips" hq sinew_trips hq_trips
    else
        skip hq
    fi
    if have parallel; then
        versus "$tasks" parallel sinew_tasks parallel_tasks
        versus "$trips" parallel sinew_trips parallel_trips
    else
        skip parallel
    fi
    if have xargs; then
        versus "$tasks" xargs sinew_tasks xargs_tasks
    else
        skip xargs
    fi
}

calls() {
    if have_module ray; then
        versus "$CALLS Python calls" ray sinew_calls ray_calls
    else
        skip ray
    fi
    if have_module dask.distributed; then
        versus "$CALLS Python calls" dask sinew_calls dask_calls
    else
        skip dask
    fi
}

copies() {
    if ! have rsync; then
        skip rsync
        return
    fi
    on 1 join "$(on 0 invite --role run,submit | head -n 1)" >/dev/null
    up 1
    make_blobs
    versus "$COPY_MB MB copied" rsync sinew_copy rsync_copy
}

prepare
on 0 init >/dev/null
up 0
printf '%-34s %-9s %12s %12s   %s\n' workload peer sinew peer "sinew/peer"
processes
calls
copies
