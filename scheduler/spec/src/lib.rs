//! The stack file: text in, a typed and validated spec out, source spans kept. Pure.
//!
//! The entry types are [`model::StackSpec`] (what the rest of orch works with) and the loader that makes it out of
//! Compose files. Nothing here reads a disk, an environment or a clock: files and variables are handed in.

pub mod model;
