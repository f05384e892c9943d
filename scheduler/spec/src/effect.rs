//! Values that load and that orch does not act on, by name: what the tables of keys cannot say, because the key itself has an effect.

use crate::code;
use crate::node::{Node, Value};
use crate::problem::{Problem, Report};
use crate::span::Span;

/// Options of the log that orch keeps.
const LOG_OPTIONS: [&str; 2] = ["max-size", "max-file"];

/// Warns of each.
pub(crate) fn warn(report: &mut Report, stack: &Node) {
    let mut effects = Effects { report };
    for (name, entry) in named(stack, "services") {
        effects.namespaces(name, &entry.node);
        effects.lonely(name, &entry.node);
        effects.security(name, &entry.node);
        effects.logging(name, &entry.node);
        effects.mounts(name, &entry.node);
    }
    for (name, entry) in named(stack, "networks") {
        effects.network(name, &entry.node);
    }
}

fn named<'n>(node: &'n Node, section: &str) -> impl Iterator<Item = (&'n str, &'n crate::node::Entry)> + use<'n> {
    node.get(section).into_iter().flat_map(Node::entries).map(|(name, entry)| (&**name, entry))
}

fn text<'n>(node: &'n Node, key: &str) -> Option<(&'n str, Span)> {
    node.some(key).and_then(|node| Some((node.as_text().filter(|text| !text.is_empty())?, node.span)))
}

struct Effects<'r> {
    report: &'r mut Report,
}

impl Effects<'_> {
    fn none(&mut self, what: String, span: Span, why: &str) {
        self.report.add(Problem::warning(code::NOT_CARRIED_OUT, format!("{what} has no effect")).at(span, why));
    }

    fn namespaces(&mut self, service: &str, node: &Node) {
        for key in ["uts", "cgroup"] {
            if let Some((mode, span)) = text(node, key).filter(|(mode, _)| mode.contains(':')) {
                let why = "it gets one of its own; those of network, processes and IPC can be shared";
                self.none(format!("`{key}: {mode}` of service `{service}`"), span, why);
            }
        }
    }

    /// What means something beside another key only. Docker refuses both.
    fn lonely(&mut self, service: &str, node: &Node) {
        let limits = node.get("deploy").and_then(|deploy| deploy.get("resources")).and_then(|r| r.get("limits"));
        let limited = node.some("mem_limit").is_some() || limits.is_some_and(|limits| limits.some("memory").is_some());
        // 0 and -1 bound nothing.
        if let Some(swap) = node.some("memswap_limit").filter(|_| !limited)
            && swap.scalar_text().is_some_and(|size| !size.starts_with(['-', '0']))
        {
            let why = "it bounds memory and swap together: give `mem_limit` too";
            self.none(format!("`memswap_limit` of service `{service}`"), swap.span, why);
        }
        if text(node, "uts").is_some_and(|(mode, _)| mode == "host")
            && let Some(name) = node.some("hostname")
        {
            let why = "with `uts: host` it has the host's name";
            self.none(format!("`hostname` of service `{service}`"), name.span, why);
        }
    }

    fn security(&mut self, service: &str, node: &Node) {
        for item in node.get("security_opt").map(Node::items).unwrap_or_default() {
            let Some(option) = item.as_text() else { continue };
            let why = match option.split_once(['=', ':']).unwrap_or((option, "")) {
                ("no-new-privileges", "" | "true" | "false") | ("seccomp", _) | ("systempaths", "unconfined") => {
                    continue;
                }
                // What they turn off is not there.
                ("apparmor", "unconfined") | ("label", "disable") => continue,
                ("apparmor", _) => "orch loads no AppArmor profiles; the system-call filter and the capabilities hold",
                ("label", _) => "orch sets no SELinux labels; the system-call filter and the capabilities hold",
                _ => "orch knows `no-new-privileges`, `seccomp=FILE|unconfined` and `systempaths=unconfined`",
            };
            self.none(format!("`{option}` in `security_opt` of service `{service}`"), item.span, why);
        }
    }

    fn logging(&mut self, service: &str, node: &Node) {
        let Some(logging) = node.some("logging") else { return };
        if let Some((driver, span)) = text(logging, "driver")
            && !matches!(driver, "json-file" | "local" | "none")
        {
            let what = format!("`logging.driver: {driver}` of service `{service}`");
            self.none(
                what,
                span,
                "orch keeps output itself: `orch logs` shows it; there are `json-file`, `local` and `none`",
            );
            return;
        }
        for (option, entry) in logging.get("options").into_iter().flat_map(Node::entries) {
            if !LOG_OPTIONS.contains(&&**option) {
                let what = format!("`logging.options.{option}` of service `{service}`");
                self.none(what, entry.key, "there are `max-size` and `max-file`");
            }
        }
    }

    fn mounts(&mut self, service: &str, node: &Node) {
        for mount in node.get("volumes").map(Node::items).unwrap_or_default() {
            let target = text(mount, "target").map_or("", |(target, _)| target);
            let what = |key: &str| format!("`{key}` of the mount at {target} of service `{service}`");
            if let Some(bind) = mount.some("bind") {
                if let Some((_, span)) = text(bind, "selinux") {
                    self.none(what("selinux"), span, "orch sets no SELinux labels");
                }
                let read_only = matches!(mount.get("read_only").map(|node| &node.value), Some(Value::Bool(true)));
                if let Some(("writable", span)) = text(bind, "recursive").filter(|_| read_only) {
                    self.none(what("recursive: writable"), span, "mounts below it are read-only too");
                }
            }
            if let Some((kind @ ("image" | "cluster" | "npipe"), span)) = text(mount, "type") {
                let why = "`up` refuses this service; there are `bind`, `volume` and `tmpfs`";
                self.none(what(&format!("type: {kind}")), span, why);
            }
        }
    }

    fn network(&mut self, network: &str, node: &Node) {
        if matches!(node.get("external").map(|node| &node.value), Some(Value::Bool(true))) {
            return;
        }
        // Swarm's own name for what a stack's network becomes on several nodes; on one node a bridge is the same.
        if let Some((driver, span)) =
            text(node, "driver").filter(|(driver, _)| !matches!(*driver, "bridge" | "overlay"))
        {
            let what = format!("`driver: {driver}` of network `{network}`");
            self.none(what, span, "every network is a bridge of its own");
        }
        let ipam = node.some("ipam").and_then(|ipam| text(ipam, "driver"));
        if let Some((driver, span)) = ipam.filter(|(driver, _)| *driver != "default") {
            let what = format!("`ipam.driver: {driver}` of network `{network}`");
            self.none(what, span, "orch chooses addresses itself");
        }
    }
}
