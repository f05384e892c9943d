"""Debian machines with systemd, as people rent them: QEMU's, on a link of their own, told what to do by ssh. They need neither root nor KVM
once their disk is made; nothing outside this host can reach them, and they can reach nothing but each other."""
import hashlib, os, shutil, signal, socket, subprocess, sys, tempfile, time
from pathlib import Path

BEGAN = time.monotonic()
checks = 0
HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
PACKAGES = "systemd-sysv,dbus,udev,iproute2,iputils-ping,procps,openssh-server,python3,cloud-init,curl,linux-image-cloud-amd64"
# A machine under emulation on a busy host takes its time.
BOOT = int(os.environ.get("VM_TIMEOUT", "300"))
ACCEL = os.environ.get("VM_ACCEL", "tcg,thread=multi")

# The link's address is that of the number on the kernel's command line (RFC 5737: no real network has it); eth0 is only for ssh.
NETWORK = "[Match]\nName=eth1\nKernelCommandLine=host={0}\n[Network]\nAddress=192.0.2.{0}/24\n"
OUTER = "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n"


def say(text):
    print(text, flush=True)


def fail(text):
    sys.exit(f"FAILED: {text}")


def equal(what, expected, found):
    global checks
    checks += 1
    if expected != found:
        fail(f"{what}: expected {expected!r}, found {found!r}")


def done():
    say(f"{checks} checks passed in {time.monotonic() - BEGAN:.0f} s")


def build(folder):
    """The package, made anew in a new folder."""
    folder.mkdir()
    return Path(subprocess.check_output([str(REPO / "deploy/deb/build"), str(folder)], text=True, stderr=subprocess.DEVNULL).strip())


def image():
    """An archive of busybox."""
    folder = os.environ.get("ORCH_IMAGES") or subprocess.check_output([str(REPO / "tests/images/build")], text=True).strip()
    return Path(folder) / "busybox.tar"


def run(*command, **more):
    return subprocess.run([str(word) for word in command], check=True, **more)


def cache():
    """The folder with the kernel, the machines' first disk and the key to them; made once."""
    folder = Path(subprocess.check_output(["bash", "-c", f". {REPO}/tests/paths; echo $ORCH_CACHE"], text=True).strip())
    recipe = hashlib.sha256("\n".join((PACKAGES, NETWORK, OUTER, DISK, SEAL)).encode()).hexdigest()[:16]
    made = folder / f"deploy-{recipe}"
    if not made.exists():
        if os.geteuid():
            fail("the machines' disk is made by mmdebstrap, as root")
        say("making a Debian disk, once")
        folder.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(prefix="making.", dir=folder))
        try:
            run("bash", "-euc", DISK, "disk", making, PACKAGES)
            for name in ("10-outer", *(f"20-link{n}" for n in range(1, 6))):
                text = OUTER if name == "10-outer" else NETWORK.format(name[-1])
                (making / "root/etc/systemd/network" / f"{name}.network").write_text(text)
            run("bash", "-euc", SEAL, "seal", making)
            making.rename(made)
            # Those of other versions of this file, if no run of theirs can still be starting.
            for other in folder.glob("deploy-*"):
                if other != made and other.stat().st_mtime < time.time() - 3600:
                    shutil.rmtree(other, ignore_errors=True)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return made


