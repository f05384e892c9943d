//! The control plane: raft driver, log store, API server, dispatcher.
