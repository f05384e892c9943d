//! `--change`: single Dockerfile instructions applied to an image's configuration.

use super::spec::{Empty, Healthcheck, ImageConfig};

/// One instruction, understood.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Default command.
    Cmd(Vec<String>),
    /// Entry point.
    Entrypoint(Vec<String>),
    /// Environment variables.
    Env(Vec<(String, String)>),
    /// Working directory, relative to the one before.
    Workdir(String),
    /// `user[:group]`.
    User(String),
    /// `port/protocol`.
    Expose(Vec<String>),
    /// Labels.
    Label(Vec<(String, String)>),
    /// Anonymous volumes.
    Volume(Vec<String>),
    /// Name or number.
    StopSignal(String),
    /// Health check.
    Healthcheck(Healthcheck),
}

/// Why an instruction cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid change {instruction:?}: {reason}")]
pub struct ChangeError {
    /// As given.
    pub instruction: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Change {
    /// Parses `INSTRUCTION arguments`.
    pub fn parse(text: &str) -> Result<Self, ChangeError> {
        Self::parse_parts(text.trim()).map_err(|reason| ChangeError { instruction: text.to_owned(), reason })
    }

    fn parse_parts(text: &str) -> Result<Self, String> {
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err("it has no argument".into());
        }
        Ok(match word.to_ascii_uppercase().as_str() {
            "CMD" => Self::Cmd(command(rest)?),
            "ENTRYPOINT" => Self::Entrypoint(command(rest)?),
            "ENV" => Self::Env(pairs(rest)?),
            "LABEL" => Self::Label(pairs(rest)?),
            "WORKDIR" => Self::Workdir(single(rest)?),
            "USER" => Self::User(single(rest)?),
            "STOPSIGNAL" => Self::StopSignal(single(rest)?),
            "EXPOSE" => Self::Expose(words(rest)?.iter().map(|port| exposed(port)).collect::<Result<_, _>>()?),
            "VOLUME" => Self::Volume(if rest.starts_with('[') { json_list(rest)? } else { words(rest)? }),
            "HEALTHCHECK" => Self::Healthcheck(healthcheck(rest)?),
            other => {
                return Err(format!(
                    "{other} cannot be changed; possible are CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR"
                ));
            }
        })
    }

    /// Applies it.
    pub fn apply(self, config: &mut ImageConfig) {
        match self {
            Self::Cmd(args) => config.cmd = args,
            Self::Entrypoint(args) => config.entrypoint = args,
            Self::Env(pairs) => {
                for (name, value) in pairs {
                    let prefix = format!("{name}=");
                    let entry = format!("{name}={value}");
                    match config.env.iter_mut().find(|old| old.starts_with(&prefix)) {
                        Some(old) => *old = entry,
                        None => config.env.push(entry),
                    }
                }
            }
            Self::Label(pairs) => config.labels.extend(pairs),
            Self::Workdir(path) => {
                config.working_dir = if path.starts_with('/') || config.working_dir.is_empty() {
                    clean(&path)
                } else {
                    clean(&format!("{}/{path}", config.working_dir))
                }
            }
            Self::User(user) => config.user = user,
            Self::StopSignal(signal) => config.stop_signal = signal,
            Self::Expose(ports) => config.exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {}))),
            Self::Volume(paths) => config.volumes.extend(paths.into_iter().map(|path| (path, Empty {}))),
            Self::Healthcheck(check) => config.healthcheck = Some(check),
        }
    }
}

/// An absolute path without `.`, `..` and double slashes.
fn clean(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// A JSON list of strings, or a line for the shell.
fn command(rest: &str) -> Result<Vec<String>, String> {
    if rest.starts_with('[')
        && let Ok(args) = json_list(rest)
    {
        return Ok(args);
    }
    // As Docker: what looks like a list but is none is a line for the shell.
    Ok(vec!["/bin/sh".into(), "-c".into(), rest.into()])
}

fn json_list(rest: &str) -> Result<Vec<String>, String> {
    serde_json::from_str(rest).map_err(|error| format!("not a JSON list of strings: {error}"))
}

/// The words of a line: blanks separate, quotes group, a backslash takes the next character as it is.
fn words(rest: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = rest.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (Some(open), close) if open == close => quote = None,
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or("it ends in a backslash")?;
                // Within double quotes a backslash only escapes what would end or begin something.
                if quote.is_some() && !matches!(next, '"' | '\\' | '$') {
                    word.get_or_insert_default().push('\\');
                }
                word.get_or_insert_default().push(next);
            }
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            (_, other) => word.get_or_insert_default().push(other),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed".into());
    }
    words.extend(word);
    Ok(words)
}

fn single(rest: &str) -> Result<String, String> {
    match words(rest)?.as_slice() {
        [word] => Ok(word.clone()),
        _ => Err("it takes one argument".into()),
    }
}

/// `name=value …`, or the old `name value with blanks`.
fn pairs(rest: &str) -> Result<Vec<(String, String)>, String> {
    let first = rest.split_whitespace().next().unwrap_or_default();
    if !first.contains('=') {
        let (name, value) = rest.split_once(char::is_whitespace).ok_or("it has a name but no value")?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words(rest)?
        .iter()
        .map(|word| match word.split_once('=') {
            Some(("", _)) => Err(format!("{word:?} has no name")),
            Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
            None => Err(format!("{word:?} has no value")),
        })
        .collect()
}

fn exposed(port: &str) -> Result<String, String> {
    let (range, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
    let (first, last) = range.split_once('-').unwrap_or((range, range));
    let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => {}
        _ => return Err(format!("{port:?} is no port or range of ports")),
    }
    let protocol = protocol.to_ascii_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("{protocol:?} is no protocol; possible are tcp, udp, sctp"));
    }
    Ok(format!("{range}/{protocol}"))
}

