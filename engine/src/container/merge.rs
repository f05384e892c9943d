//! A request of the user and the defaults of an image become a complete configuration. A pure function: rules of Docker's
//! `container/merge` behaviour, observed from its documentation.
//!
//! What the user sets wins; lists are not concatenated except where they are sets (environment by key, labels, volumes). Setting the
//! entry point drops the image's command, because that was written for the image's own entry point.

use std::collections::BTreeMap;

use crate::config::{Mount, MountKind, ProcessConfig};
use crate::image::{Healthcheck, ImageConfig};

/// SIGTERM, when neither user nor image name a signal.
const DEFAULT_STOP_SIGNAL: i32 = 15;
/// PATH of a container whose image sets none: Docker's.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a user asks about the process, before the image's defaults. `None` = not said.
#[derive(Debug, Clone, Default)]
pub struct ContainerRequest {
    /// `Some(vec![])` clears the image's.
    pub entrypoint: Option<Vec<String>>,
    /// `Some(vec![])` clears the image's.
    pub command: Option<Vec<String>>,
    /// `KEY=value`; `KEY` alone removes the image's.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// `user[:group]`.
    pub user: Option<String>,
    /// By name (with or without SIG) or number.
    pub stop_signal: Option<String>,
    /// Replaces the image's, field by field where it leaves one out; `test: ["NONE"]` turns it off.
    pub healthcheck: Option<Healthcheck>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Mounts; the image's volumes are added where none has the same target.
    pub mounts: Vec<Mount>,
    /// With a terminal, TERM is set.
    pub tty: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct Merged {
    /// `args`, `env`, `cwd`, `user` and `tty` are set; the rest is default.
    pub process: ProcessConfig,
    /// Signal number.
    pub stop_signal: i32,
    /// `None` = none, or turned off.
    pub healthcheck: Option<Healthcheck>,
    /// The user's over the image's, without those of the image that are reserved.
    pub labels: BTreeMap<String, String>,
    /// The user's, and an anonymous volume for each path that the image declares.
    pub mounts: Vec<Mount>,
    /// Labels of the image that were ignored because they are in orch's or Compose's own name space.
    pub ignored_labels: Vec<String>,
}

/// Why a request and an image give no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// Neither says what to run.
    #[error("no command specified: the image has none, and none was given")]
    NoCommand,
    /// No such signal.
    #[error("unknown stop signal {0:?}")]
    Signal(String),
    /// An environment variable without a name, or with a NUL byte.
    #[error("invalid environment variable {0:?}")]
    Environment(String),
}

/// Merges. `volume_name` names the anonymous volumes (64 random hex digits in production).
///
/// # Errors
/// See [`MergeError`].
pub fn merge(
    request: &ContainerRequest,
    image: &ImageConfig,
    mut volume_name: impl FnMut() -> String,
) -> Result<Merged, MergeError> {
    let command = match (&request.entrypoint, &request.command) {
        (_, Some(command)) => command.clone(),
        (Some(_), None) => Vec::new(),
        (None, None) => image.cmd.clone(),
    };
    let mut args = request.entrypoint.clone().unwrap_or_else(|| image.entrypoint.clone());
    args.extend(command);
    if args.is_empty() || args[0].is_empty() {
        return Err(MergeError::NoCommand);
    }
    let signal = request.stop_signal.as_deref().filter(|s| !s.is_empty()).unwrap_or(&image.stop_signal);
    let stop_signal = match signal {
        "" => DEFAULT_STOP_SIGNAL,
        text => parse_signal(text).ok_or_else(|| MergeError::Signal(text.to_owned()))?,
    };
    let mut labels = BTreeMap::new();
    let mut ignored_labels = Vec::new();
    for (key, value) in &image.labels {
        // An image must not be able to pose as a part of someone's stack (CVE-2026-53488 and its kind).
        if is_reserved(key) {
            ignored_labels.push(key.clone());
        } else {
            labels.insert(key.clone(), value.clone());
        }
    }
    labels.extend(request.labels.clone());
    let mut mounts = request.mounts.clone();
    for path in image.volumes.keys() {
        let target = clean(path);
        if !mounts.iter().any(|mount| clean(&mount.target) == target) {
            let kind = MountKind::Volume { name: volume_name(), nocopy: false, subpath: String::new() };
            mounts.push(Mount { target, kind, read_only: false });
        }
    }
    let process = ProcessConfig {
        args,
        env: environment(request, image)?,
        cwd: request.working_dir.clone().filter(|d| !d.is_empty()).unwrap_or_else(|| image.working_dir.clone()),
        user: request.user.clone().filter(|u| !u.is_empty()).unwrap_or_else(|| image.user.clone()),
        tty: request.tty,
        ..ProcessConfig::default()
    };
    let healthcheck = healthcheck(request.healthcheck.as_ref(), image.healthcheck.as_ref());
    Ok(Merged { process, stop_signal, healthcheck, labels, mounts, ignored_labels })
}

