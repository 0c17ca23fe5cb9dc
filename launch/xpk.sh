#!/usr/bin/env bash
# One workload on a GKE cluster that xpk made. xpk restarts on signals by itself; 75 and 124 are added here. On a TPU
# slice jax finds its processes. Logs: xpk workload list, Cloud Logging.
set -euo pipefail
exec xpk workload create --workload @NAME@ --cluster @CLUSTER@ --project @PROJECT@ --zone @ZONE@ \
  --tpu-type @TPU_TYPE@ --num-slices 1 --docker-image @IMAGE@ --storage @MOUNT_SOURCE@ \
  --max-restarts @RESTARTS@ --restart-on-exit-codes 75,124 --command @QUOTED_COMMAND@
