# shellcheck shell=bash
# shellcheck disable=SC2153 # STATE and NODES are cluster.sh's
# Start, stop and watch the daemons. Sourced by cluster.sh.

NUM_STARTED=0 # what this call had to start or change; 0 means that all was well

# Run a daemon in its own session, with nothing of the caller's but the file system: neither its terminal nor its
# environment nor its open files, so that it outlives a killed test run and no pipe waits for it.
launch() {
  local name=$1 fd
  shift
  say "starting $name"
  (
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      if ((fd > 2 && fd < 255)); then exec {fd}>&-; fi
    done
    cd /
    umask 022
    exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
      SLURM_CONF="$SLURM_CONF" MYSQL_UNIX_PORT="$STATE/mysql/mysqld.sock" HPCDL_CLUSTER_DAEMON="$STATE:$name" \
      setsid "$@"
  ) </dev/null >>"$STATE/log/$name.out" 2>&1 &
  echo $! >"$STATE/run/$name.pid"
  NUM_STARTED=$((NUM_STARTED + 1))
}

# A pid file may be older than the last reboot: the process must also carry our mark in its environment.
is_running() {
  local pid
  pid=$(cat "$STATE/run/$1.pid" 2>/dev/null) &&
    grep -qzxF "HPCDL_CLUSTER_DAEMON=$STATE:$1" "/proc/$pid/environ" 2>/dev/null
}

stop_daemon() {
  local name=$1 pid tries
  if is_running "$name"; then
    pid=$(<"$STATE/run/$name.pid")
    kill -TERM "$pid" 2>/dev/null || true
    for ((tries = 0; tries < 100; tries++)); do
      is_running "$name" || break
      sleep 0.1
    done
    ! is_running "$name" || kill -KILL "$pid" 2>/dev/null || true
  fi
  rm -f "$STATE/run/$name.pid"
}

# wait_for SECONDS NAME COMMAND…: until the command succeeds; else the end of NAME's log, and exit 1.
wait_for() {
  local started=$SECONDS limit=$1 name=$2
  shift 2
  until "$@" &>/dev/null; do
    # One that has ended will not answer: say so after 2 s (a new one needs a moment to carry its mark).
    if ((SECONDS - started >= limit)) || { ((SECONDS - started >= 2)) && ! is_running "$name"; }; then
      tail -n 15 "$STATE/log/$name.out" "$STATE/log/$name.log" >&2 2>/dev/null || true
      die "$name does not answer; its logs: $STATE/log/$name.*"
    fi
    sleep 0.1
  done
}

write_configuration() {
  render slurmdbd.conf 600 || stop_daemon slurmdbd
  local changed=0
  render slurm.conf 644 || changed=1
  render cgroup.conf 644 || changed=1
  render mpi.conf 644 || changed=1
  if ((changed)) && is_running slurmctld; then
    say "the configuration has changed: restarting Slurm, running jobs are requeued"
    local node
    for node in "${NODES[@]}"; do kill_node "$node"; done
    stop_daemon slurmctld
  fi
  cat >"$STATE/env.sh" <<END
# Source this to use the test cluster: . $STATE/env.sh
export SLURM_CONF=$SLURM_CONF
export HPCDL_CLUSTER=testcluster
case :\$PATH: in *:$STATE/bin:*) ;; *) export PATH=$STATE/bin:\$PATH ;; esac
case :\${PYTHONPATH:-}: in
  *:$STATE/checkout:*) ;;
  *) export PYTHONPATH=$STATE/checkout\${PYTHONPATH:+:\$PYTHONPATH} ;;
esac
END
  cat >"$STATE/bin/hpcdl" <<END
#!/bin/sh
# PYTHONPATH, because the editable install in .venv names the checkout's own path, which users may be unable to enter.
PYTHONPATH=$STATE/checkout\${PYTHONPATH:+:\$PYTHONPATH} exec $STATE/checkout/.venv/bin/python -m hpcdl "\$@"
END
  chmod 755 "$STATE/bin/hpcdl"
}

# Fill in a template, without its comments; status 1 when that changes the file that is there.
render() {
  local target=$STATE/etc/$1 text
  text=$(sed -e '/^#/d' -e "s|@STATE@|$STATE|g" -e "s|@NET@|$NET|g" -e "s|@CONTROLLER@|$(hostname -s)|g" \
    "$CHECKOUT/scripts/cluster/$1")
  [[ $(cat "$target" 2>/dev/null) != "$text" ]] || return 0
  (umask 077 && printf '%s\n' "$text" >"$target")
  chmod "$2" "$target"
  return 1
}

start_munged() {
  if ! is_running munged; then
    local key=$STATE/munge/munge.key
    [[ -s $key ]] || (umask 077 && head -c 1024 /dev/urandom >"$key")
    chown munge:munge "$key"
    chmod 400 "$key"
    install -o munge -g munge -m 640 /dev/null "$STATE/log/munged.log"
    # setpriv, not runuser: it becomes munged instead of waiting for it, so the pid is munged's. --force takes over the
    # socket of a dead one.
    launch munged setpriv --reuid=munge --regid=munge --init-groups munged --foreground --force --key-file="$key" \
      --socket="$STATE/munge/munge.socket" --pid-file="$STATE/munge/munged.pid" \
      --seed-file="$STATE/munge/munged.seed" --log-file="$STATE/log/munged.log"
  fi
  wait_for 10 munged munge --socket="$STATE/munge/munge.socket" --no-input
}

