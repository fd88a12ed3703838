#!/usr/bin/env bash
# A SLURM of one node for `make test-slurm`: installs it (Debian, root), starts it with ports and folders of its own, runs
# the command given, and stops it again. Nothing of a SLURM that is there already is touched.
#   scripts/slurm_node.sh pytest -m slurm
set -euo pipefail
if ! command -v slurmctld >/dev/null; then
  [ "$(id -u)" = 0 ] || { echo "error: SLURM is not installed, and only root can; apt-get install slurm-wlm munge" >&2; exit 2; }
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } </dev/null >/dev/null
fi
state=$(mktemp -d /tmp/slurm-node.XXXXXX)
chmod 755 "$state"
host=$(hostname -s)
cpus=$(env -u OMP_NUM_THREADS nproc) # which would count threads otherwise
memory=$(($(awk '/MemTotal/ {print $2}' /proc/meminfo) / 1024 * 9 / 10))
ports=$((20000 + RANDOM % 20000))
mkdir -p "$state"/{ctld,d,log}
cat >"$state/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ports
SlurmdPort=$((ports + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$state/munge.socket
CryptoType=crypto/munge
StateSaveLocation=$state/ctld
SlurmdSpoolDir=$state/d
SlurmctldPidFile=$state/ctld.pid
SlurmdPidFile=$state/d.pid
SlurmctldLogFile=$state/log/ctld
SlurmdLogFile=$state/log/d
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=sched_interval=2,batch_sched_delay=0
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$state/slurm.conf
dd if=/dev/urandom of="$state/munge.key" bs=128 count=1 status=none
if [ "$(id -u)" = 0 ] && id munge >/dev/null 2>&1; then
  chown munge: "$state/munge.key" && mkdir "$state/munge" && chown munge: "$state/munge" && chmod 755 "$state/munge"
fi
chmod 400 "$state/munge.key"
stop() {
  scancel --me >/dev/null 2>&1 || true
  for name in d ctld; do [ -f "$state/$name.pid" ] && kill "$(cat "$state/$name.pid")" 2>/dev/null || true; done
  [ -f "$state/munge/pid" ] && kill "$(cat "$state/munge/pid")" 2>/dev/null || true
  sleep 1
  rm -rf "$state"
}
trap stop EXIT
trap 'exit 143' TERM INT
sed -i "s|socket=.*|socket=$state/munge/socket|" "$SLURM_CONF"
setpriv --reuid=munge --regid=munge --clear-groups munged --key-file="$state/munge.key" --socket="$state/munge/socket" \
  --pid-file="$state/munge/pid" --log-file="$state/munge/log" --seed-file="$state/munge/seed" --force 2>/dev/null
slurmctld
slurmd
for _ in $(seq 60); do
  [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] && break
  sleep 1
done
sinfo --noheader >&2 || { cat "$state"/log/* >&2; exit 1; }
"$@"
