//! A hash that never changes. The standard library's may with the compiler, and then an agent of another build would not find its own
//! links, or would deal connections anew.

/// FNV-1a over the parts, whose bits are then mixed as MurmurHash3 does at its end.
pub(crate) fn hash<P: AsRef<[u8]>>(parts: &[P]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for part in parts {
        // The separator keeps ("ab", "c") and ("a", "bc") apart.
        for byte in part.as_ref().iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ hash >> 33
}
