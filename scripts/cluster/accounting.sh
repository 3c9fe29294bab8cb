# shellcheck shell=bash
# Accounts, qualities of service and the reservation. Sourced by cluster.sh.

ACCOUNT=hpcdl_test
RESERVATION=hpcdl_resv

make_accounting() {
  accounting_is_there || write_accounting
  if ! accounting_is_there; then
    tail -n 15 "$STATE/log/sacctmgr.log" >&2
    die "the account $ACCOUNT could not be made; log: $STATE/log/sacctmgr.log"
  fi
}

accounting_is_there() {
  local found user
  found=$(sacctmgr --noheader --parsable2 show associations format=cluster,account,user,qos)
  for user in "${USERS[@]}"; do
    # sacctmgr lists the qualities of service in an order of its own.
    grep -qE "^hpcdl\|$ACCOUNT\|$user\|(normal,short|short,normal)$" <<<"$found" || return 1
  done
}

write_accounting() {
  say "making the account $ACCOUNT with ${USERS[*]}"
  NUM_STARTED=$((NUM_STARTED + 1))
  # "Nothing new added" is an error to sacctmgr: what is there already must not stop us.
  add() { sacctmgr --immediate --quiet add "$@" >>"$STATE/log/sacctmgr.log" 2>&1 || true; }
  add cluster hpcdl
  # DenyOnLimit: refused at once at submission, instead of pending for ever as it would by default.
  add qos short set Description="30 minutes, two running jobs a user" MaxWall=00:30:00 MaxJobsPerUser=2 \
    Flags=DenyOnLimit Priority=100
  add account "$ACCOUNT" set Cluster=hpcdl Description="hpcdl tests" QOS=normal,short DefaultQOS=normal
  local user
  for user in "${USERS[@]}"; do
    add user "$user" Account="$ACCOUNT" DefaultAccount="$ACCOUNT" Cluster=hpcdl
  done
}

# A reservation of nodes keeps all other jobs off them for as long as it lasts. This one reserves seats (licences)
# instead, and ANY_NODES lets its jobs run on any node: `sbatch --reservation` is real, and nobody waits for it.
make_reservation() {
  ! scontrol --oneliner show reservation "$RESERVATION" &>/dev/null || return 0
  local IFS=,
  scontrol create reservation ReservationName="$RESERVATION" StartTime=now Duration=365-00:00:00 Licenses=hpcdl_seat:4 \
    Users="${USERS[*]}" Flags=ANY_NODES >/dev/null || die "the reservation $RESERVATION could not be made"
}
