//! Somebody who calls a host from outside, with some certificate or none: what a stranger with curl sees.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::host::Host;
use crate::machine::Place;
use crate::tidy::repository;

/// A row of the table of routes, as its source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The method.
    pub method: String,
    /// The path with its parameters.
    pub path: String,
    /// Who may, by the name of the variant.
    pub access: String,
}

/// The table of routes, read from its source: what is added there is tested without anybody saying so here.
///
/// # Panics
/// When the source does not look as expected.
#[must_use]
pub fn rules() -> Vec<Rule> {
    let source = repository().join("scheduler/api/src/access.rs");
    let text = std::fs::read_to_string(&source).expect("the table can be read");
    let (_, table) = text.split_once("pub const RULES: &[Rule] = &[\n").expect("the table has its name");
    let (table, _) = table.split_once("\n];").expect("the table has an end");
    let rows = table.lines().map(str::trim).filter(|line| !line.starts_with("//"));
    let rule = |row: &str| {
        let inner = row.strip_prefix("rule(").and_then(|row| row.strip_suffix("),"));
        let parts: Vec<&str> = inner.unwrap_or_default().split(", ").map(|part| part.trim_matches('"')).collect();
        let [method, path, access] = parts[..] else { panic!("not understood: {row}") };
        Rule { method: method.to_owned(), path: path.to_owned(), access: access.to_owned() }
    };
    rows.map(rule).collect()
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path.
    pub path: String,
    /// What is sent; JSON.
    pub body: String,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The status; 0 = none came.
    pub code: u16,
    /// Why none came, in curl's words.
    pub error: String,
    /// The body.
    pub body: String,
}

/// Where to call, and as whom.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    /// The host that calls.
    pub from: &'a Host,
    /// The host that is called, at the port of the cluster.
    pub to: Ipv4Addr,
    /// The name that it must have.
    pub name: &'a str,
    /// The authority that it must be of.
    pub authority: &'a Path,
    /// The folder of the caller's `cert.pem` and `key.pem`.
    pub own: Option<&'a Path>,
}

impl Call<'_> {
    /// Asks for one after the other.
    ///
    /// # Panics
    /// When curl cannot be run at all.
    #[track_caller]
    #[must_use]
    pub fn ask(&self, requests: &[Request]) -> Vec<Answer> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let body = |number: usize| -> PathBuf { folder.path().join(number.to_string()) };
        let mut config = String::new();
        for (number, request) in requests.iter().enumerate() {
            let Request { method, path, body: sent } = request;
            let mut set = |key: &str, value: &str| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"");
                writeln!(config, "{key} = \"{value}\"").expect("text can be written");
            };
            set("url", &format!("https://{}:7373{path}", self.name));
            set("request", method);
            set("connect-to", &format!("{}:7373:{}:7373", self.name, self.to));
            set("cacert", &self.authority.to_string_lossy());
            if let Some(own) = self.own {
                set("cert", &own.join("cert.pem").to_string_lossy());
                set("key", &own.join("key.pem").to_string_lossy());
            }
            set("header", "content-type: application/json");
            set("output", &body(number).to_string_lossy());
            set("write-out", "%{http_code} %{errormsg}\n");
            // Streams have no end.
            set("max-time", "5");
            if method != "GET" {
                set("data", sent);
            }
            config.push_str("silent\nnext\n");
        }
        let written = folder.path().join("requests");
        std::fs::write(&written, config.trim_end().trim_end_matches("next")).expect("a file can be written");
        let output = self.from.inside(Place::Host, || {
            Command::new("curl").arg("-K").arg(&written).stdin(Stdio::null()).output().expect("this host has curl")
        });
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines.len(), requests.len(), "{said}{}", String::from_utf8_lossy(&output.stderr));
        let answer = |(number, line): (usize, &&str)| {
            let (code, error) = line.split_once(' ').unwrap_or((line, ""));
            let body = std::fs::read_to_string(body(number)).unwrap_or_default();
            Answer { code: code.parse().unwrap_or_default(), error: error.to_owned(), body }
        };
        lines.iter().enumerate().map(answer).collect()
    }
}