/// PATH, TERM, the image's, the user's: the last of a name wins, a name without a value removes.
fn environment(request: &ContainerRequest, image: &ImageConfig) -> Result<Vec<String>, MergeError> {
    let mut merged: Vec<String> = vec![DEFAULT_PATH.to_owned()];
    if request.tty {
        merged.push("TERM=xterm".to_owned());
    }
    for entry in image.env.iter().chain(&request.env) {
        let (name, value) = entry.split_once('=').map_or((entry.as_str(), None), |(name, value)| (name, Some(value)));
        if name.is_empty() || entry.contains('\0') {
            return Err(MergeError::Environment(entry.clone()));
        }
        let same = |known: &String| known.split_once('=').is_some_and(|(known, _)| known == name);
        match (merged.iter().position(same), value) {
            (Some(at), Some(_)) => merged[at].clone_from(entry),
            (Some(at), None) => {
                merged.remove(at);
            }
            (None, Some(_)) => merged.push(entry.clone()),
            (None, None) => {}
        }
    }
    Ok(merged)
}

fn healthcheck(user: Option<&Healthcheck>, image: Option<&Healthcheck>) -> Option<Healthcheck> {
    let mut check = match (user, image) {
        (Some(user), Some(image)) => {
            let mut check = user.clone();
            if check.test.is_empty() {
                check.test.clone_from(&image.test);
            }
            for (mine, its) in [
                (&mut check.interval, image.interval),
                (&mut check.timeout, image.timeout),
                (&mut check.start_period, image.start_period),
                (&mut check.start_interval, image.start_interval),
            ] {
                if *mine == 0 {
                    *mine = its;
                }
            }
            if check.retries == 0 {
                check.retries = image.retries;
            }
            check
        }
        (Some(one), None) | (None, Some(one)) => one.clone(),
        (None, None) => return None,
    };
    if check.test.first().is_none_or(|kind| kind == "NONE") {
        return None;
    }
    check.test.shrink_to_fit();
    Some(check)
}

fn is_reserved(label: &str) -> bool {
    ["orch.", "com.docker.compose.", "com.docker.swarm."].iter().any(|prefix| label.starts_with(prefix))
}

