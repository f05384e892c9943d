//! PID 1 for `init: true`.

use std::ffi::CStr;

/// What precedes the program's own arguments: the name that makes this executable a reaper, and the number of the status socket.
pub(crate) const ARGUMENTS: [&CStr; 2] = [c"orch-init", c"5"];
