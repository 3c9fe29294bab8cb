#!/usr/bin/env bash
# Runs the test suite, with pytest's exit code; arguments go to pytest. As root on Debian it starts the real Slurm of
# scripts/cluster.sh for the tests marked `cluster`, and takes it down again unless it was there before.
#
#   HPCDL_TEST_CLUSTER=0   leave that Slurm and its tests out
set -euo pipefail
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."

pytest() { .venv/bin/python -m pytest "$@"; }

reason=""
if [[ ${HPCDL_TEST_CLUSTER:-} == 0 ]]; then
  reason="HPCDL_TEST_CLUSTER=0"
elif [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
  reason="starting it needs root on Debian"
fi

code=0
if [[ -n $reason ]]; then
  pytest -m "not cluster" "$@" || code=$?
  echo "Not run: the tests marked 'cluster', which need a real Slurm ($reason)."
else
  before=$(bash scripts/cluster.sh status 2>/dev/null) || true
  # Also for a cluster that came up only in part, and when the user interrupts.
  [[ $before == *" running,"* ]] || trap 'bash scripts/cluster.sh down || true' EXIT
  bash scripts/cluster.sh up || {
    echo "The test cluster did not start (see above). The other tests: HPCDL_TEST_CLUSTER=0 make test" >&2
    exit 1
  }
  export HPCDL_TEST_CLUSTER=1
  pytest "$@" || code=$?
fi
exit "$code"
