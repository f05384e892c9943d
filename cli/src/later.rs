//! Words that people know from elsewhere, or from the plan of orch's command line, and that are not carried out: each is answered with
//! what there is instead, rather than as a typing mistake.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::exit::{Exit, Failure};

const REGISTRY: &str = "there is no registry client yet";
const FETCH: &str =
    "bring images as archives: `orch image load -i FILE`, or `orch image import FILE NAME` for a root file system";

/// Group (empty: the first word), word, what is not there, what there is.
const WORDS: &[(&str, &str, &str, &str)] = &[
    ("", "build", "orch cannot build images yet", "build elsewhere and `orch image load` the result"),
    ("image", "build", "orch cannot build images yet", "build elsewhere and `orch image load` the result"),
    ("", "pull", REGISTRY, FETCH),
    ("image", "pull", REGISTRY, FETCH),
    ("", "push", REGISTRY, "write images with `orch image save`"),
    ("image", "push", REGISTRY, "write images with `orch image save`"),
    ("", "login", REGISTRY, FETCH),
    ("", "logout", REGISTRY, FETCH),
    (
        "",
        "watch",
        "orch does not follow changes of source files yet",
        "run `orch up -d` after a change: only what changed is made anew",
    ),
    (
        "container",
        "create",
        "there is no `container create`",
        "`orch container run -d` makes and starts; `orch create` makes a stack's",
    ),
    (
        "container",
        "diff",
        "orch does not compare a container with its image yet",
        "`orch container cp NAME:/ -` writes its files as a tar",
    ),
    (
        "container",
        "export",
        "there is no `container export` yet",
        "`orch container cp NAME:/ -` writes its files as a tar",
    ),
    (
        "container",
        "commit",
        "orch does not make images of containers yet",
        "`orch container cp NAME:/ FILE` and `orch image import FILE NAME`",
    ),
    (
        "container",
        "rename",
        "orch does not rename containers yet",
        "give the name when it is made: `container run --name`, or `container_name`",
    ),
    (
        "container",
        "update",
        "orch does not change a container's limits while it runs yet",
        "change the stack file and run `orch up -d`",
    ),
    (
        "cluster",
        "ca",
        "the cluster's authority cannot be changed yet",
        "certificates of nodes renew themselves; `cluster token --rotate` changes tokens",
    ),
    (
        "cluster",
        "recover",
        "there is no `cluster recover` yet",
        "a majority of the managers must come back; `orch cluster status` says which are missing",
    ),
    (
        "cluster",
        "backup",
        "there is no `cluster backup` yet",
        "stop the agent of a manager and copy its data directory",
    ),
    (
        "cluster",
        "restore",
        "there is no `cluster restore` yet",
        "put a manager's data directory back while no agent runs there",
    ),
    (
        "system",
        "events",
        "the machine's events are those of all stacks",
        "run `orch events` outside of a stack's folder",
    ),
    ("", "compose", "orch is not Docker's command", "leave the word out: `orch up`, `orch ps`, `orch down`"),
    (
        "",
        "stack",
        "orch is not Docker's command",
        "stacks have the first words: `orch up`, `orch ls`, `orch ps`, `orch down`",
    ),
    ("", "swarm", "orch is not Docker's command", "see `orch cluster --help`"),
];

const HIERARCHY: &str = "cgroup v2 has nothing like it";