/// `NONE`, or `[--option=value …] CMD command`.
fn healthcheck(mut rest: &str) -> Result<Healthcheck, String> {
    let mut check = Healthcheck::default();
    while let Some(option) = rest.strip_prefix("--") {
        let (option, after) = option.split_once(char::is_whitespace).ok_or("it has no command")?;
        let (name, value) = option.split_once('=').ok_or_else(|| format!("--{option} has no value"))?;
        match name {
            "interval" => check.interval = duration(value)?,
            "timeout" => check.timeout = duration(value)?,
            "start-period" => check.start_period = duration(value)?,
            "start-interval" => check.start_interval = duration(value)?,
            "retries" => check.retries = value.parse().map_err(|_| format!("{value:?} is no number of retries"))?,
            other => return Err(format!("--{other} is no option of a health check")),
        }
        rest = after.trim_start();
    }
    if rest.eq_ignore_ascii_case("NONE") {
        check.test = vec!["NONE".into()];
        return Ok(check);
    }
    let line = match rest.split_once(char::is_whitespace) {
        Some((word, line)) if word.eq_ignore_ascii_case("CMD") => line.trim(),
        _ => return Err("a health check is NONE or CMD and a command".into()),
    };
    check.test = match line.starts_with('[').then(|| json_list(line).ok()).flatten() {
        Some(args) => std::iter::once("CMD".to_owned()).chain(args).collect(),
        None => vec!["CMD-SHELL".into(), line.into()],
    };
    Ok(check)
}

/// Go's durations (`1m30s`, `500ms`) in nanoseconds.
fn duration(text: &str) -> Result<u64, String> {
    let bad = || format!("{text:?} is no duration such as 1m30s or 500ms");
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        total += number
            * match &rest[..unit] {
                "ns" => 1.0,
                "us" | "µs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(bad()),
            };
        rest = &rest[unit..];
    }
    // Docker's bound: a positive int64 of nanoseconds.
    if text.is_empty() || !(0.0..9.2e18).contains(&total) { Err(bad()) } else { Ok(total as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> serde_json::Value {
        let mut config = ImageConfig::default();
        changes.iter().for_each(|change| Change::parse(change).unwrap().apply(&mut config));
        serde_json::to_value(config).unwrap()
    }

    #[test]
    fn instructions_become_the_configuration_that_docker_makes_of_them() {
        let config = applied(&[
            r#"CMD ["nginx", "-g", "daemon off;"]"#,
            "entrypoint /start --now",
            r#"ENV A=1 B="two words" C=a\ b"#,
            "ENV D four five",
            "ENV A=2",
            "WORKDIR /srv",
            "WORKDIR app/../www",
            "USER 33:33",
            "EXPOSE 80 443/tcp 53/UDP 8000-8010",
            r#"LABEL maintainer="me" x=1"#,
            r#"VOLUME ["/data"]"#,
            "VOLUME /a /b",
            "STOPSIGNAL SIGQUIT",
            "HEALTHCHECK --interval=1m30s --timeout=500ms --retries=3 CMD curl -f http://localhost/ || exit 1",
        ]);
        assert_eq!(
            config,
            serde_json::json!({
                "User": "33:33",
                "ExposedPorts": {"80/tcp": {}, "443/tcp": {}, "53/udp": {}, "8000-8010/tcp": {}},
                "Env": ["A=2", "B=two words", "C=a b", "D=four five"],
                "Entrypoint": ["/bin/sh", "-c", "/start --now"],
                "Cmd": ["nginx", "-g", "daemon off;"],
                "Healthcheck": {
                    "Test": ["CMD-SHELL", "curl -f http://localhost/ || exit 1"],
                    "Interval": 90_000_000_000_u64, "Timeout": 500_000_000, "Retries": 3,
                },
                "Volumes": {"/data": {}, "/a": {}, "/b": {}},
                "WorkingDir": "/srv/www",
                "Labels": {"maintainer": "me", "x": "1"},
                "StopSignal": "SIGQUIT",
            })
        );
        assert_eq!(applied(&["HEALTHCHECK NONE"])["Healthcheck"]["Test"], serde_json::json!(["NONE"]));
        assert_eq!(applied(&["HEALTHCHECK CMD [\"a\"]"])["Healthcheck"]["Test"], serde_json::json!(["CMD", "a"]));
    }

    #[test]
    fn an_instruction_that_means_nothing_is_refused() {
        for bad in [
            "",
            "CMD",
            "RUN x",
            "FROM x",
            "EXPOSE http",
            "EXPOSE 0",
            "EXPOSE 9-8",
            "EXPOSE 1/icmp",
            "ENV A",
            "LABEL =x",
            "ENV A=1 B",
            "ENV A=\"x",
            "USER a b",
            "HEALTHCHECK",
            "HEALTHCHECK curl",
            "HEALTHCHECK --interval=x CMD a",
            "HEALTHCHECK --foo=1 CMD a",
            "VOLUME [1]",
        ] {
            assert!(Change::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
