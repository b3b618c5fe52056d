#!/usr/bin/env bash
# A SLURM of two nodes on this machine, for tests:  slurm.sh up|down FOLDER
#
# One slurmctld and two slurmd (n1, n2), bound to the loopback address, without systemd, cgroups and
# database. Everything it writes is in FOLDER, but for the socket of munge. `down` stops what `up`
# started, by its pid files. Needs root and Debian's packages slurm-wlm and munge.
set -euo pipefail
command=$1 root=$(realpath -m "$2")
export SLURM_CONF="$root/slurm.conf"

stop() { # pid file
  [ -f "$1" ] || return 0
  local pid; pid=$(cat "$1")
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || return 0; sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
}

await() { # seconds, condition
  for _ in $(seq $(($1 * 5))); do eval "$2" >/dev/null 2>&1 && return 0; sleep 0.2; done
  echo "slurm.sh: not within $1 s: $2" >&2; return 1
}

if [ "$command" = down ]; then
  scancel --user=root 2>/dev/null || true
  await 30 '[ -z "$(squeue -h)" ]' || true
  for name in slurmd-n1 slurmd-n2 slurmctld munged; do stop "$root/run/$name.pid"; done
  exit 0
fi

host=$(hostname -s)
mkdir -p "$root"/{state,spool-n1,spool-n2,log,run}
install -d -o munge -g munge -m 0755 /run/munge
install -d -o munge -g munge -m 0700 "$root/munge"
if [ ! -f "$root/munge/key" ]; then
  dd if=/dev/urandom of="$root/munge/key" bs=1024 count=1 status=none
  chown munge: "$root/munge/key"; chmod 400 "$root/munge/key"
fi
chown munge "$root/run"
for path in "$root" "$root/run"; do chmod 755 "$path"; done
cat > "$SLURM_CONF" <<CONF
ClusterName=virtual
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool-%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd-%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd-%n.log
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SchedulerParameters=sched_interval=1,bf_interval=2,batch_sched_delay=0,requeue_delay=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
SlurmdTimeout=20
ReturnToService=2
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=4 RealMemory=6000
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=4 RealMemory=6000
PartitionName=low Nodes=n1,n2 Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 State=UP
PartitionName=high Nodes=n1,n2 PriorityTier=10 PreemptMode=OFF State=UP
CONF
runuser -u munge -- /usr/sbin/munged --key-file="$root/munge/key" \
  --log-file="$root/munge/munged.log" --pid-file="$root/run/munged.pid" \
  --seed-file="$root/munge/seed" --socket=/run/munge/munge.socket.2
await 20 'munge -n </dev/null'
slurmctld -f "$SLURM_CONF"
for node in n1 n2; do slurmd -f "$SLURM_CONF" -N "$node"; done
await 60 '[ "$(sinfo -h -p low -t idle -o %D)" = 2 ]'
