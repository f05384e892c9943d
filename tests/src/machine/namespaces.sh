# Begins process 1 of a machine inside its namespaces: what procfs, sysfs and the control groups show is its own. Read by machine.rs and by
# tests/bench/hosts.py.
set -eu
mount --make-rprivate /
mount -t proc proc /proc
groups=$(mktemp -d)
mount --rbind /sys/fs/cgroup "$groups"
umount -l /sys
mount -t sysfs sysfs /sys
mount --rbind "$groups" /sys/fs/cgroup
umount -l "$groups"
rmdir "$groups"
mount -t tmpfs tmpfs /run
mount --make-rshared /