DISK = r"""
cd "$1"
mmdebstrap --quiet --variant=minbase --include="$2" bookworm root
ssh-keygen -q -t ed25519 -N '' -C orch-test -f key
install -d -m 700 root/root/.ssh
install -m 600 key.pub root/root/.ssh/authorized_keys
# Only those of the seed, and no network of its own: networkd's files have it.
printf 'datasource_list: [NoCloud]\nnetwork: {config: disabled}\ndisable_root: false\nlocale: false\n' >root/etc/cloud/cloud.cfg.d/99-test.cfg
chroot root systemctl --quiet enable systemd-networkd
# What a machine that lives for minutes need not do.
chroot root systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
	man-db.timer dpkg-db-backup.timer systemd-networkd-wait-online.service
echo '/dev/vda / ext4 defaults 0 1' >root/etc/fstab
rm -f root/etc/resolv.conf root/etc/hostname
"""
SEAL = r"""
cd "$1"
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd
truncate -s 4G disk
mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=0 -d root disk
rm -rf root
"""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Machine:
    """Number N has the address 192.0.2.N and the name hostN."""

    def __init__(self, fleet, number, seed=None):
        self.fleet, self.number, self.name, self.address = fleet, number, f"host{number}", f"192.0.2.{number}"
        self.port = free_port()
        self.console = fleet.work / f"{self.name}.console"
        kernel = f"root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 host={number} mitigations=off random.trust_cpu=on"
        kernel += "" if seed else f" cloud-init=disabled systemd.hostname={self.name}"
        command = [
            "qemu-system-x86_64", "-machine", "q35", "-accel", ACCEL, "-cpu", "max", "-smp", "2", "-m", os.environ.get("VM_MEMORY", "768"),
            "-kernel", fleet.cache / "vmlinuz", "-initrd", fleet.cache / "initrd", "-append", kernel,
            "-drive", f"file={fleet.cache}/disk,format=raw,if=virtio,cache=unsafe,snapshot=on", "-device", "virtio-rng-pci",
            "-netdev", f"user,id=outer,restrict=on,hostfwd=tcp:127.0.0.1:{self.port}-:22{fleet.forward}", "-device", "virtio-net-pci,netdev=outer",
            "-netdev", f"socket,id=link,mcast=239.192.0.1:{fleet.link},localaddr=127.0.0.1",
            "-device", f"virtio-net-pci,netdev=link,mac=52:54:00:00:00:0{number}",
            "-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{self.console}",
        ]
        if seed:
            folder = fleet.work / f"{self.name}.seed"
            folder.mkdir()
            (folder / "meta-data").write_text(f"instance-id: {self.name}\nlocal-hostname: {self.name}\n")
            for name, text in seed.items():
                (folder / name).write_text(text)
            iso = folder.with_suffix(".iso")
            run("genisoimage", "-quiet", "-output", iso, "-volid", "cidata", "-joliet", "-rock", *sorted(folder.iterdir()))
            command += ["-drive", f"file={iso},format=raw,if=virtio,readonly=on"]
        self.process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL)

    def ssh(self):
        quiet = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=10"]
        shared = ["-o", "ControlMaster=auto", "-o", f"ControlPath={self.fleet.work}/ssh-%p", "-o", "ControlPersist=60"]
        return ["ssh", "-F", "none", "-i", str(self.fleet.key), *quiet, *shared, "-p", str(self.port), "root@127.0.0.1"]

    def try_sh(self, script, stdin=None, timeout=BOOT):
        """A shell script as root there: exit code, what it printed, what it complained of."""
        try:
            done = subprocess.run([*self.ssh(), script], input=stdin, stdin=None if stdin else subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, timeout=timeout)
        except subprocess.TimeoutExpired:
            return 124, "", f"nothing within {timeout} s"
        return done.returncode, done.stdout.decode(errors="replace").strip(), done.stderr.decode(errors="replace").strip()

    def sh(self, script, stdin=None):
        code, said, complained = self.try_sh(script, stdin)
        if code:
            fail(f"{self.name}: `{script}` ended with code {code}\n{said}\n{complained}\n{self.story()}")
        return said

    def put(self, file, there):
        self.sh(f"cat >{there}", stdin=Path(file).read_bytes())

    def eventually(self, what, script, seconds=BOOT):
        """The script succeeds before so many seconds are over."""
        deadline = time.monotonic() + seconds
        while True:
            code, said, complained = self.try_sh(script, timeout=60)
            if code == 0:
                return said
            if self.process.poll() is not None:
                fail(f"{self.name} has ended; its console:\n{self.console.read_text(errors='replace')[-3000:]}")
            if time.monotonic() > deadline:
                fail(f"{self.name}: {what}: `{script}` did not succeed within {seconds} s\n{said}\n{complained}\n{self.story()}")
            time.sleep(0.5)

    def is_up(self):
        self.eventually("it boots", "systemctl is-system-running | grep -qxE 'running|degraded'")

    def story(self):
        """What its agent and its systemd said last."""
        return self.try_sh("systemctl --failed --no-legend; journalctl -u orch -n 30 --no-pager -o cat")[1]


class Fleet:
    """Machines on one link; they end with it."""

    def __init__(self):
        self.cache = cache()
        self.work = Path(tempfile.mkdtemp(prefix="orch-deploy-"))
        self.key = self.work / "key"
        shutil.copy(self.cache / "key", self.key)
        self.key.chmod(0o600)
        self.link = free_port()
        self.machines = []
        self.forward = ""

    def __enter__(self):
        # So that an interrupted run ends its machines as well.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return self

    def serve(self, file):
        """The address where machines that boot from now on can fetch a file: QEMU asks a program, no port of this host is open."""
        answer, program = self.work / "answer", self.work / "serve"
        answer.write_bytes(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % file.stat().st_size + file.read_bytes())
        # The question ends with an empty line, of which `read` leaves a carriage return.
        program.write_text(f"#!/bin/sh\nwhile read -r line && [ ${{#line}} -gt 1 ]; do :; done\nexec cat {answer}\n")
        program.chmod(0o755)
        self.forward = f",guestfwd=tcp:10.0.2.100:80-cmd:{program}"
        return f"http://10.0.2.100/{file.name}"

    def boot(self, number, seed=None):
        machine = Machine(self, number, seed)
        self.machines.append(machine)
        return machine

    def __exit__(self, *_):
        for machine in self.machines:
            subprocess.run([*machine.ssh()[:-1], "-O", "exit", "root@127.0.0.1"], stderr=subprocess.DEVNULL)
            machine.process.kill()
            machine.process.wait()
        shutil.rmtree(self.work, ignore_errors=True)


# What the three machines of a cluster come to, however they were made one.
STACK = b"""
name: proof
services:
  idle:
    image: busybox:latest
    command: [sleep, infinity]
    init: true
    deploy: {replicas: 3}
"""


def proves_a_cluster(machines):
    """Three managers, and a stack over all of them."""
    first = machines[0]
    roles = "orch cluster ls --format json | grep -c '\"role\":\"manager\"'"
    equal("managers", "3", first.eventually("three managers", f"test $({roles}) = 3 && echo 3", 120))
    for machine in machines:
        machine.put(image(), "/root/busybox.tar")
        machine.sh("orch image load -i /root/busybox.tar >/dev/null")
    first.sh("cat >/root/stack.yaml", stdin=STACK)
    # Machines that are emulated on a busy host are slow enough for a leader to be lost in the middle of a command.
    first.eventually("the stack is up", "orch -f /root/stack.yaml up -d --wait --wait-timeout 60 2>&1")
    for machine in machines:
        machine.eventually("its share runs", "test $(pgrep -fxc 'sleep infinity') = 1", 60)
        equal("services known there", "idle", machine.sh("orch service ls --format '{{.Name}}'"))
    first.eventually("the stack is down", "orch -f /root/stack.yaml down 2>&1")
