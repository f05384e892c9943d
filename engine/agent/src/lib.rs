//! A node: wires the engine and netd together, runs the reconcile loop, reports status.
