#!/usr/bin/env bash
# A Ray cluster for one command, given on every node of a job: ray_nodes.sh HEAD_IP PORT RANK NUM_NODES -- COMMAND ...
#
# Rank 0 starts the head, waits for the others, runs the command, and takes the head away; its exit code is the command's.
# The others join, and leave when the head is gone. Not `ray symmetric-run`: that ends with `ray stop`, which takes every
# Ray of this user on the node along (another job's, SkyPilot's own). SIGTERM goes to the command, which stops cleanly.
set -uo pipefail

if [ "$#" -lt 6 ] || [ "$5" != "--" ]; then
    echo "usage: ray_nodes.sh HEAD_IP PORT RANK NUM_NODES -- COMMAND ..." >&2
    exit 2
fi
head_ip=$1 port=$2 rank=$3 num_nodes=$4
shift 5
# Metrics are served by every node, with or without the dashboard: scrape HOST:OV2_METRICS_PORT.
options=("--metrics-export-port=${OV2_METRICS_PORT:-8080}")
[ -n "${OV2_NODE_CPUS:-}" ] && options+=("--num-cpus=$OV2_NODE_CPUS")

if [ "$rank" != 0 ]; then
    for _ in $(seq 60); do
        ray health-check --address "$head_ip:$port" >/dev/null 2>&1 && break
        sleep 5
    done
    # Ends with the head, or with an error where there never was one; the command's own code is rank 0's.
    ray start --address "$head_ip:$port" --block "${options[@]}" || true
    exit 0
fi

ray start --head --node-ip-address "$head_ip" --port "$port" --include-dashboard "${OV2_DASHBOARD:-false}" \
    --block "${options[@]}" &
node=$!
command=
trap '[ -n "$command" ] && kill -TERM "$command" 2>/dev/null' TERM
trap 'kill -TERM "$node" 2>/dev/null; wait "$node" 2>/dev/null' EXIT

python - "$head_ip:$port" "$num_nodes" "$node" <<'PYTHON' || exit 4
import logging, sys, time
from contextlib import suppress

import ray

address, wanted, head, end = sys.argv[1], int(sys.argv[2]), sys.argv[3], time.monotonic() + 600
while time.monotonic() < end:
    alive = False
    with suppress(FileNotFoundError), open(f"/proc/{head}/stat") as stat:
        alive = stat.read().rpartition(") ")[2][0] != "Z"
    if not alive:
        sys.exit("ray_nodes.sh: the head died; ray start says why above")
    try:
        if not ray.is_initialized():
            ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
        if sum(node["Alive"] for node in ray.nodes()) >= wanted:
            sys.exit(0)
    except ConnectionError:
        pass
    time.sleep(2)
sys.exit(f"ray_nodes.sh: {wanted} nodes did not join {address} within 600 s")
PYTHON

"$@" &
command=$!
code=143
while kill -0 "$command" 2>/dev/null; do # a signal interrupts `wait`, not the command
    wait "$command"
    code=$?
done
exit "$code"
