#!/usr/bin/env bash
# One workload on a GKE cluster that xpk made. xpk restarts on 42 and 127 to 255 by itself; 1 (failed), 75 (saved
# after SIGTERM) and 124 (watchdog) are added here. On a TPU slice jax finds its processes. Logs: xpk
# workload list, Cloud Logging.
set -euo pipefail
exec xpk workload create --workload @NAME@ --cluster @CLUSTER@ --project @PROJECT@ --zone @ZONE@ \
  --tpu-type @TPU_TYPE@ --num-slices 1 --docker-image @IMAGE@ --storage @MOUNT_SOURCE@ \
  --max-restarts @RESTARTS@ --restart-on-exit-codes 1,75,124 --command @QUOTED_COMMAND@
