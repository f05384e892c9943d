"""The engines that are compared: how each is called, and which processes are its own."""
import json, os, re, shutil, subprocess, sys, time
from pathlib import Path


class Side:
    def __init__(self, name, command, env=None):
        self.name, self.command, self.env = name, command, dict(os.environ, **(env or {}))
        # Stacks that are up: an interrupted run takes them down.
        self.up = []

    def down(self):
        for stack in list(self.up):
            stack.run("down", "-t", "0", check=False)

    def run(self, *arguments, check=True, **more):
        done = subprocess.run([*self.command, *map(str, arguments)], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        if check and done.returncode:
            said = done.stderr.decode(errors="replace")[-2000:]
            sys.exit(f"{self.name} {' '.join(arguments)}: exit code {done.returncode}\n{said}")
        return done

    def time(self, *arguments, **more):
        """Milliseconds of the whole command."""
        began = time.perf_counter()
        self.run(*arguments, **more)
        return (time.perf_counter() - began) * 1000

    def import_image(self, tar, name):
        with open(tar, "rb") as stream:
            self.run(*self.import_verb, "-", f"{name}:latest", stdin=stream)

    def stack(self, work, content):
        return Stack(self, work, content)


class Stack:
    """One stack file on one side; Docker reads it from its standard input, for its client may live in another root."""

    def __init__(self, side, work, content):
        self.side, self.text = side, json.dumps(content).encode()
        self.file = Path(work) / f"{content['name']}.json"
        self.file.write_bytes(self.text)

    def note(self, verb):
        if verb == "up":
            self.side.up.append(self)
        elif verb == "down" and self in self.side.up:
            self.side.up.remove(self)

    def run(self, *arguments, check=True):
        self.note(arguments[0])
        return self.side.run(*self.verb(), *arguments, input=self.text, check=check)

    def time(self, *arguments):
        self.note(arguments[0])
        return self.side.time(*self.verb(), *arguments, input=self.text)

    def verb(self):
        return self.side.stack_verb(self.file)

    def pid(self, service):
        return self.side.pid_of(self, service)

    def exec(self, service, *command):
        return self.side.exec_in(self, service, command)


class Orch(Side):
    run_verb = ("container", "run")
    import_verb = ("image", "import")

    def __init__(self, repo, work):
        binary = os.environ.get("ORCH") or subprocess.check_output(["bash", "-c", f". {repo}/tests/paths; echo $ORCH"], text=True).strip()
        self.folder = str(work / "run")
        os.mkdir(self.folder)
        # /run is a tmpfs on every distribution, and what Docker's scripts give to their Docker.
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", self.folder], check=True)
        env = {"ORCH_DATA_DIR": str(work / "data"), "ORCH_RUN_DIR": self.folder, "ORCH_INSTANCE": "bench"}
        super().__init__("orch", [binary], env)

    def stack_verb(self, file):
        return ("-f", str(file))

    def inspect(self, containers):
        return json.loads(self.run("container", "inspect", *containers).stdout)

    def start_times(self, containers):
        return [found["start_times"] for found in self.inspect(containers)]

    def pid_of(self, stack, service):
        return str(json.loads(stack.run("ps", "--format", "json", service).stdout.splitlines()[0])["pid"])

    def exec_in(self, stack, service, command):
        return stack.run("exec", "-T", service, *command, check=False)

    def processes(self):
        """The agent and the shims of this run: their command lines name its run directory."""
        found = {"daemon": [], "shims": []}
        for pid, words in command_lines():
            if any(word.startswith(self.folder) for word in words) and len(words) > 1:
                kind = {"agent": "daemon", "shim": "shims"}.get(words[1])
                if kind:
                    found[kind].append(pid)
        return found

    def close(self):
        self.down()
        for pid in self.processes()["daemon"]:
            os.kill(int(pid), 15)
            for _ in range(500):
                if not Path(f"/proc/{pid}").exists():
                    break
                time.sleep(0.02)
        subprocess.run(["umount", "-l", self.folder], check=False)


class Docker(Side):
    run_verb = ("run",)
    import_verb = ("import",)

    def __init__(self, peer):
        self.peer = peer
        self.others = {pid for pid, _ in command_lines()}
        subprocess.run([str(peer / "docker-up.sh")], check=True, stdout=subprocess.DEVNULL)
        super().__init__("docker", [str(peer / "docker.sh")])

    def stack_verb(self, _):
        return ("compose", "-f", "-")

    def container_of(self, stack, service):
        return stack.run("ps", "-q", service).stdout.decode().strip()

    def pid_of(self, stack, service):
        return self.run("inspect", "-f", "{{.State.Pid}}", self.container_of(stack, service)).stdout.decode().strip()

    def exec_in(self, stack, service, command):
        # Not by Compose, whose standard input is the stack file.
        return self.run("exec", self.container_of(stack, service), *command, check=False)

    def processes(self):
        """Its two daemons and its shims: those that came after it was asked to start."""
        found = {"daemon": [], "shims": []}
        for pid, words in command_lines():
            if pid not in self.others:
                name = os.path.basename(words[0])
                if name in ("dockerd", "containerd"):
                    found["daemon"].append(pid)
                elif name.startswith("containerd-shim"):
                    found["shims"].append(pid)
        return found

    def close(self):
        self.down()
        subprocess.run([str(self.peer / "down.sh")], stdout=subprocess.DEVNULL)


def command_lines():
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            if words[0]:
                yield entry.name, words


def memory_of(pid):
    """Proportional and resident memory in KiB."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0, 0
    return tuple(int(re.search(rf"^{key}:\s+(\d+)", text, re.M)[1]) for key in ("Pss", "Rss"))


def busybox_tree(tree):
    """A root file system with the host's busybox under all its names."""
    for folder in ("bin", "etc", "tmp", "proc", "sys", "dev"):
        (tree / folder).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    for applet in subprocess.check_output(["/bin/busybox", "--list"], text=True).split():
        if applet != "busybox":
            (tree / "bin" / applet).symlink_to("busybox")
    (tree / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    return tree


def tar_of(tree):
    tar = tree.with_suffix(".tar")
    subprocess.run(["tar", "-C", tree, "-cf", tar, "."], check=True)
    return tar
