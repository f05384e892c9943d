//! Values of the right form that no container can be started with: said here at their place in the file, instead of by a container
//! that fails, or that silently goes without.

use std::net::IpAddr;

use crate::check::suggest;
use crate::code;
use crate::model::{ByteSize, Duration};
use crate::node::{Node, Value};
use crate::problem::{Problem, Report};
use crate::span::Span;

/// What getrlimit(2) knows, by the names that Docker gives.
const LIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// signal(7), but for the real-time signals.
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];

/// Says what is impossible in the services of a stack.
pub(crate) fn refuse(report: &mut Report, stack: &Node) {
    for (name, entry) in stack.get("services").into_iter().flat_map(Node::entries) {
        let mut service = Service { report, name, node: &entry.node };
        service.addresses();
        service.environment();
        service.health();
        service.paths();
        service.limits();
        service.logging();
        service.signals();
        service.own_ids();
    }
}

struct Service<'a> {
    report: &'a mut Report,
    name: &'a str,
    node: &'a Node,
}

impl Service<'_> {
    fn bad(&mut self, what: &str, why: &str, span: Span, hint: &str) {
        let message = format!("{what} of service `{}`: {why}", self.name);
        self.report.add(Problem::error(code::BAD_VALUE, message).at(span, "").hint(hint));
    }

    fn addresses(&mut self) {
        for server in self.node.get("dns").map(Node::items).unwrap_or_default() {
            if let Some(text) = server.as_text().filter(|text| text.parse::<IpAddr>().is_err()) {
                let why = format!("`{text}` is not an address");
                self.bad("`dns`", &why, server.span, "name servers are given by their address, for example `9.9.9.9`");
            }
        }
        for (host, entry) in self.node.get("extra_hosts").into_iter().flat_map(Node::entries) {
            for address in entry.node.items() {
                let Some(text) = address.as_text() else { continue };
                let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
                if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
                    let why = format!("`{text}` is not an address for `{host}`");
                    self.bad(
                        "`extra_hosts`",
                        &why,
                        address.span,
                        "write an IP address, or `host-gateway` for the host's",
                    );
                }
            }
        }
        if let Some(mode) = self.node.get("network_mode").filter(|node| node.as_text() == Some("container:")) {
            self.bad("`network_mode`", "`container:` names no container", mode.span, "write `container:NAME`");
        }
    }

    fn environment(&mut self) {
        for (variable, entry) in self.node.get("environment").into_iter().flat_map(Node::entries) {
            if variable.is_empty() || variable.contains(['=', '\0']) {
                let why = format!("`{variable}` cannot be the name of a variable");
                self.bad("`environment`", &why, entry.key, "write NAME: VALUE or NAME=VALUE");
            }
        }
    }

    fn health(&mut self) {
        let Some(check) = self.node.some("healthcheck") else { return };
        let test = check.get("test");
        if let Some(test) = test
            && let [only] = test.items()
            && matches!(only.as_text(), Some("CMD" | "CMD-SHELL"))
        {
            self.bad("`healthcheck.test`", "there is no command", test.span, "write `[CMD, program, argument]`");
        }
        for key in ["interval", "timeout", "start_period", "start_interval"] {
            self.not_negative(&format!("`healthcheck.{key}`"), check.get(key));
        }
        self.not_negative("`stop_grace_period`", self.node.get("stop_grace_period"));
    }

    fn not_negative(&mut self, what: &str, node: Option<&Node>) {
        let Some((node, text)) = node.and_then(|node| Some((node, node.as_text()?))) else { return };
        if text.parse::<Duration>().is_ok_and(|duration| duration.as_nanos() < 0) {
            self.bad(what, &format!("`{text}` is less than nothing"), node.span, "write for example `10s`");
        }
    }

    fn paths(&mut self) {
        let absolute = "paths in a container begin with `/`";
        let (node, relative) = (self.node, |path: &str| !path.is_empty() && !path.starts_with('/'));
        for mount in node.get("volumes").map(Node::items).unwrap_or_default() {
            if let Some((target, text)) = text(mount, "target").filter(|(_, text)| relative(text)) {
                self.bad("`volumes`", &format!("the target `{text}` is relative"), target, absolute);
            }
        }
        for mount in node.get("tmpfs").map(Node::items).unwrap_or_default() {
            let path = mount.as_text().map(|text| text.split(':').next().unwrap_or_default());
            if let Some(path) = path.filter(|path| relative(path)) {
                self.bad("`tmpfs`", &format!("`{path}` is relative"), mount.span, absolute);
            }
        }
        for device in node.get("devices").map(Node::items).unwrap_or_default() {
            if let Some((target, path)) = text(device, "target").filter(|(_, path)| relative(path)) {
                // A CDI device has no path on either side.
                if text(device, "source").is_some_and(|(_, source)| source.starts_with('/')) {
                    self.bad("`devices`", &format!("the target `{path}` is relative"), target, absolute);
                }
            }
            if let Some((span, letters)) =
                text(device, "permissions").filter(|(_, text)| text.contains(|c| !"rwm".contains(c)))
            {
                let why = format!("`{letters}` is not some of `rwm`");
                self.bad("`devices`", &why, span, "r reads, w writes, m makes nodes: `/dev/ttyS0:/dev/ttyS0:rw`");
            }
        }
        if let Some((span, path)) = text(node, "working_dir").filter(|(_, path)| relative(path)) {
            self.bad("`working_dir`", &format!("`{path}` is relative"), span, absolute);
        }
    }

    fn limits(&mut self) {
        for (limit, entry) in self.node.get("ulimits").into_iter().flat_map(Node::entries) {
            let what = format!("`ulimits.{limit}`");
            if !LIMITS.contains(&&**limit) {
                let hint =
                    suggest(limit, LIMITS.into_iter()).unwrap_or_else(|| format!("there are {}", LIMITS.join(", ")));
                self.bad(&what, "there is no such limit", entry.key, &hint);
            }
            let number = |key: &str| entry.node.get(key)?.scalar_text()?.parse::<i64>().ok();
            if let (Some(soft), Some(hard)) = (number("soft"), number("hard"))
                && hard != -1
                && (soft > hard || soft == -1)
            {
                let why = format!("the soft limit {soft} is above the hard limit {hard}");
                self.bad(&what, &why, entry.node.span, "-1 is no limit");
            }
        }
        let size = |key: &str| {
            Some((self.node.get(key)?, self.node.get(key)?.scalar_text()?.parse::<ByteSize>().ok()?.limit()?))
        };
        if let (Some((_, memory)), Some((node, both))) = (size("mem_limit"), size("memswap_limit"))
            && memory > 0
            && both > 0
            && both < memory
        {
            let why = format!("{both} bytes are less than the {memory} of `mem_limit`");
            self.bad("`memswap_limit`", &why, node.span, "it counts memory and swap together; -1 is no limit");
        }
    }

    fn logging(&mut self) {
        let Some(logging) = self.node.some("logging") else { return };
        if text(logging, "driver").is_some_and(|(_, driver)| !matches!(driver, "json-file" | "local")) {
            return;
        }
        let Some(options) = logging.get("options") else { return };
        let option = |key: &str| options.some(key).and_then(|node| Some((node.span, node.scalar_text()?)));
        if let Some((span, size)) = option("max-size").filter(|(_, size)| size.parse::<ByteSize>().is_err()) {
            let why = format!("`{size}` is not a size");
            self.bad("`logging.options.max-size`", &why, span, "write for example `10m`");
        }
        if let Some((span, files)) = option("max-file").filter(|(_, files)| !files.parse::<u32>().is_ok_and(|n| n > 0))
        {
            let why = format!("`{files}` is not a number of files");
            self.bad("`logging.options.max-file`", &why, span, "write 1 or more");
        }
    }

    /// What the engine refuses beside a user namespace of the container's own.
    fn own_ids(&mut self) {
        if text(self.node, "userns_mode").is_none_or(|(_, mode)| mode != "auto") {
            return;
        }
        let hint = "`userns_mode: host` goes together with it";
        if let Some(node) = self.node.get("privileged").filter(|node| node.scalar_text().as_deref() == Some("true")) {
            self.bad("`privileged`", "it does not go together with `userns_mode: auto`", node.span, hint);
        }
        for key in ["pid", "ipc"] {
            let shared = |mode: &str| mode == "host" || mode.contains(':');
            if let Some((span, mode)) = text(self.node, key).filter(|(_, mode)| shared(mode)) {
                let why = format!("`{mode}` does not go together with `userns_mode: auto`, whose ids are others");
                self.bad(&format!("`{key}`"), &why, span, hint);
            }
        }
    }

    fn signals(&mut self) {
        let Some((span, signal)) = text(self.node, "stop_signal") else { return };
        let upper = signal.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let real_time = |prefix: &str, sign: char| {
            name.strip_prefix(prefix).is_some_and(|rest| {
                rest.is_empty() || rest.strip_prefix(sign).is_some_and(|n| n.parse::<u8>().is_ok_and(|n| n <= 30))
            })
        };
        let number = signal.parse::<u8>().is_ok();
        if !number && !SIGNALS.contains(&name) && !real_time("RTMIN", '+') && !real_time("RTMAX", '-') {
            let hint = suggest(name, SIGNALS.into_iter()).unwrap_or_else(|| "write for example `SIGINT`".to_owned());
            self.bad("`stop_signal`", &format!("there is no signal `{signal}`"), span, &hint);
        }
    }
}

fn text<'n>(node: &'n Node, key: &str) -> Option<(Span, &'n str)> {
    let node = node.get(key).filter(|node| !matches!(node.value, Value::Invalid))?;
    Some((node.span, node.as_text()?))
}
