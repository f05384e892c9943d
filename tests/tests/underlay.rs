//! The network between the hosts, when it does not carry what containers send.

use orch_tests::cluster::Hosts;
use orch_tests::machine::Place;
use orch_tests::wait::{PATIENCE, eventually};

#[test]
fn a_network_that_drops_tunnels_is_named_before_anybody_wonders_and_forgotten_when_it_is_mended() {
    let hosts = Hosts::cluster(&["worker"]);
    hosts.all_ready(1);
    let (first, second) = (hosts.host(1), hosts.host(2));
    // A firewall that lets everything pass between the hosts but the tunnels.
    second.sh(
        Place::Host,
        "nft -f - <<'end'\ntable inet firewall { chain input { type filter hook input priority -400; udp dport 14789 drop; }; }\nend",
    );
    let warned =
        "from host1 to host2: the node answers, but not through a tunnel: let UDP port 14789 pass between the nodes";
    eventually(PATIENCE, "`node ls` names it", || {
        let listed = first.orch(&["node", "ls"]).ok();
        if listed.stderr.contains(warned) { Ok(()) } else { Err(listed.stderr) }
    });
    let listed = first.orch(&["node", "ls", "--format", "json"]).ok().json_lines();
    let trouble = |name: &str| {
        let row = listed.iter().find(|row| row["hostname"] == name).unwrap_or_else(|| panic!("no {name}: {listed:?}"));
        row["underlay"].as_object().map_or(0, serde_json::Map::len)
    };
    // Each host judges what it sends; what comes back is not dropped.
    assert_eq!((trouble("host1"), trouble("host2")), (1, 0));
    second.sh(Place::Host, "nft delete table inet firewall");
    eventually(PATIENCE, "it is forgotten", || {
        let listed = first.orch(&["node", "ls"]).ok();
        if listed.stderr.is_empty() { Ok(()) } else { Err(listed.stderr) }
    });
}
