//! Request and response types, and the client that the CLI and the agent use.
