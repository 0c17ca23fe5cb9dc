#!/usr/bin/env bash
# Run here: asks for a slice as a queued resource, runs the command on all its hosts, again on 1 (failed), 75
# (saved after SIGTERM), 124 (watchdog) and signals, and on a new slice when this one was preempted. On a TPU slice jax
# finds its processes.
# Then the slice is given back, which ends its bill; with KEEP=1 in the environment, or where this script was ended
# before, it stays, and the command that gives it back is printed. Logs: one file per attempt in the folder of --logs.
set -uo pipefail
name=@NAME@ restarts=@RESTARTS@ logs=@LOGS@
where=(--zone @ZONE@ --project @PROJECT@)
remote=@QUOTED_COMMAND@
image=@IMAGE@ mount=@MOUNT_DOCKER@
delete=(gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet)
trap 'echo "$name is kept and billed; give it back with: ${delete[*]}" >&2' EXIT
mkdir -p "$logs"

finish() {
  [ "${KEEP:-}" != 1 ] && "${delete[@]}" && trap - EXIT
  exit "$1"
}

state() { gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>/dev/null; }

slice() {
  while :; do
    case "$(state)" in
    ACTIVE) return ;;
    "") gcloud compute tpus queued-resources create "$name" "${where[@]}" --node-id "$name" --accelerator-type @TPU_TYPE@ \
      --runtime-version @RUNTIME@ --spot || exit 1 ;;
    SUSPENDED | FAILED) "${delete[@]}" ;;
    esac
    sleep 30
  done
}

for ((attempt = 0; attempt <= restarts; attempt++)); do
  slice
  log="$logs/$name-$attempt.log"
  printf -v inside 'sudo docker run --rm --privileged --net=host --mount %q %q bash -c %q; echo imagen-video-exit $?' \
    "$mount" "$image" "$remote"
  gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command="$inside" 2>&1 | tee "$log"
  codes=$(sed -n 's/.*imagen-video-exit \([0-9][0-9]*\).*/\1/p' "$log" | sort -un)
  [ "$codes" = 0 ] && finish 0
  # A final code counts whatever the other hosts ended with; a host that was lost has none.
  for code in $codes; do
    case $code in 0 | 1 | 75 | 124) ;; *) [ "$code" -gt 128 ] || finish "$code" ;; esac
  done
done
echo "error: $name was run $((restarts + 1)) times without an end" >&2
finish 75
