//! `resolv.conf`: read from the host, written for containers. Pure; the file is read and written by callers.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// Bytes of a host's file that are looked at. glibc reads lines of any number; nobody has a longer file on purpose.
const LONGEST_FILE: usize = 64 << 10;
/// Servers used, as in glibc (`MAXNS`).
const MOST_SERVERS: usize = 3;
/// The address at which every sandbox finds the embedded DNS.
pub const EMBEDDED_SERVER: &str = "127.0.0.11";

/// What a `resolv.conf` says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvConf {
    /// Server addresses with, for link-local ones, the name of the interface: `fe80::1%eth0`. In order, as written.
    pub nameservers: Vec<String>,
    /// Search domains.
    pub search: Vec<String>,
    /// Options, as written.
    pub options: Vec<String>,
}

/// What a container's stack file says about name resolution; empty lists say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResolvOverrides {
    /// `dns:`
    pub dns: Vec<IpAddr>,
    /// `dns_search:`; a single `.` means no search domain at all.
    pub dns_search: Vec<String>,
    /// `dns_opt:`
    pub dns_opt: Vec<String>,
}

impl ResolvConf {
    /// Reads the text as glibc does: the last `search` or `domain` line counts, `options` lines add up, what is not
    /// understood is passed over. Bytes beyond 64 KiB are not looked at.
    pub fn parse(text: &str) -> ResolvConf {
        let mut end = text.len().min(LONGEST_FILE);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut conf = ResolvConf::default();
        for line in text[..end].lines() {
            let line = line.split(['#', ';']).next().unwrap_or("");
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.nameservers.extend(words.next().filter(|w| server(w).is_some()).map(str::to_owned))
                }
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("domain") => conf.search = words.next().map(str::to_owned).into_iter().collect(),
                Some("options") => conf.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        conf
    }

    /// The servers as addresses to send to, at most three as in glibc. One whose interface is gone is left out.
    pub fn servers(&self) -> Vec<SocketAddr> {
        self.nameservers
            .iter()
            .filter_map(|text| {
                let (address, zone) = server(text)?;
                Some(match (address, zone) {
                    (IpAddr::V6(v6), Some(zone)) => {
                        let index = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
                        SocketAddr::V6(SocketAddrV6::new(v6, 53, 0, index))
                    }
                    (address, _) => SocketAddr::new(address, 53),
                })
            })
            .take(MOST_SERVERS)
            .collect()
    }
}

/// Address and interface of a `nameserver` word.
fn server(word: &str) -> Option<(IpAddr, Option<&str>)> {
    match word.split_once('%') {
        Some((address, zone)) => Some((IpAddr::V6(address.parse().ok()?), Some(zone))),
        None => Some((word.parse().ok()?, None)),
    }
}

/// The file for a container that uses the embedded DNS. The host's servers are not in it: they are asked by netd, which
/// follows the host's file when it changes. `ndots:0` unless the user says otherwise: a name without a dot is a service, and
/// is asked for as it is before any search domain is appended.
pub fn embedded(host: &ResolvConf, overrides: &ResolvOverrides) -> String {
    let mut options = options(host, overrides);
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    render(&[EMBEDDED_SERVER.to_owned()], &search(host, overrides), &options)
}

/// The file for a container on the host's own network (or on one without embedded DNS): the host's, with what the user
/// overrides.
pub fn host(host: &ResolvConf, overrides: &ResolvOverrides) -> String {
    let servers: Vec<String> = match overrides.dns.is_empty() {
        true => host.nameservers.clone(),
        false => overrides.dns.iter().map(IpAddr::to_string).collect(),
    };
    render(&servers, &search(host, overrides), &options(host, overrides))
}

fn search(host: &ResolvConf, overrides: &ResolvOverrides) -> Vec<String> {
    match overrides.dns_search.as_slice() {
        [] => host.search.iter().filter(|domain| *domain != ".").cloned().collect(),
        given => given.iter().filter(|domain| *domain != ".").cloned().collect(),
    }
}

/// The user's options after the host's, which they replace where both set the same one: glibc takes the last.
fn options(host: &ResolvConf, overrides: &ResolvOverrides) -> Vec<String> {
    let key = |option: &str| option.split(':').next().unwrap_or("").to_owned();
    let overridden: Vec<String> = overrides.dns_opt.iter().map(|option| key(option)).collect();
    let kept = host.options.iter().filter(|option| !overridden.contains(&key(option)));
    kept.chain(&overrides.dns_opt).cloned().collect()
}