/// `/a//b/./c/` → `/a/b/c`; `..` stays inside.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// A signal by name (`TERM`, `SIGTERM`, `RTMIN+3`) or number (1..=64).
pub fn parse_signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    // The kernel's real-time signals are 32..=64; the C library keeps the first two for itself, so RTMIN is 34.
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(34 + offset);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset = if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse::<i32>().ok()? };
        return (0..=30).contains(&offset).then_some(64 - offset);
    }
    format!("SIG{name}").parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn image() -> ImageConfig {
        ImageConfig { entrypoint: words("/entry -v"), cmd: words("serve now"), ..ImageConfig::default() }
    }

    fn args(entrypoint: Option<&str>, command: Option<&str>) -> Result<Vec<String>, MergeError> {
        let request = ContainerRequest {
            entrypoint: entrypoint.map(words),
            command: command.map(words),
            ..ContainerRequest::default()
        };
        merge(&request, &image(), String::new).map(|merged| merged.process.args)
    }

    #[test]
    fn a_command_replaces_the_images_command_and_an_entry_point_drops_it() {
        assert_eq!(args(None, None).unwrap(), words("/entry -v serve now"));
        assert_eq!(args(None, Some("stop")).unwrap(), words("/entry -v stop"));
        assert_eq!(args(Some("/other"), None).unwrap(), words("/other"));
        assert_eq!(args(Some("/other"), Some("x")).unwrap(), words("/other x"));
        assert_eq!(args(Some(""), Some("x")).unwrap(), words("x"));
        assert_eq!(args(None, Some("")).unwrap(), words("/entry -v"));
        assert_eq!(args(Some(""), None), Err(MergeError::NoCommand));
    }

    #[test]
    fn the_last_variable_of_a_name_wins_and_a_bare_name_removes() {
        let image = ImageConfig { cmd: words("x"), env: words("PATH=/image A=1 B=2 A=3"), ..ImageConfig::default() };
        let request = ContainerRequest { env: words("B C=4= UNKNOWN"), tty: true, ..ContainerRequest::default() };
        let merged = merge(&request, &image, String::new).unwrap();
        assert_eq!(merged.process.env, words("PATH=/image TERM=xterm A=3 C=4="));
        let request = ContainerRequest { env: vec!["=x".to_owned()], ..ContainerRequest::default() };
        assert_eq!(merge(&request, &image, String::new), Err(MergeError::Environment("=x".to_owned())));
    }

    #[test]
    fn labels_of_an_image_cannot_pose_as_orchs_own() {
        let label = |key: &str| (key.to_owned(), "1".to_owned());
        let image = ImageConfig {
            cmd: words("x"),
            labels: [label("orch.stack"), label("com.docker.compose.project"), label("maintainer")].into(),
            ..ImageConfig::default()
        };
        let request = ContainerRequest { labels: [label("orch.stack")].into(), ..ContainerRequest::default() };
        let merged = merge(&request, &image, String::new).unwrap();
        assert_eq!(merged.labels.keys().collect::<Vec<_>>(), ["maintainer", "orch.stack"]);
        assert_eq!(merged.ignored_labels, ["com.docker.compose.project", "orch.stack"]);
    }

    #[test]
    fn an_images_volume_becomes_an_anonymous_one_unless_something_is_mounted_there() {
        let mut image = ImageConfig { cmd: words("x"), ..ImageConfig::default() };
        image.volumes = [("/data/".to_owned(), Default::default()), ("/cache".to_owned(), Default::default())].into();
        let tmpfs =
            Mount { target: "/data".into(), kind: MountKind::Tmpfs { options: String::new() }, read_only: false };
        let request = ContainerRequest { mounts: vec![tmpfs.clone()], ..ContainerRequest::default() };
        let merged = merge(&request, &image, || "v1".to_owned()).unwrap();
        assert_eq!(merged.mounts[0], tmpfs);
        assert_eq!(merged.mounts[1].target, "/cache");
        assert!(matches!(&merged.mounts[1].kind, MountKind::Volume { name, .. } if name == "v1"));
        assert_eq!(merged.mounts.len(), 2);
    }

    #[test]
    fn signals_are_known_by_name_and_number() {
        for (text, number) in
            [("TERM", 15), ("SIGQUIT", 3), ("sigwinch", 28), ("9", 9), ("RTMIN+3", 37), ("SIGRTMAX", 64)]
        {
            assert_eq!(parse_signal(text), Some(number), "{text}");
        }
        for text in ["", "0", "65", "SIGNONE", "RTMIN+31", "-1"] {
            assert_eq!(parse_signal(text), None, "{text}");
        }
    }
}
