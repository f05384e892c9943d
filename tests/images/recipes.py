"""What each example image is made of. A recipe names Debian packages, what to leave out, and does what their scripts would do.

| image | layers | runs as |
|---|---|---|
| `busybox` | busybox | root |
| `nginx` | base, nginx | root, workers as www-data |
| `redis` | base, redis | redis |
| `postgres` | base, postgres | postgres |
| `orch-examples/web` | base, python, app | app |

`base` is the same bytes in four images, so it is stored and unpacked once.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from image import Tree

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parent.parent / "examples"
SUITE = "bookworm"
POSTGRES = "15"

# The one uid of each image's own user; 999 is what Docker's official redis and postgres images use, so volumes can move over.
SERVER_UID = 999
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"

# A small Debian: libc, the core tools, and busybox for the rest (ps, ip, wget, nslookup, vi …).
BASE = ["base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "grep", "libc-bin", "netbase", "sed"]

# Left out of every image: what installs packages, and what only maintainer scripts need. The ELF check of the build proves that
# no program misses a library by it.
NOT_NEEDED = {
    "adduser", "debconf", "debianutils", "dpkg", "gcc-12-base", "init-system-helpers", "iproute2", "libaudit-common", "libbpf1",
    "libc-l10n", "libcap2-bin", "libdebconfclient0", "libelf1", "libfile-find-rule-perl", "libgdbm-compat4", "libgdbm6",
    "libjson-perl", "libllvm14", "libnumber-compare-perl", "libpam-modules", "libpam-modules-bin", "libperl5.36", "libsemanage-common",
    "libsemanage2", "libsepol2", "libtext-glob-perl", "libxtables12", "libz3-4", "locales", "lsb-base", "mawk", "openssl", "passwd",
    "perl", "perl-base", "perl-modules-5.36", "postgresql-client-common", "postgresql-common", "sensible-utils", "ssl-cert",
    "sysvinit-utils", "tar", "ucf", "usrmerge",
}  # fmt: skip

# Paths that no container of the examples reads, as prefixes. Copyright files stay: licences ask for them.
NOT_READ = (
    "etc/cron.daily", "etc/init.d", "etc/logrotate.d", "etc/ufw", "usr/lib/python3.11/idlelib", "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data", "usr/lib/python3.11/tkinter", "usr/lib/systemd", "usr/lib/tmpfiles.d", "usr/lib/valgrind",
    f"usr/lib/postgresql/{POSTGRES}/lib/bitcode", f"usr/lib/postgresql/{POSTGRES}/lib/llvmjit.so",
    f"usr/lib/postgresql/{POSTGRES}/lib/llvmjit_types.bc", f"usr/lib/postgresql/{POSTGRES}/lib/pgxs",
    f"usr/share/postgresql/{POSTGRES}/man", "usr/share/apport", "usr/share/bash-completion", "usr/share/bug", "usr/share/doc-base", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man", "usr/share/menu",
    "usr/sbin/update-passwd", "usr/share/zoneinfo/posix", "usr/share/zoneinfo/right",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One layer: packages on top of those below, then what `finish` does to the tree so far."""

    name: str
    packages: list[str] = field(default_factory=list)
    finish: Callable[[Tree], None] = lambda tree: None


@dataclass(frozen=True)
class Recipe:
    """One image: its layers from the lowest, its settings, and the package whose version becomes a tag beside the suite."""

    name: str
    steps: list[Step]
    config: dict
    version_of: str | None = None


def own(path: str) -> str:
    """The text of a file beside this one."""
    return (HERE / "files" / path).read_text()


def add_user(tree: Tree, name: str, uid: int, home: str) -> None:
    """Adds a user and its group of the same name and number, with no password."""
    tree.file("etc/passwd", tree.entries["etc/passwd"][1].decode() + f"{name}:x:{uid}:{uid}::{home}:/usr/sbin/nologin\n")
    tree.file("etc/group", tree.entries["etc/group"][1].decode() + f"{name}:x:{uid}:\n")


def applet_links(tree: Tree, busybox: str, folder: str, applets: list[str]) -> None:
    """Links every busybox applet whose name no real program has taken."""
    taken = {path.rsplit("/", 1)[-1] for path in tree.entries if path.startswith(("bin/", "sbin/", "usr/bin/", "usr/sbin/"))}
    for applet in applets:
        # These would shadow or pretend what the image does not have.
        if applet not in taken and applet not in ("busybox", "dpkg", "dpkg-deb", "rpm", "rpm2cpio", "linuxrc", "init"):
            tree.link(f"{folder}/{applet}", busybox)