start_mysqld() {
  if ! is_running mysqld; then
    if [[ ! -e $STATE/mysql/data/.complete ]]; then
      say "making the accounting database"
      rm -rf "$STATE/mysql/data"
      mariadb-install-db --no-defaults --user=mysql --datadir="$STATE/mysql/data" --skip-test-db \
        --auth-root-authentication-method=socket >"$STATE/log/mysqld.out" 2>&1 || wait_for 0 mysqld false
      touch "$STATE/mysql/data/.complete"
    fi
    # No TCP at all. Accounting of a test cluster need not survive a power cut, so commits are not flushed one by one.
    launch mysqld mariadbd --no-defaults --user=mysql --datadir="$STATE/mysql/data" --skip-networking \
      --socket="$STATE/mysql/mysqld.sock" --pid-file="$STATE/mysql/mysqld.pid" \
      --innodb-flush-log-at-trx-commit=2 --innodb-lock-wait-timeout=900 \
      --innodb-log-file-size=64M --innodb-buffer-pool-size=128M
  fi
  wait_for 60 mysqld mariadb-admin --no-defaults --socket="$STATE/mysql/mysqld.sock" ping
}

start_slurmdbd() {
  is_running slurmdbd || launch slurmdbd slurmdbd -D
  wait_for 60 slurmdbd sacctmgr --noheader --parsable2 show cluster
}

start_slurmctld() {
  # -i: state files of another version or a cut-off one are no reason to stay down.
  is_running slurmctld || launch slurmctld slurmctld -D -i -f "$SLURM_CONF"
  wait_for 30 slurmctld slurmctld_answers
}

slurmctld_answers() { timeout 5 scontrol ping | grep -q UP; }

# ---- nodes

# Well: its slurmd runs and sees the checkout that is bound now.
node_is_well() {
  is_running "slurmd-$1" && [[ /proc/$(<"$STATE/run/slurmd-$1.pid")/root/$STATE/checkout -ef $STATE/checkout ]]
}

start_node() {
  local node=$1
  ! node_is_well "$node" || return 0
  kill_node "$node"
  make_node_network "$node"
  # Own network, host name, /tmp and /dev/shm. Four slurmd in one /tmp break PMIx: its folders there do not carry the
  # node's name. `ip netns exec` would hide /sys/fs/cgroup, without which slurmd dies; nsenter does not. As a slave of
  # the machine's mounts, the node sees a checkout that is bound later.
  # shellcheck disable=SC2016 # $1, $2 are the inner shell's
  launch "slurmd-$node" nsenter --net="/run/netns/hpcdl-$node" unshare --uts --mount --propagation slave bash -c '
    set -e
    hostname "$1"
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    exec slurmd -D -N "$1" -f "$2"' node "$node" "$SLURM_CONF"
}

kill_node() {
  local pid tries
  if ! command -v ip >/dev/null; then return 0; fi
  for ((tries = 0; tries < 50; tries++)); do
    local pids
    pids=$(ip netns pids "hpcdl-$1" 2>/dev/null || true)
    ! is_running "slurmd-$1" || pids+=" $(<"$STATE/run/slurmd-$1.pid")"
    [[ -n $pids ]] || break
    for pid in $pids; do kill -KILL "$pid" 2>/dev/null || true; done
    sleep 0.1
  done
  rm -f "$STATE/run/slurmd-$1.pid"
}

# Lines "node state" of the nodes that can take no job, of those given or all. A '*' behind the state: not responding.
nodes_not_serving() {
  local nodes=("$@")
  [[ $# -gt 0 ]] || nodes=("${NODES[@]}")
  local IFS=,
  timeout 20 sinfo --noheader --Node --partition=normal --nodes="${nodes[*]}" --format='%N %t' |
    grep -vE ' (idle|mix|alloc|comp|resv|plnd)[-+]?$' || true
}

wait_until_nodes_serve() {
  local deadline=$((SECONDS + 60)) node state rest
  while true; do
    rest=$(nodes_not_serving "$@")
    [[ -n $rest ]] || return 0
    ((SECONDS < deadline)) || break
    while read -r node state; do
      # Drained by Slurm (say "Kill task failed") or by a test: `up` promises nodes that work.
      [[ $state != dr* && $state != down ]] || scontrol update nodename="$node" state=resume 2>/dev/null || true
    done <<<"$rest"
    NUM_STARTED=$((NUM_STARTED + 1))
    sleep 0.2
  done
  node=${rest%% *}
  tail -n 15 "$STATE/log/slurmctld.log" "$STATE/log/slurmd-$node".{log,out} >&2 2>/dev/null || true
  die "these nodes do not serve after 60 s: ${rest//$'\n'/, }; logs: $STATE/log"
}
