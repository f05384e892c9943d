//! Request and response types of the API, and the client that the CLI and the agents use.
//!
//! [`control`] is the control plane (stacks, tasks, networks, events), [`node`] one node (containers, images, volumes), [`stream`] the
//! framing of attached terminals, [`image`] images on their way between hosts, [`client`] the HTTP client, [`openapi`] the document of all
//! routes. Servers live elsewhere: routes of `control` in `orch-scheduler`, those of `node` in `orch-agent`.
#![forbid(unsafe_code)]

pub mod access;
pub mod client;
pub mod clock;
pub mod cluster;
pub mod control;
pub mod error;
pub mod image;
pub mod node;
pub mod object;
pub mod openapi;
pub mod plane;
pub mod service;
pub mod session;
pub mod stream;
pub mod tls;