fn render(servers: &[String], search: &[String], options: &[String]) -> String {
    let mut text = String::from("# Written by orch. Changes made here are lost when the container is recreated.\n");
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# made by hand\nnameserver 10.0.0.2 # first\nnameserver fe80::1%lo\nnameserver nonsense\n\
                        domain old.example\nsearch corp.example lab.example\noptions timeout:2 edns0\noptions ndots:2\n";

    fn overrides(dns: &[&str], search: &[&str], opt: &[&str]) -> ResolvOverrides {
        ResolvOverrides {
            dns: dns.iter().map(|text| text.parse().unwrap()).collect(),
            dns_search: search.iter().map(|&text| text.to_owned()).collect(),
            dns_opt: opt.iter().map(|&text| text.to_owned()).collect(),
        }
    }

    fn body(text: &str) -> Vec<&str> {
        text.lines().filter(|line| !line.starts_with('#')).collect()
    }

    #[test]
    fn the_last_search_line_counts_and_option_lines_add_up() {
        let conf = ResolvConf::parse(HOST);
        assert_eq!(conf.nameservers, ["10.0.0.2", "fe80::1%lo"]);
        assert_eq!(conf.search, ["corp.example", "lab.example"]);
        assert_eq!(conf.options, ["timeout:2", "edns0", "ndots:2"]);
    }

    #[test]
    fn a_link_local_server_is_dialled_through_its_interface() {
        let servers =
            ResolvConf::parse("nameserver fe80::1%lo\nnameserver fe80::2%7\nnameserver fe80::3%gone0\n").servers();
        assert_eq!(servers.iter().map(ToString::to_string).collect::<Vec<_>>(), ["[fe80::1%1]:53", "[fe80::2%7]:53"]);
    }

    #[test]
    fn a_container_asks_the_embedded_server_only() {
        let host = ResolvConf::parse("nameserver 10.0.0.2\nsearch corp.example\n");
        let text = embedded(&host, &ResolvOverrides::default());
        assert_eq!(body(&text), ["nameserver 127.0.0.11", "search corp.example", "options ndots:0"]);
    }

    #[test]
    fn the_hosts_ndots_stays_and_the_users_wins_over_it() {
        let host = ResolvConf::parse(HOST);
        assert!(embedded(&host, &ResolvOverrides::default()).contains("options timeout:2 edns0 ndots:2\n"));
        let text = embedded(&host, &overrides(&[], &[], &["ndots:5", "rotate"]));
        assert!(text.contains("options timeout:2 edns0 ndots:5 rotate\n"), "{text}");
    }

    #[test]
    fn a_users_search_list_replaces_the_hosts_and_a_dot_empties_it() {
        let host = ResolvConf::parse(HOST);
        assert!(embedded(&host, &overrides(&[], &["a.example"], &[])).contains("\nsearch a.example\n"));
        assert!(!embedded(&host, &overrides(&[], &["."], &[])).contains("search"));
    }

    #[test]
    fn on_the_hosts_network_the_hosts_servers_stay_unless_the_user_names_others() {
        let conf = ResolvConf::parse(HOST);
        let text = host(&conf, &ResolvOverrides::default());
        assert_eq!(body(&text)[..2], ["nameserver 10.0.0.2", "nameserver fe80::1%lo"]);
        assert!(!text.contains("ndots:0"));
        let text = host(&conf, &overrides(&["1.1.1.1", "2606:4700::1111"], &[], &[]));
        assert_eq!(body(&text)[..2], ["nameserver 1.1.1.1", "nameserver 2606:4700::1111"]);
    }

    #[test]
    fn a_dns_override_is_not_written_for_the_embedded_server() {
        let text = embedded(&ResolvConf::default(), &overrides(&["1.1.1.1"], &[], &[]));
        assert_eq!(body(&text), ["nameserver 127.0.0.11", "options ndots:0"]);
    }

    #[test]
    fn an_endless_or_broken_file_is_read_in_part() {
        let long = "é".repeat(LONGEST_FILE);
        assert_eq!(ResolvConf::parse(&long), ResolvConf::default());
        assert_eq!(ResolvConf::parse("nameserver\nsearch\noptions\n\0\n"), ResolvConf::default());
    }
}