/// Options in the same way: the option, what is not there, what there is.
const OPTIONS: &[(&str, &str, &str)] = &[
    ("--pull", REGISTRY, FETCH),
    ("--quiet-pull", REGISTRY, "leave the option out: nothing is pulled"),
    ("--disable-content-trust", REGISTRY, "leave the option out: nothing is pulled"),
    (
        "--platform",
        "orch runs the image that has the name",
        "give the image of another platform another name: `orch image tag`",
    ),
    ("--build", "orch cannot build images yet", "build elsewhere and `orch image load` the result"),
    ("--attach", "output and errors are always attached, or with `-d` not", "`-i` keeps standard input open"),
    ("--link", "containers find each other by name", "`orch network create NAME`, and `--network NAME` for both"),
    ("--gpus", "orch hands no GPUs out yet", "`--device /dev/…` passes a device on"),
    ("--runtime", "orch is its own runtime", "leave the option out"),
    ("--volume-driver", "there is no volume driver but `local`", "leave the option out"),
    (
        "--storage-opt",
        "the size of a container's own layer cannot be bounded yet",
        "`--read-only` and `--tmpfs PATH:size=…` bound what it writes",
    ),
    (
        "--use-api-socket",
        "orch does not hand its socket to containers yet",
        "`-v /run/orch/orch.sock:/run/orch/orch.sock` does, and makes it root of this host",
    ),
    ("--cpuset-mems", "orch does not bind memory to nodes yet", "`--cpuset-cpus` bounds processors"),
    ("--cpu-rt-period", HIERARCHY, "`--cpus` and `--cpu-shares` bound its time"),
    ("--cpu-rt-runtime", HIERARCHY, "`--cpus` and `--cpu-shares` bound its time"),
    ("--kernel-memory", HIERARCHY, "`--memory` counts it"),
    ("--memory-swappiness", HIERARCHY, "`--memory-swap` bounds swap"),
    ("--oom-kill-disable", HIERARCHY, "`--oom-score-adj` says who goes first"),
    ("--blkio-weight-device", "only the stack file has limits of single devices", "see `blkio_config` there"),
    ("--device-read-bps", "only the stack file has limits of single devices", "see `blkio_config` there"),
    ("--device-read-iops", "only the stack file has limits of single devices", "see `blkio_config` there"),
    ("--device-write-bps", "only the stack file has limits of single devices", "see `blkio_config` there"),
    ("--device-write-iops", "only the stack file has limits of single devices", "see `blkio_config` there"),
    ("--link-local-ip", "orch gives no link-local addresses", "`--ip` and `--ip6` choose addresses"),
    (
        "--autolock",
        "`cluster init --autolock` is not there yet",
        "logs and snapshots are encrypted all the same, by a key beside them",
    ),
    ("--data-addr", "`--data-addr` is not there yet", "tunnels go where the managers go: `--advertise-addr`"),
    (
        "--watch",
        "orch does not follow changes of source files yet",
        "run `orch up -d` after a change: only what changed is made anew",
    ),
];

/// Checks a `--pull`: there is nowhere to fetch images from.
///
/// # Errors
/// For what would need a registry.
pub(crate) fn check_pull(when: Option<&str>) -> Result<(), Failure> {
    match when {
        None | Some("missing" | "never" | "if_not_present") => Ok(()),
        Some(other) => Err(Failure::new(Exit::Failed, format!("--pull {other}: {REGISTRY}")).hint(FETCH)),
    }
}

/// What to say of a command line that clap did not understand, when it is one of these.
pub(crate) fn explain(error: &clap::Error, arguments: &[String]) -> Option<Failure> {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let (what, instead) = match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let word = text(ContextKind::InvalidSubcommand)?;
            let at = arguments.iter().position(|argument| *argument == word)?;
            let group = |name: &str| arguments[..at].iter().any(|argument| argument == name);
            let known = WORDS.iter().filter(|known| known.1 == word);
            let found = known.max_by_key(|known| !known.0.is_empty() && group(known.0))?;
            (found.2, found.3)
        }
        ErrorKind::UnknownArgument => {
            let option = text(ContextKind::InvalidArg)?;
            OPTIONS.iter().find(|known| known.0 == option).map(|known| (known.1, known.2))?
        }
        _ => return None,
    };
    Some(Failure::new(Exit::Failed, what).hint(instead))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar;

    fn said(line: &str) -> Option<String> {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let error = grammar::parse(&arguments).expect_err("it is not understood");
        explain(&error, &arguments).map(|failure| failure.message)
    }

    #[test]
    fn what_is_not_there_yet_says_so_and_a_typing_mistake_is_one() {
        assert_eq!(said("orch build").as_deref(), Some("orch cannot build images yet"));
        assert_eq!(
            said("orch container update x").as_deref(),
            Some("orch does not change a container's limits while it runs yet")
        );
        assert_eq!(said("orch --host unix:///x image pull alpine").as_deref(), Some(REGISTRY));
        assert!(said("orch cluster init --autolock").is_some());
        assert_eq!(said("orch bulid"), None);
        assert_eq!(said("orch up --bulid"), None);
    }

    #[test]
    fn no_word_is_kept_here_that_has_become_a_command() {
        for (group, word, ..) in WORDS {
            let mut command = grammar::command();
            command.build();
            let parent = if group.is_empty() { Some(&mut command) } else { command.find_subcommand_mut(group) };
            let parent = parent.unwrap_or_else(|| panic!("there is no {group}"));
            assert!(parent.find_subcommand(word).is_none(), "{group} {word} is there");
        }
    }
}
