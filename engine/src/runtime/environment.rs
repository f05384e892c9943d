//! A process's environment and where its command may be.

use super::prepare::PrepareError;
use crate::config::ProcessConfig;

/// What Docker and every image built for it assume.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Defaults, then the configuration; the last of a name wins, a name without `=` removes it.
pub(super) fn merge(config: &ProcessConfig, hostname: &str, home: &str) -> Result<Vec<String>, PrepareError> {
    let mut merged: Vec<(String, String)> =
        vec![("PATH".to_owned(), DEFAULT_PATH.to_owned()), ("HOSTNAME".to_owned(), hostname.to_owned())];
    if config.tty {
        merged.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    for entry in &config.env {
        let (name, value) = entry.split_once('=').map_or((entry.as_str(), None), |(name, value)| (name, Some(value)));
        if name.is_empty() || entry.contains('\0') {
            return Err(PrepareError::invalid("environment", format!("{entry:?} is not of the form KEY=value")));
        }
        set(&mut merged, name, value);
    }
    if merged.iter().all(|(name, value)| name != "HOME" || value.is_empty()) {
        set(&mut merged, "HOME", Some(home));
    }
    Ok(merged.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

fn set(merged: &mut Vec<(String, String)>, name: &str, value: Option<&str>) {
    match (merged.iter().position(|(known, _)| known == name), value) {
        (Some(index), Some(value)) => merged[index].1 = value.to_owned(),
        (Some(index), None) => drop(merged.remove(index)),
        (None, Some(value)) => merged.push((name.to_owned(), value.to_owned())),
        (None, None) => {}
    }
}

/// The paths that execvp(3) would try: the command itself when it has a slash, else one in each directory of PATH.
pub(super) fn candidates(command: &str, env: &[String]) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    let path = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or(DEFAULT_PATH);
    // An empty element is the working directory; a relative one would be looked up there too, which Docker refuses.
    path.split(':')
        .filter(|directory| directory.starts_with('/'))
        .map(|directory| format!("{}/{command}", directory.trim_end_matches('/')))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(env: &[&str]) -> ProcessConfig {
        ProcessConfig { env: env.iter().map(|entry| (*entry).to_owned()).collect(), ..ProcessConfig::default() }
    }

    #[test]
    fn the_last_of_a_name_wins_and_a_bare_name_removes() {
        let merged = merge(&config(&["A=1", "B=2", "A=3", "B"]), "box", "/root").unwrap();
        assert_eq!(merged, [&format!("PATH={DEFAULT_PATH}"), "HOSTNAME=box", "A=3", "HOME=/root"]);
    }

    #[test]
    fn an_empty_home_is_replaced() {
        let merged = merge(&config(&["HOME="]), "box", "/home/a").unwrap();
        assert!(merged.contains(&"HOME=/home/a".to_owned()));
    }

    #[test]
    fn a_command_with_a_slash_is_not_looked_up() {
        assert_eq!(candidates("./run", &[]), ["./run"]);
        assert_eq!(candidates("run", &["PATH=/a/:relative::/b".to_owned()]), ["/a/run", "/b/run"]);
    }
}
