# shellcheck shell=bash
# What the cluster needs of the machine: packages, state folder, users, mounts, network. Sourced by cluster.sh.

PACKAGES=(slurm-wlm slurmdbd slurm-client mariadb-server munge iproute2 libpmix2 openmpi-bin libopenmpi-dev)
SERVICE_POLICY=/usr/sbin/policy-rc.d
USER_MARK="hpcdl test cluster" # in the users' comment field: only users that carry it are removed by `down`
HOSTS_MARK="# hpcdl-cluster"   # ends each of our lines in /etc/hosts
BRIDGE=hpcdl0                  # namespaces and host ends of the veth pairs are hpcdl-n1 …

check_settings() {
  # The path goes unquoted into slurm.conf, and unix sockets below it may not exceed 107 bytes.
  [[ $STATE =~ ^/[A-Za-z0-9._/-]{1,70}$ && $STATE != *..* ]] ||
    die "HPCDL_CLUSTER_DIR must be an absolute path of plain characters, at most 70: '$STATE'" 2
  case $STATE/ in
    /tmp/* | /dev/* | /proc/* | /sys/* | /run/* | /var/run/*)
      die "HPCDL_CLUSTER_DIR may not be '$STATE': nodes have their own /tmp and /dev/shm, a reboot empties /run" 2
      ;;
  esac
  [[ $NET =~ ^[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}$ ]] ||
    die "HPCDL_CLUSTER_NET must be three bytes, such as 10.77.0: '$NET'" 2
}

check_owner() {
  local other
  [[ -e $OWNER_FILE ]] || return 0
  other=$(<"$OWNER_FILE")
  [[ $other == "$STATE" || ! -e $other/.hpcdl-cluster ]] ||
    die "a cluster is already there, in $other: first run HPCDL_CLUSTER_DIR=$other scripts/cluster.sh down"
}

# ---- packages

install_packages() {
  local package missing=() log=/var/log/hpcdl-cluster-apt.log
  for package in "${PACKAGES[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  [[ ${#missing[@]} -gt 0 ]] || return 0
  say "installing ${missing[*]} (apt-get)"
  # Packages start their services on installation; this refuses it while we install, whatever policy the machine has.
  if [[ -e $SERVICE_POLICY ]]; then
    mv "$SERVICE_POLICY" "$SERVICE_POLICY.hpcdl-saved"
  else
    : >"$SERVICE_POLICY.hpcdl-none"
  fi
  trap restore_service_policy EXIT
  printf '#!/bin/sh\nexit 101\n' >"$SERVICE_POLICY"
  chmod 755 "$SERVICE_POLICY"
  export DEBIAN_FRONTEND=noninteractive
  local apt_get=(apt-get -o DPkg::Lock::Timeout=300) install=(install -y --no-install-recommends "${missing[@]}")
  if ! { "${apt_get[@]}" update && "${apt_get[@]}" "${install[@]}"; } >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    die "apt-get failed; the whole log: $log"
  fi
  rm -f "$log"
  restore_service_policy
  trap - EXIT
}

# Also called at the start of up and down, for an installation that was killed half-way.
restore_service_policy() {
  if [[ -e $SERVICE_POLICY.hpcdl-saved ]]; then mv "$SERVICE_POLICY.hpcdl-saved" "$SERVICE_POLICY"; fi
  if [[ -e $SERVICE_POLICY.hpcdl-none ]]; then rm -f "$SERVICE_POLICY" "$SERVICE_POLICY.hpcdl-none"; fi
}

# ---- state folder and checkout

make_state_folder() {
  if [[ ! -e $STATE/.hpcdl-cluster ]]; then
    say "making $STATE"
    [[ -z $(ls -A "$STATE" 2>/dev/null) ]] ||
      die "$STATE holds files that are not this script's: choose another HPCDL_CLUSTER_DIR"
    ! mountpoint -q "$STATE" || die "$STATE is a mount point: choose a folder below it as HPCDL_CLUSTER_DIR"
    mkdir -p "$STATE"
    chmod 755 "$STATE"
    echo "State of scripts/cluster.sh; removed by 'scripts/cluster.sh down'." >"$STATE/.hpcdl-cluster"
  fi
  echo "$STATE" >"$OWNER_FILE"
  runuser -u nobody -- test -x "$STATE" ||
    die "ordinary users cannot enter $STATE: a folder above it is private, choose another HPCDL_CLUSTER_DIR"
  # A mount of its own, shared: a checkout bound below it later is then seen by nodes that are already running.
  if ! mountpoint -q "$STATE"; then
    mount --bind "$STATE" "$STATE"
    mount --make-private "$STATE"
    mount --make-shared "$STATE"
  fi
  mkdir -p "$STATE"/{bin,etc,log,run,home,checkout,scratch,spool/slurmctld}
  local node
  for node in "${NODES[@]}"; do mkdir -p "$STATE/spool/slurmd-$node"; done
  chmod 1777 "$STATE/scratch"
  install -d -o munge -g munge -m 755 "$STATE/munge"
  install -d -o mysql -g mysql -m 700 "$STATE/mysql"
}

bind_checkout() {
  [[ ! $STATE/checkout -ef $CHECKOUT ]] || return 0
  say "binding $CHECKOUT to $STATE/checkout"
  ! mountpoint -q "$STATE/checkout" || umount "$STATE/checkout" 2>/dev/null || umount --lazy "$STATE/checkout"
  mount --bind "$CHECKOUT" "$STATE/checkout"
  NUM_STARTED=$((NUM_STARTED + 1))
}

check_user_can_run_checkout() {
  local python=$STATE/checkout/.venv/bin/python
  if ! runuser -u "${USERS[0]}" -- test -r "$STATE/checkout/scripts/cluster.sh"; then
    say "warning: ${USERS[0]} cannot read the checkout: chmod -R go+rX $CHECKOUT"
  elif [[ ! -L $python && ! -e $python ]]; then
    say "warning: $CHECKOUT/.venv does not exist yet: run 'make install' there"
  elif ! runuser -u "${USERS[0]}" -- "$python" -c 0 2>/dev/null; then
    say "warning: ${USERS[0]} cannot run $CHECKOUT/.venv/bin/python: its interpreter lies in a private folder." \
      "Make the .venv with /usr/bin/python3"
  fi
}

remove_state_folder() {
  [[ -e $STATE ]] || return 0
  if mountpoint -q "$STATE"; then umount --recursive "$STATE" 2>/dev/null || umount --recursive --lazy "$STATE"; fi
  # The checkout was bound below this folder: with any mount left, rm would empty the user's own checkout.
  if grep -q " ${STATE}[/ ]" /proc/self/mountinfo; then die "something is still mounted below $STATE: not removed"; fi
  rm -rf --one-file-system "$STATE"
}

# ---- users

make_users() {
  local user home
  for user in "${USERS[@]}"; do
    home=$STATE/home/$user
    if ! getent passwd "$user" >/dev/null; then
      say "making the user $user"
      useradd --no-create-home --home-dir "$home" --shell /bin/bash --user-group --comment "$USER_MARK" "$user"
    fi
    [[ -d $home ]] || install -d -o "$user" -g "$user" -m 700 "$home"
    # git refuses a checkout of another owner (root) unless told; a real user would own the clone.
    printf '[safe]\n\tdirectory = %s\n' "$STATE/checkout" >"$home/.gitconfig"
    printf '. %s\n' "$STATE/env.sh" | tee "$home/.bashrc" >"$home/.profile"
    chown "$user:$user" "$home"/.{gitconfig,bashrc,profile}
  done
}

remove_users() {
  local user pid
  for user in "${USERS[@]}"; do
    [[ $(getent passwd "$user" | cut -d: -f5) == "$USER_MARK" ]] || continue
    for pid in $(pgrep -U "$user"); do kill -KILL "$pid" 2>/dev/null || true; done
    userdel "$user" 2>/dev/null || { sleep 1 && userdel --force "$user"; }
  done
}

# ---- network

address() { echo "$NET.${1#n}"; }

make_network() {
  local node ours
  if ! ip link show "$BRIDGE" &>/dev/null; then
    local taken
    taken=$(ip -4 -o addr show to "$NET.0/24"; ip -4 route show to root "$NET.0/24")
    [[ -z $taken ]] ||
      die "$NET.0/24 is in use on this machine (${taken%%$'\n'*}): set HPCDL_CLUSTER_NET to three other bytes"
    say "making the bridge $BRIDGE, $NET.254/24"
    ip link add "$BRIDGE" type bridge
  fi
  ip addr replace "$NET.254/24" dev "$BRIDGE"
  ip link set "$BRIDGE" up
  for node in "${NODES[@]}"; do make_node_network "$node"; done

  local others
  others=$(grep -v "$HOSTS_MARK\$" /etc/hosts || true)
  for node in "${NODES[@]}"; do
    ! grep -qE "^[^#]*[[:space:]]$node([[:space:]]|\$)" <<<"$others" ||
      die "/etc/hosts already names a $node: the cluster's nodes need that name"
    ours+="$(address "$node") $node $HOSTS_MARK"$'\n'
  done
  write_hosts "$others"$'\n'"$ours"
}

# Written in place, not renamed: in containers /etc/hosts is often a mount.
write_hosts() {
  [[ "$(</etc/hosts)"$'\n' == "$1" ]] || printf '%s' "$1" >/etc/hosts
}

node_network_works() {
  [[ $(ip -o link show "hpcdl-$1" 2>/dev/null) == *" master $BRIDGE "* ]] &&
    [[ $(nsenter --net="/run/netns/hpcdl-$1" ip -4 -o addr show dev eth0 2>/dev/null) == *" $(address "$1")/24 "* ]]
}

make_node_network() {
  local node=$1 namespace=hpcdl-$1
  ! node_network_works "$node" || return 0
  kill_node "$node"
  remove_node_network "$node"
  ip netns add "$namespace"
  ip link add "$namespace" type veth peer name eth0 netns "$namespace"
  ip link set "$namespace" master "$BRIDGE" up
  ip -n "$namespace" link set lo up
  ip -n "$namespace" addr add "$(address "$node")/24" dev eth0
  ip -n "$namespace" link set eth0 up
  # No default route, as on many clusters: a job that asks for the internet is told so at once.
}

remove_node_network() {
  ip link del "hpcdl-$1" 2>/dev/null || true
  # After a reboot an empty file may be left where /run is on disk.
  ip netns del "hpcdl-$1" 2>/dev/null || rm -f "/run/netns/hpcdl-$1"
}

remove_network() {
  local node
  if command -v ip >/dev/null; then
    for node in "${NODES[@]}"; do remove_node_network "$node"; done
    ip link del "$BRIDGE" 2>/dev/null || true
  fi
  ! grep -q "$HOSTS_MARK\$" /etc/hosts || write_hosts "$(grep -v "$HOSTS_MARK\$" /etc/hosts)"$'\n'
}
