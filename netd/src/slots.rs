//! Shares of new connections as slots of a table. A rule draws a number below the count of slots and looks up who has it, so
//! its cost does not depend on how many there are.
//!
//! The modulus is part of a rule, and rules are constant: there is one for each of a few counts, and a service uses the
//! smallest count at which nobody gets much more than his share.

/// Counts of slots. Twelve divides evenly among 1, 2, 3, 4, 6 and 12, sixty also among 5, 10, 15, 20 and 30, and so on.
pub(crate) const COUNTS: [u32; 4] = [1, 12, 60, 840];
/// How much more than his share somebody may get before the next count is taken, in percent. The largest count is taken
/// whatever it gives.
const EXCESS: u64 = 7;

/// Who has each slot, as places in the list of weights; as long as one of [`COUNTS`]. Empty when nobody has any weight.
///
/// It follows from the weights alone, so that every node and every agent after a restart deals the same. Beyond 840
/// participants the last ones get nothing.
pub(crate) fn deal(weights: &[u16]) -> Vec<usize> {
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    let mut shares = Vec::new();
    for count in COUNTS {
        shares = share(weights, total, u64::from(count));
        let fair = |(slots, weight): (&u64, &u16)| {
            let (slots, weight) = (*slots, u64::from(*weight));
            // slots / count ≤ weight / total × (1 + excess), and nobody with weight goes without.
            (slots > 0 || weight == 0) && slots * total * 100 <= weight * u64::from(count) * (100 + EXCESS)
        };
        if shares.iter().zip(weights).all(fair) {
            break;
        }
    }
    let run = |(place, slots): (usize, &u64)| std::iter::repeat_n(place, usize::try_from(*slots).unwrap_or(0));
    shares.iter().enumerate().flat_map(run).collect()
}

/// Largest remainder: everybody gets his share rounded down, and what is left goes to those who lost most by it, but first
/// to those who would have nothing.
fn share(weights: &[u16], total: u64, count: u64) -> Vec<u64> {
    let exact = |weight: &u16| u64::from(*weight) * count;
    let mut shares: Vec<u64> = weights.iter().map(|weight| exact(weight) / total).collect();
    let left = count - shares.iter().sum::<u64>();
    let mut order: Vec<usize> = (0..weights.len()).filter(|place| weights[*place] > 0).collect();
    order.sort_by_key(|place| (shares[*place] > 0, std::cmp::Reverse(exact(&weights[*place]) % total), *place));
    for place in order.into_iter().take(usize::try_from(left).unwrap_or(0)) {
        shares[place] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count: slots of each`.
    fn dealt(weights: &[u16]) -> String {
        let slots = deal(weights);
        let each: Vec<String> =
            (0..weights.len()).map(|place| slots.iter().filter(|p| **p == place).count().to_string()).collect();
        format!("{}: {}", slots.len(), each.join(" "))
    }

    #[test]
    fn few_get_equal_shares_of_few_slots() {
        assert_eq!(dealt(&[]), "0: ");
        assert_eq!(dealt(&[0, 0]), "0: 0 0");
        assert_eq!(dealt(&[1]), "1: 1");
        assert_eq!(dealt(&[0, 3]), "1: 0 1");
        assert_eq!(dealt(&[1, 1]), "12: 6 6");
        assert_eq!(dealt(&[2, 2, 2]), "12: 4 4 4");
        assert_eq!(dealt(&[1; 5]), "60: 12 12 12 12 12");
        assert_eq!(dealt(&[1; 7]), "60: 9 9 9 9 8 8 8");
        assert_eq!(dealt(&[1, 2, 3]), "12: 2 4 6");
        assert_eq!(dealt(&[1, 99]), "840: 8 832");
    }

    #[test]
    fn nobody_with_weight_goes_without_while_there_are_slots() {
        for count in [1usize, 2, 11, 64, 500, 840] {
            let slots = deal(&vec![1; count]);
            assert!((0..count).all(|place| slots.contains(&place)), "{count}");
        }
        assert_eq!(deal(&vec![1; 900]).len(), 840);
        assert!(dealt(&[1, u16::MAX]).starts_with("840: 1 "));
    }
}
