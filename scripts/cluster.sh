#!/usr/bin/env bash
# A real Slurm with four nodes on one Debian 12 machine, for tests: run as root.
#
#   scripts/cluster.sh up                start it, or repair what is missing; it serves the checkout this script is in
#   scripts/cluster.sh status            one line a daemon, then the nodes; exit 0 only when all is well
#   scripts/cluster.sh kill-node n3      as if the power went: every process of the node dies, its /tmp is lost
#   scripts/cluster.sh start-node n3     bring it back
#   scripts/cluster.sh down              remove processes, network, mounts, users, state folder; packages stay
#
# HPCDL_CLUSTER_DIR   state folder (default /srv/hpcdl-cluster): configuration, logs, database, homes, scratch
# HPCDL_CLUSTER_NET   first three bytes of the nodes' network (default 10.77.0)
#
# A user of the cluster sources STATE/env.sh, or logs in with `su - hpcuser1`.
set -euo pipefail

STATE=${HPCDL_CLUSTER_DIR:-/srv/hpcdl-cluster}
STATE=${STATE%/}
NET=${HPCDL_CLUSTER_NET:-10.77.0}
CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
NODES=(n1 n2 n3 n4)
USERS=(hpcuser1 hpcuser2)
# Which state folder the running cluster uses: network and names exist once a machine.
OWNER_FILE=/run/hpcdl-cluster.owner

say() { printf 'cluster: %s\n' "$*" >&2; }
die() {
  say "$1"
  exit "${2:-1}"
}

# shellcheck source=scripts/cluster/machine.sh
source "$CHECKOUT/scripts/cluster/machine.sh"
# shellcheck source=scripts/cluster/daemons.sh
source "$CHECKOUT/scripts/cluster/daemons.sh"
# shellcheck source=scripts/cluster/accounting.sh
source "$CHECKOUT/scripts/cluster/accounting.sh"

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}" >&2
  exit 2
}

up() {
  local started=$SECONDS before=$NUM_STARTED
  restore_service_policy
  install_packages
  make_state_folder
  make_users
  write_configuration
  bind_checkout
  make_network
  start_munged
  start_mysqld
  start_slurmdbd
  make_accounting
  start_slurmctld
  local node
  for node in "${NODES[@]}"; do start_node "$node"; done
  wait_until_nodes_serve
  make_reservation
  check_user_can_run_checkout
  if ((NUM_STARTED == before)); then
    say "already up: nothing to do ($((SECONDS - started)) s). State: $STATE, checkout: $CHECKOUT"
  else
    say "up in $((SECONDS - started)) s. State: $STATE, checkout: $CHECKOUT. Next: su - ${USERS[0]}"
  fi
}

down() {
  if [[ ! -e $STATE/.hpcdl-cluster ]]; then
    [[ ! -e $STATE ]] || die "$STATE is not a state folder of this script (no .hpcdl-cluster in it): left alone"
  fi
  restore_service_policy
  local node
  for node in "${NODES[@]}"; do kill_node "$node"; done
  local daemon
  # slurmctld before slurmdbd before the database: each hands its last records to the next.
  for daemon in slurmctld slurmdbd mysqld munged; do stop_daemon "$daemon"; done
  remove_network
  remove_users
  remove_state_folder
  rm -f "$OWNER_FILE"
  say "down: nothing left but the packages"
}

status() {
  [[ -e $STATE/.hpcdl-cluster ]] || die "not up: there is no $STATE"
  local daemon well=0
  for daemon in munged mysqld slurmdbd slurmctld "${NODES[@]/#/slurmd-}"; do
    if is_running "$daemon"; then
      printf '%-10s  running, pid %s\n' "$daemon" "$(<"$STATE/run/$daemon.pid")"
    else
      printf '%-10s  NOT running; log: %s\n' "$daemon" "$STATE/log/$daemon.log"
      well=1
    fi
  done
  if is_running slurmctld; then
    timeout 20 sinfo || well=1
    [[ -z $(nodes_not_serving) ]] || well=1
  fi
  return "$well"
}

known_node() {
  [[ " ${NODES[*]} " == *" ${1:-} "* ]] || die "no node '${1:-}': the nodes are ${NODES[*]}" 2
}

[[ $# -ge 1 ]] || usage
case $1 in
  up | down | status) [[ $# -eq 1 ]] || usage ;;
  kill-node | start-node) [[ $# -eq 2 ]] && known_node "$2" ;;
  *) usage ;;
esac
[[ $EUID -eq 0 ]] || die "needs root (network namespaces, daemons, packages): try 'sudo $0 $*'" 2
command -v apt-get >/dev/null || die "needs Debian's apt-get: this script knows Debian 12 only" 2
check_settings
export SLURM_CONF=$STATE/etc/slurm.conf

# One change at a time: a second `up` waits for the first. launch() closes the lock in the daemons; apt-get and
# mariadb-install-db keep it, so that after a killed `up` the next one waits until they are through.
if [[ $1 != status ]]; then
  exec 9>/run/hpcdl-cluster.lock
  flock -w 600 9 || die "another scripts/cluster.sh has been at work for 10 minutes"
  check_owner
fi

case $1 in
  up) up ;;
  down) down ;;
  status) status ;;
  kill-node)
    kill_node "$2"
    say "$2 is dead; Slurm notices within 20 s"
    ;;
  start-node)
    is_running slurmctld || die "the cluster is not up: scripts/cluster.sh up"
    start_node "$2"
    wait_until_nodes_serve "$2"
    say "$2 serves again"
    ;;
esac