def finish_base(tree: Tree, applets: list[str]) -> None:
    """The users that base-passwd's script would make, and busybox behind every name that is still free."""
    tree.file("etc/passwd", tree.entries["usr/share/base-passwd/passwd.master"][1].replace(b":*:", b":x:"))
    tree.file("etc/group", tree.entries["usr/share/base-passwd/group.master"][1].replace(b":*:", b":x:"))
    tree.remove(("usr/share/base-passwd",))
    for name in ("hostname", "hosts", "resolv.conf"):
        tree.file(f"etc/{name}", "")
    # As base-files' script links them; PostgreSQL's programs look for their socket below /var/run.
    tree.remove(("var/run", "var/lock"))
    tree.link("var/run", "/run")
    tree.folder("run/lock", 0o1777)
    tree.link("var/lock", "/run/lock")
    tree.file("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
    applet_links(tree, "busybox", "usr/bin", applets)


def finish_busybox(tree: Tree, applets: list[str]) -> None:
    """A whole small userland out of one binary."""
    binary = tree.entries["usr/bin/busybox"][1]
    tree.entries.clear()
    for folder in ("bin", "dev", "etc", "home", "proc", "root", "sys", "usr", "usr/bin", "var", "var/tmp"):
        tree.folder(folder)
    for folder in ("tmp", "var/tmp"):
        tree.folder(folder, 0o1777)
    tree.file("bin/busybox", binary, 0o755)
    applet_links(tree, "busybox", "bin", applets)
    tree.file("etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
    tree.file("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")


def finish_nginx(tree: Tree) -> None:
    tree.remove(("etc/nginx/nginx.conf", "etc/nginx/sites-available", "etc/nginx/sites-enabled", "etc/default/nginx"))
    tree.file("etc/nginx/nginx.conf", own("nginx.conf"))
    tree.folder("etc/nginx/conf.d")
    tree.folder("var/lib/nginx")
    tree.folder("var/log/nginx")
    # nginx opens this before it has read its settings.
    tree.link("var/log/nginx/error.log", "/dev/stderr")
    tree.link("var/log/nginx/access.log", "/dev/stdout")
    tree.file("var/www/html/index.html", "<!doctype html><title>nginx</title><p>nginx from Debian's packages is running.</p>\n")


def finish_redis(tree: Tree) -> None:
    add_user(tree, "redis", SERVER_UID, "/data")
    tree.remove(("etc/redis", "etc/default/redis-server", "var/lib/redis", "var/log/redis"))
    tree.folder("etc/redis")
    tree.file("etc/redis/redis.conf", own("redis.conf"))
    tree.folder("data", 0o755, SERVER_UID, SERVER_UID)


def finish_postgres(tree: Tree) -> None:
    add_user(tree, "postgres", SERVER_UID, "/var/lib/postgresql")
    tree.folder("var/lib/postgresql", 0o755, SERVER_UID, SERVER_UID)
    tree.folder("var/lib/postgresql/data", 0o700, SERVER_UID, SERVER_UID)
    tree.folder("run/postgresql", 0o775, SERVER_UID, SERVER_UID)
    tree.folder("docker-entrypoint-initdb.d")
    tree.file("usr/local/bin/postgres-start", own("postgres-start"), 0o755)


def finish_app(tree: Tree) -> None:
    add_user(tree, "app", 1000, "/app")
    tree.folder("app")
    tree.file("app/app.py", (EXAMPLES / "web" / "app.py").read_text())


def recipes(applets: list[str]) -> list[Recipe]:
    """Every image of the examples; `applets` are the names that this suite's busybox answers to."""
    base = Step("Debian base", BASE, lambda tree: finish_base(tree, applets))
    return [
        Recipe(
            "busybox",
            [Step("busybox", ["busybox-static"], lambda tree: finish_busybox(tree, applets))],
            {"Env": ["PATH=/bin:/usr/bin"], "Cmd": ["sh"]},
            "busybox-static",
        ),
        Recipe(
            "nginx",
            [base, Step("nginx", ["nginx"], finish_nginx)],
            {
                "Env": [f"PATH={PATH}"],
                "Cmd": ["nginx", "-g", "daemon off;"],
                "ExposedPorts": {"80/tcp": {}},
                # nginx finishes the requests it has on QUIT and drops them on TERM.
                "StopSignal": "SIGQUIT",
            },
            "nginx",
        ),
        Recipe(
            "redis",
            [base, Step("redis", ["redis-server"], finish_redis)],
            {
                "Env": [f"PATH={PATH}"],
                "Cmd": ["redis-server", "/etc/redis/redis.conf"],
                "ExposedPorts": {"6379/tcp": {}},
                "User": "redis",
                "Volumes": {"/data": {}},
                "WorkingDir": "/data",
            },
            "redis-server",
        ),
        Recipe(
            "postgres",
            [base, Step("PostgreSQL", [f"postgresql-{POSTGRES}", "tzdata"], finish_postgres)],
            {
                "Env": [
                    f"PATH=/usr/lib/postgresql/{POSTGRES}/bin:{PATH}",
                    "PGDATA=/var/lib/postgresql/data",
                    "LANG=C.UTF-8",
                ],
                "Entrypoint": ["postgres-start"],
                "Cmd": ["postgres"],
                "ExposedPorts": {"5432/tcp": {}},
                "User": "postgres",
                # PostgreSQL's "fast" shutdown: sessions are cut off, nothing is lost. TERM would wait for every client to leave.
                "StopSignal": "SIGINT",
                "Volumes": {"/var/lib/postgresql/data": {}},
            },
            f"postgresql-{POSTGRES}",
        ),
        Recipe(
            "orch-examples/web",
            [
                base,
                Step("Python", ["python3", "python3-redis", "python3-psycopg2"]),
                Step("the example's application", [], finish_app),
            ],
            {
                # Unbuffered, so that a log line is out when it is written; the app may not write beside the library's files.
                "Env": [f"PATH={PATH}", "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1", "LANG=C.UTF-8"],
                "Cmd": ["python3", "/app/app.py"],
                "ExposedPorts": {"8000/tcp": {}},
                "User": "app",
                "WorkingDir": "/app",
                "Healthcheck": {
                    "Test": ["CMD", "python3", "/app/app.py", "--check"],
                    "Interval": 10_000_000_000,
                    "Timeout": 5_000_000_000,
                    "StartPeriod": 30_000_000_000,
                    "StartInterval": 500_000_000,
                    "Retries": 3,
                },
            },
        ),
    ]
