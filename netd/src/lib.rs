//! Bridges, overlay, nftables, addresses and DNS of one host.
