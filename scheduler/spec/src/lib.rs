//! The stack file: text in, a typed and validated spec out, source spans kept. Pure.
//!
//! [`load::load`] makes a [`model::StackSpec`] out of Compose files; [`output`] prints the canonical tree for `config`;
//! [`render::render_plain`] prints the problems. Nothing here reads a disk, an environment or a clock: files come through
//! the [`load::Source`] that the caller hands in, variables through the request.
//!
//! The way of a file: [`yaml`](self) events → a tree of [`node::Node`]s that know their places → interpolation → merging
//! by the tables of `schema` → checking and canonical form by the same tables → normalisation → checks across services →
//! the typed model.

#![forbid(unsafe_code)]

pub mod assignment;
pub use check::suggest;
mod bind;
mod check;
pub mod code;
mod consistency;
mod dotenv;
mod effect;
mod environment;
mod impossible;
mod interpolate;
pub mod load;
mod merge;
pub mod model;
pub mod node;
mod normalize;
pub mod output;
mod paths;
pub mod problem;
pub mod render;
pub mod role;
mod scalar;
mod schema;
mod short;
pub mod short_text;
pub mod span;
mod words;
mod yaml;
