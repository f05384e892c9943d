//! orch: stacks of containers on one host or many, in one binary.
fn main() {}
