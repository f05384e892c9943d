//! The host's own servers: its `resolv.conf`, read again when it has changed.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::cache::Upstreams;
use super::resolv_conf::ResolvConf;
use super::table::Server;

/// How often the file is looked at, while queries come in. One `stat` a second costs nothing, and unlike a watch it survives
/// the file being replaced, removed, or being a link that leads elsewhere.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes read of it.
const MOST: u64 = 64 << 10;

/// Tells one state of a file from another.
type Stamp = (u64, u64, i64, i64, u64);

/// The host's servers.
#[derive(Debug)]
pub(crate) struct HostServers {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    stamp: Option<Stamp>,
    upstreams: Arc<Upstreams>,
}

impl HostServers {
    pub(crate) fn new(path: PathBuf) -> HostServers {
        HostServers { path, state: Mutex::default() }
    }

    /// The servers as the file has them now, or had them a second ago.
    pub(crate) fn upstreams(&self) -> Arc<Upstreams> {
        let now = Instant::now();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK) {
            state.looked = Some(now);
            let stamp = fs::metadata(&self.path).ok().map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()));
            if stamp != state.stamp {
                state.stamp = stamp;
                let conf = self.read();
                let servers = conf.servers().into_iter().map(|address| Server { address, inside: false }).collect();
                tracing::info!(path = %self.path.display(), ?servers, "host's DNS servers");
                state.upstreams = Arc::new(Upstreams { servers, sandbox: None });
            }
        }
        state.upstreams.clone()
    }

    /// The file's content; empty when it cannot be read, which leaves nobody to ask.
    pub(crate) fn read(&self) -> ResolvConf {
        let mut text = Vec::new();
        if let Err(error) = fs::File::open(&self.path).and_then(|file| file.take(MOST).read_to_end(&mut text)) {
            tracing::warn!(path = %self.path.display(), %error, "cannot read the host's DNS servers");
        }
        ResolvConf::parse(&String::from_utf8_lossy(&text))
    }
}
