"""Three hosts with one engine each, joined to a cluster: orch on machines of its own on this kernel, and the Swarm of a folder of scripts.

Both are told the same: three managers, one switch, a network and mount namespace and a host name each, cables that can be pulled."""
import http.client, json, os, re, signal, socket, subprocess, sys, time
from pathlib import Path

from sides import Side, command_lines

HOSTS = (1, 2, 3)
# Longer than anything takes that comes to its end.
PATIENCE = 180

# The run directory is mounted before, so that its socket is reached from outside.
PROCESS_1 = (Path(__file__).resolve().parents[1] / "src/machine/namespaces.sh").read_text() + """
hostname "host$1"
ip link set lo up
echo ready
exec cat >/dev/null
"""


def until(what, condition, every=0.02):
    """Waits for a condition; how long it took, in seconds."""
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > PATIENCE:
            sys.exit(f"{what}: not within {PATIENCE} s")
        time.sleep(every)
    return time.perf_counter() - began


class Unix(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost", timeout=10)
        self.path = str(path)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)


def get(connection, path):
    """What an API says, or nothing while it cannot say it."""
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said = answer.read()
        return json.loads(said) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class OrchHosts:
    """orch on three machines."""

    name = "orch"

    def __init__(self, binary, work):
        self.work, self.switch = Path(work), f"orch-bench-{os.getpid()}"
        self.binary, self.hosts, self.agents, self.sides, self.changing = binary, {}, {}, {}, None
        try:
            self.make()
        except BaseException:
            self.close()
            raise

    def make(self):
        ip("netns", "add", self.switch)
        self.inside("ip", "link", "add", "switch", "type", "bridge")
        self.inside("ip", "link", "set", "switch", "up")
        for number in HOSTS:
            folder = self.work / f"host{number}"
            for below in ("data", "run"):
                (folder / below).mkdir(parents=True)
            subprocess.run(["mount", "-t", "tmpfs", "tmpfs", folder / "run"], check=True)
            command = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "sh", "-c", PROCESS_1, "host", str(number)]
            host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self.hosts[number] = host
            if host.stdout.readline() != b"ready\n":
                sys.exit("a host could not be made")
            children = Path(f"/proc/{host.pid}/task/{host.pid}/children").read_text().split()
            host.first = children[0]
            ip("link", "add", f"port{number}", "netns", self.switch, "type", "veth", "peer", "name", "eth0", "netns", host.first)
            self.inside("ip", "link", "set", f"port{number}", "master", "switch", "up")
            self.on(number, "ip", "address", "add", f"192.0.2.{number}/24", "dev", "eth0")
            self.on(number, "ip", "link", "set", "eth0", "up")
            env = {"ORCH_DATA_DIR": str(folder / "data"), "ORCH_RUN_DIR": str(folder / "run"), "ORCH_INSTANCE": f"bench{number}"}
            self.sides[number] = Side(f"orch on host {number}", [str(self.binary)], env)
            self.start(number)
        self.call(1, "cluster", "init", "--advertise-addr", "192.0.2.1")
        for number in HOSTS[1:]:
            token = self.call(1, "-q", "cluster", "token", "manager").stdout.decode().strip()
            self.call(number, "cluster", "join", "--token", token, "192.0.2.1")
        until("all vote", self.is_whole)

    def inside(self, *words):
        subprocess.run(["ip", "netns", "exec", self.switch, *words], check=True)

    def enter(self, number):
        return ["nsenter", "-t", self.hosts[number].first, "-m", "-n", "-u", "-p"]

    def on(self, number, *words):
        subprocess.run([*self.enter(number), *words], check=True)

    def start(self, number):
        log = open(self.work / f"host{number}/agent.log", "ab")
        env = self.sides[number].env
        # The agent itself is the child of nsenter, which waits for it.
        self.agents[number] = subprocess.Popen([*self.enter(number), str(self.binary), "agent"], env=env, stdin=subprocess.DEVNULL, stdout=log,
                                               stderr=log)
        until(f"the agent of host {number} answers", lambda: self.api(number, "/v1/cluster") is not None)

    def call(self, number, *words, **more):
        return self.sides[number].run(*words, **more)

    def api(self, number, path):
        return get(Unix(self.work / f"host{number}/run/orch.sock"), path)

    def is_whole(self):
        views = [self.api(number, "/v1/cluster") for number in HOSTS]
        return all(view and len(view["voters"]) == 3 and view["leader"] == views[0]["leader"] != "" for view in views)

    def import_image(self, tar, name):
        with open(tar, "rb") as stream:
            self.call(1, "image", "import", "-", f"{name}:latest", stdin=stream)
        # Imported twice it would be two images, of two times.
        archive = self.work / f"{name}.image"
        self.call(1, "image", "save", "-o", archive, f"{name}:latest")
        for number in HOSTS[1:]:
            self.call(number, "image", "load", "-i", archive)

    def leader(self):
        until("somebody leads", self.is_whole)
        leads = self.api(1, "/v1/cluster")["leader"]
        return next(number for number in HOSTS if self.api(number, "/v1/cluster")["node"] == leads)

    def deploy(self, stack):
        """Asks for it. `up` comes back later, when all has started and every node leads callers there: see `deployed`."""
        self.deployed()
        side = self.sides[1]
        self.changing = subprocess.Popen([*side.command, "-p", stack["name"], "-f", "-", "up", "-d"], env=side.env, stdin=subprocess.PIPE,
                                         stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.changing.stdin.write(json.dumps(stack).encode())
        self.changing.stdin.close()

    def deployed(self):
        """Waits for the last `up`. Says whether there is more to it than that tasks run."""
        up, self.changing = self.changing, None
        if up is not None and up.wait() != 0:
            sys.exit("orch up failed")
        return True

    def down(self, stack):
        self.deployed()
        self.call(1, "-p", stack["name"], "-f", "-", "down", "-t", "0", input=json.dumps(stack).encode())

    def tasks(self, asked, stack):
        """Node and specification of each task that runs and shall run."""
        found = self.api(asked, "/v1/tasks") or []
        found = found.get("tasks", []) if isinstance(found, dict) else found
        return [(task["node"], task["spec_hash"]) for task in found
                if task["stack"] == stack and task["desired"] == "running" and task["status"]["state"] == "running"]

    def node(self, number):
        return self.api(number, "/v1/cluster")["node"]

    def is_updated(self, asked, stack):
        found = self.api(asked, "/v1/services") or []
        found = [service for service in found if service["stack"] == stack]
        return bool(found) and all(service["update_status"] == "completed" for service in found)

    def write(self, asked, name):
        """A change of the cluster's state: whether it was taken."""
        return self.call(asked, "volume", "create", name, check=False).returncode == 0

    def cut(self, number):
        self.inside("ip", "link", "set", f"port{number}", "nomaster")

    def mend(self, number):
        self.inside("ip", "link", "set", f"port{number}", "master", "switch")

    def manager(self, number):
        """Processes of a manager."""
        children = Path(f"/proc/{self.agents[number].pid}/task/{self.agents[number].pid}/children").read_text().split()
        return children[:1]

    def kill(self, number):
        os.kill(int(self.manager(number)[0]), signal.SIGKILL)
        self.agents[number].wait()

    def revive(self, number):
        self.start(number)
        until("all vote", self.is_whole)

    def close(self):
        for number, agent in self.agents.items():
            subprocess.run(["kill", "-TERM", *self.manager(number)], check=False) if agent.poll() is None else None
        for agent in self.agents.values():
            try:
                agent.wait(20)
            except subprocess.TimeoutExpired:
                agent.kill()
        for number, host in self.hosts.items():
            host.stdin.close()
            host.wait()
            subprocess.run(["umount", "-l", self.work / f"host{number}/run"], check=False)
        subprocess.run(["ip", "netns", "del", self.switch], check=False)
        groups = [Path(root) / name for root, names, _ in os.walk("/sys/fs/cgroup") for name in names]
        for group in sorted((g for g in groups if re.search(r"bench[123]\b", str(g))), key=lambda g: -len(str(g))):
            try:
                group.rmdir()
            except OSError:
                pass


class SwarmHosts:
    """Docker's Swarm on what `swarm-up.sh` makes."""

    name = "swarm"

    def __init__(self, peer):
        self.peer = Path(peer)
        self.others = {pid for pid, _ in command_lines()}
        # The script turns it off for its bridge, and leaves it so.
        self.switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        self.filtered = self.switch.read_text() if self.switch.exists() else None
        try:
            self.up()
            until("all are managers", self.is_whole)
        except BaseException:
            self.close()
            raise

    def up(self):
        subprocess.run([self.peer / "swarm-up.sh"], check=True, stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL)

    def call(self, number, *words, check=True, **more):
        done = subprocess.run([self.peer / "swarm.sh", str(number), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        if check and done.returncode:
            sys.exit(f"swarm {' '.join(words)}: {done.stderr.decode()[-2000:]}")
        return done

    def api(self, number, path):
        return get(http.client.HTTPConnection(f"10.88.0.{number}", 2375, timeout=10), path)

    def nodes(self, asked=1):
        return self.api(asked, "/nodes") or []

    def is_whole(self):
        nodes = self.nodes()
        return len(nodes) == 3 and all(node["Status"]["State"] == "ready" and node.get("ManagerStatus", {}).get("Reachability") == "reachable"
                                       for node in nodes)

    def import_image(self, tar, name):
        for number in HOSTS:
            with open(tar, "rb") as stream:
                self.call(number, "import", "-", f"{name}:latest", stdin=stream)

    def leader(self):
        until("somebody leads", self.is_whole)
        leads = next(node for node in self.nodes() if node["ManagerStatus"].get("Leader"))
        return int(re.search(r"node(\d)", leads["Description"]["Hostname"])[1])

    def deploy(self, stack):
        self.call(1, "stack", "deploy", "--detach", "--resolve-image", "never", "-c", "-", stack["name"],
                  input=json.dumps({key: value for key, value in stack.items() if key != "name"} | {"version": "3.8"}).encode())

    def deployed(self):
        """`stack deploy --detach` knows of nothing more."""
        return False

    def down(self, stack):
        def is_gone():
            # A network that a task still has is not removed, nor tried again: the verb fails, and is to be said once more.
            self.call(1, "stack", "rm", stack["name"], check=False)
            return self.of(1, stack["name"]) == [] and not any(stack["name"] in network["Name"] for network in self.api(1, "/networks") or [])

        until("the stack is gone", is_gone)
        # Its tasks' containers go after their service.
        until("its containers are gone", lambda: all(self.api(number, "/containers/json") == [] for number in HOSTS))

    def of(self, asked, stack):
        return self.api(asked, f'/tasks?filters={{"label":{{"com.docker.stack.namespace={stack}":true}},"desired-state":{{"running":true}}}}')

    def tasks(self, asked, stack):
        return [(task["NodeID"], task["Spec"]["ContainerSpec"].get("Env", [""])[0]) for task in self.of(asked, stack) or []
                if task["Status"]["State"] == "running"]

    def node(self, number):
        return self.api(number, "/info")["Swarm"]["NodeID"]

    def is_updated(self, asked, stack):
        found = self.api(asked, f'/services?filters={{"label":{{"com.docker.stack.namespace={stack}":true}}}}')
        return bool(found) and all(service.get("UpdateStatus", {}).get("State") == "completed" for service in found)

    def write(self, asked, name):
        return self.call(asked, "config", "create", name, "-", input=b"x", check=False).returncode == 0

    def cut(self, number):
        ip("link", "set", f"op{number}", "nomaster")

    def mend(self, number):
        ip("link", "set", f"op{number}", "master", "orch-peers0")

    def daemons(self):
        """Its daemons by the network that they are in."""
        found = {}
        for pid, words in command_lines():
            if pid not in self.others and os.path.basename(words[0]) in ("dockerd", "containerd"):
                found.setdefault(os.stat(f"/proc/{pid}/ns/net").st_ino, []).append((os.path.basename(words[0]), pid))
        return found

    def manager(self, number):
        return [pid for _, pid in self.daemons().get(os.stat(f"/run/netns/orch-peer{number}").st_ino, [])]

    def kill(self, number):
        pids = self.daemons()[os.stat(f"/run/netns/orch-peer{number}").st_ino]
        # Its containerd outlives it, as it does under systemd; swarm-up.sh starts both.
        for _, pid in pids:
            os.kill(int(pid), signal.SIGKILL)

    def revive(self, _):
        self.up()
        until("all are managers", self.is_whole)

    def close(self):
        for stack in self.call(1, "stack", "ls", "--format", "{{.Name}}", check=False).stdout.decode().split():
            self.call(1, "stack", "rm", stack, check=False)
        for number in HOSTS:
            running = self.call(number, "ps", "-aq", check=False).stdout.decode().split()
            if running:
                self.call(number, "rm", "-f", *running, check=False)
        subprocess.run([self.peer / "down.sh"], stdout=subprocess.DEVNULL)
        if self.filtered and self.switch.exists():
            self.switch.write_text(self.filtered)
