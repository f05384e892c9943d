//! What systemd is told of the agent, by sd_notify(3): that it is ready, that it lives, that it goes. Without systemd, nothing.

use std::convert::Infallible;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use orch_agent::Agent;
use tower::ServiceExt;

/// What an answer to oneself needs: the executor's threads, the router, and the lock over the replicated state.
const QUESTION: &str = "/v1/cluster";

/// Whoever has started the process and wants to hear of it.
pub(super) struct Supervisor {
    /// Connected to `$NOTIFY_SOCKET`.
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that the process lives.
    pulse: Option<Duration>,
}

impl Supervisor {
    /// From the environment, which the process keeps when it starts itself anew: its id stays the same.
    pub(super) fn from_environment() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|name| connected(name.as_bytes()));
        let variable = |name| std::env::var(name).ok();
        let pulse = pulse(
            variable("WATCHDOG_USEC").as_deref(),
            variable("WATCHDOG_PID").as_deref(),
            &std::process::id().to_string(),
        );
        Self { socket, pulse }
    }

    /// The socket answers.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// The process ends by itself.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// Tells again and again that the process lives: after it has answered itself, and has had the lock that the node's loop works under.
    /// A process that cannot do that any more falls silent, is killed and started again, which costs no container.
    /// Deliberately not asked: whether a disk, the leader or another node answers, for starting again would mend none of these.
    pub(super) async fn watch(&self, router: &Router, agent: &Agent) -> Infallible {
        let Some(pulse) = self.pulse.filter(|_| self.socket.is_some()) else { return std::future::pending().await };
        let mut ticks = tokio::time::interval(pulse);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut request = axum::http::Request::new(Body::empty());
            *request.uri_mut() = axum::http::Uri::from_static(QUESTION);
            // Whatever it says: that it says something is what counts.
            let _ = router.clone().oneshot(request).await;
            let _ = agent.is_idle();
            self.tell("WATCHDOG=1");
        }
    }

    fn tell(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!(%error, message, "systemd was not told");
        }
    }
}

/// The socket of that name: a path, or after `@` a name of the kernel's.
fn connected(name: &[u8]) -> Option<UnixDatagram> {
    let address = match name.split_first()? {
        (b'@', rest) => SocketAddr::from_abstract_name(rest),
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name)),
    };
    let socket = UnixDatagram::unbound().ok()?;
    socket.connect_addr(&address.ok()?).ok()?;
    Some(socket)
}

/// How often to tell: three times in the time after which silence means death. `None` when nobody waits, or for another process.
fn pulse(microseconds: Option<&str>, waits_for: Option<&str>, own: &str) -> Option<Duration> {
    if waits_for.is_some_and(|pid| pid != own) {
        return None;
    }
    let patience: u64 = microseconds?.parse().ok()?;
    (patience > 0).then(|| Duration::from_micros(patience) / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pulse_is_three_times_as_fast_as_the_patience_and_only_for_the_process_it_is_meant_for() {
        assert_eq!(pulse(Some("60000000"), Some("7"), "7"), Some(Duration::from_secs(20)));
        assert_eq!(pulse(Some("60000000"), None, "7"), Some(Duration::from_secs(20)));
        assert_eq!(pulse(Some("60000000"), Some("8"), "7"), None);
        assert_eq!(pulse(Some("0"), Some("7"), "7"), None);
        assert_eq!(pulse(Some("soon"), None, "7"), None);
        assert_eq!(pulse(None, None, "7"), None);
    }

    #[test]
    fn both_kinds_of_socket_are_reached() {
        let name = format!("orch-test-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let _ = std::fs::remove_file(&path);
        let listeners = [
            (UnixDatagram::bind(&path).unwrap(), path.as_os_str().as_bytes().to_vec()),
            (
                UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap(),
                format!("@{name}").into_bytes(),
            ),
        ];
        for (listener, name) in listeners {
            Supervisor { socket: connected(&name), pulse: None }.ready();
            let mut said = [0; 16];
            let length = listener.recv(&mut said).unwrap();
            assert_eq!(said.get(..length), Some(b"READY=1".as_slice()));
        }
        std::fs::remove_file(&path).unwrap();
        assert!(connected(b"").is_none());
    }
}
