//! Ids and digests that every replica makes alike.

use orch_spec::assignment::TaskId;
use sha2::{Digest, Sha256};

/// Base 32, lower case, in the order of the digits' values (RFC 4648 §7).
const DIGITS: &[u8; 32] = b"0123456789abcdefghijklmnopqrstuv";
/// Digits of a task id: 125 bits, so that two never meet by chance.
const TASK_ID_DIGITS: usize = 25;

/// The id of the task that is made as number `sequence` of all tasks, by a command with this nonce.
pub(crate) fn task_id(cluster: &str, nonce: u64, sequence: u64) -> TaskId {
    let mut hasher = Sha256::new();
    hasher.update(cluster.as_bytes());
    hasher.update(nonce.to_le_bytes());
    hasher.update(sequence.to_le_bytes());
    let digest = hasher.finalize();
    let text =
        digest.iter().take(TASK_ID_DIGITS).map(|byte| char::from(DIGITS[usize::from(byte & 31)])).collect::<String>();
    text.into()
}

/// The beginning of task ids by its place among all beginnings of three digits, of which there are 2^15: ids are spread over them evenly.
pub(crate) fn id_prefix(place: usize) -> String {
    [place >> 10, place >> 5, place].into_iter().map(|digits| char::from(DIGITS[digits & 31])).collect()
}

/// `sha256` in lower-case hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Five bytes that follow from the cluster's id: the random part of its IPv6 addresses (RFC 4193 §3.2.2).
pub(crate) fn global_id(cluster: &str) -> [u8; 5] {
    let digest = Sha256::digest(cluster.as_bytes());
    [digest[0], digest[1], digest[2], digest[3], digest[4]]
}
