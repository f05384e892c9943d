//! Image references: `[registry/]path[:tag][@digest]`.
//!
//! Matching uses the canonical form (`docker.io/library/busybox:latest`); what is shown is what the user wrote.

use std::fmt;

use super::digest::{Digest, DigestError};

/// Registry's rule for the length of a name; the tag and the digest are counted too, which is stricter and simpler.
const MAX_REFERENCE: usize = 255;

/// A parsed reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    written_name: String,
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is no reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {reference:?}: {reason}")]
pub struct ReferenceError {
    /// What was given (its beginning, when it is very long).
    pub reference: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Reference {
    /// Parses a reference by the grammar of the distribution project.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        Self::parse_parts(text)
            .map_err(|reason| ReferenceError { reference: text.chars().take(MAX_REFERENCE + 1).collect(), reason })
    }

    fn parse_parts(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty".into());
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(Digest::parse(digest).map_err(|error: DigestError| error.to_string())?))
            }
            None => (text, None),
        };
        if rest.len() > MAX_REFERENCE {
            return Err(format!("it is longer than {MAX_REFERENCE} characters"));
        }
        // A colon after the last slash begins a tag; one before it belongs to the registry's port.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path),
            _ => ("docker.io", name),
        };
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        check_registry(registry)?;
        path.split('/').try_for_each(check_component)?;
        if Digest::from_hex(name).is_some() {
            return Err("64 hex digits are an image id, not a name".into());
        }
        let path =
            if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path.to_owned() };
        Ok(Self {
            written_name: name.to_owned(),
            registry: registry.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry's host, `docker.io` when none was written.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path in the registry, with `library/` where Docker Hub wants it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag as written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, which wins over the tag.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The repository as written, without tag and digest.
    pub fn name(&self) -> &str {
        &self.written_name
    }

    /// `registry/path`.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.registry, self.path)
    }

    /// `registry/path:tag`, with `latest` when no tag was written: the key a name is stored and found by.
    pub fn canonical(&self) -> String {
        format!("{}/{}:{}", self.registry, self.path, self.tag.as_deref().unwrap_or("latest"))
    }

    /// What a listing shows: the name as written and its tag.
    pub fn display(&self) -> String {
        format!("{}:{}", self.written_name, self.tag.as_deref().unwrap_or("latest"))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written_name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl std::str::FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// The distribution project's test: a first component is a registry when it could not be a Docker Hub user.
fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(|c| c.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), String> {
    let (host, port) = match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    };
    if port.is_some_and(|port| port.is_empty() || port.len() > 5 || !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err(format!("{registry:?} has a port that is no number"));
    }
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let good = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        }),
    };
    if good { Ok(()) } else { Err(format!("{host:?} is no host name")) }
}

fn check_component(component: &str) -> Result<(), String> {
    if component.is_empty() {
        return Err("a part of the name is empty".into());
    }
    if component.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("a repository's name is lower case".into());
    }
    // Runs of letters and digits, separated by one dot, one or two underscores, or any number of dashes.
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let mut at = 0;
    loop {
        let run = bytes[at..].iter().take_while(|b| alphanumeric(**b)).count();
        if run == 0 {
            return Err(format!("{component:?} is not made of a-z, 0-9 and single separators . _ __ -"));
        }
        at += run;
        if at == bytes.len() {
            return Ok(());
        }
        let separator = bytes[at..].iter().take_while(|b| !alphanumeric(**b)).count();
        match &bytes[at..at + separator] {
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|b| *b == b'-') => {}
            _ => return Err(format!("{component:?} is not made of a-z, 0-9 and single separators . _ __ -")),
        }
        at += separator;
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = (1..=128).contains(&tag.len())
        && tag.bytes().enumerate().all(|(at, b)| word(b) || (at > 0 && (b == b'.' || b == b'-')));
    if good { Ok(()) } else { Err(format!("the tag {tag:?} is not 1 to 128 of A-Z a-z 0-9 _ . -")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_matched_in_canonical_form_and_shown_as_written() {
        for (written, canonical, display) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("docker.io/busybox", "docker.io/library/busybox:latest", "docker.io/busybox:latest"),
            (
                "index.docker.io/library/busybox",
                "docker.io/library/busybox:latest",
                "index.docker.io/library/busybox:latest",
            ),
            ("me/app", "docker.io/me/app:latest", "me/app:latest"),
            ("localhost/app:x", "localhost/app:x", "localhost/app:x"),
            ("localhost:5000/a/b__c", "localhost:5000/a/b__c:latest", "localhost:5000/a/b__c:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            ("ghcr.io/o/r:V1.0-rc_2", "ghcr.io/o/r:V1.0-rc_2", "ghcr.io/o/r:V1.0-rc_2"),
        ] {
            let reference = Reference::parse(written).unwrap();
            assert_eq!((reference.canonical().as_str(), reference.display().as_str()), (canonical, display));
            assert_eq!(reference.to_string(), written);
        }
    }

    #[test]
    fn a_digest_is_kept_beside_the_tag() {
        let digest = Digest::of(b"x");
        let reference = Reference::parse(&format!("a/b:t@{digest}")).unwrap();
        assert_eq!((reference.tag(), reference.digest()), (Some("t"), Some(digest)));
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let long = "a".repeat(256);
        let id = "a".repeat(64);
        for bad in [
            "",
            ":",
            "@",
            "a:",
            "a@",
            "a@sha256:zz",
            "a@md5:00",
            "A",
            "a//b",
            "/a",
            "a/",
            "a b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "..",
            "../x",
            "a/../b",
            "a:b:c",
            "host:port/a",
            "a:\u{e9}",
            "a.-b/c",
            &long,
            &id,
            "ex ample.com/a",
            "[::zz]/a",
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?} was taken for a reference");
        }
    }
}
