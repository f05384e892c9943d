//! Shares of new connections as slots of a table. A rule draws a number below the count of slots and looks up who has it, so
//! its cost does not depend on how many there are.
//!
//! The modulus is part of a rule, and rules are constant: there is one for each of a few counts, and a service uses the
//! smallest count at which nobody gets much more than his share.
//!
//! Each participant asks for slots in an order of its own that follows from its address, and they take turns until everybody has his share
//! (Maglev's table, with exact shares). Who comes or goes therefore moves few slots but his own: while fifty containers start, every
//! sandbox that knows them is told of each of them.

use std::net::IpAddr;

use crate::hash::hash;

/// Counts of slots. Twelve divides evenly among 1, 2, 3, 4, 6 and 12, sixty also among 5, 10, 15, 20 and 30, and so on.
pub(crate) const COUNTS: [u32; 4] = [1, 12, 60, 840];
/// Counts where there may be ten thousand services, most of which have few participants: what is loaded is as many elements as slots.
pub(crate) const FINE_COUNTS: [u32; 8] = [1, 2, 3, 4, 6, 12, 60, 840];
/// How much more than his share somebody may get before the next count is taken, in percent. The largest count is taken
/// whatever it gives.
const EXCESS: u64 = 7;

/// Who has each slot, as places in the list of addresses with weights; as long as one of `counts`. Empty when nobody has any weight.
///
/// It follows from the list alone, so that an agent knows after a restart what the one before has dealt. Beyond 840 participants the
/// last ones get nothing.
pub(crate) fn deal(participants: &[(IpAddr, u16)], counts: &[u32]) -> Vec<usize> {
    let total: u64 = participants.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    let weights: Vec<u16> = participants.iter().map(|(_, weight)| *weight).collect();
    let (mut shares, mut count) = (Vec::new(), 0);
    for next in counts {
        count = *next;
        shares = share(&weights, total, u64::from(count));
        let fair = |(slots, weight): (&u64, &u16)| {
            let (slots, weight) = (*slots, u64::from(*weight));
            // slots / count ≤ weight / total × (1 + excess), and nobody with weight goes without.
            (slots > 0 || weight == 0) && slots * total * 100 <= weight * u64::from(count) * (100 + EXCESS)
        };
        if shares.iter().zip(&weights).all(fair) {
            break;
        }
    }
    take_turns(participants, shares, u64::from(count))
}

/// Has each take its share, one slot a turn: the first free one in its own order.
fn take_turns(participants: &[(IpAddr, u16)], mut shares: Vec<u64>, count: u64) -> Vec<usize> {
    let mut orders: Vec<Order> = participants.iter().map(|(address, _)| Order::of(*address, count)).collect();
    let mut slots: Vec<Option<usize>> = vec![None; usize::try_from(count).unwrap_or(0)];
    let mut left: u64 = shares.iter().sum();
    while left > 0 {
        for place in 0..shares.len() {
            if shares[place] == 0 {
                continue;
            }
            // There is a free one as long as anybody's share is not taken: they add up to the count.
            let free = orders[place].by_ref().find(|slot| slots[*slot].is_none());
            if let Some(slot) = free {
                slots[slot] = Some(place);
            }
            (shares[place], left) = (shares[place] - 1, left - 1);
        }
    }
    slots.into_iter().flatten().collect()
}

/// All slots in the order in which one participant asks for them.
struct Order {
    next: u64,
    step: u64,
    count: u64,
    left: u64,
}

impl Order {
    fn of(address: IpAddr, count: u64) -> Self {
        let v6 = match address {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let hash = |salt: u8| hash(&[&v6.octets()[..], &[salt]]);
        // A step that has no divisor in common with the count comes by every slot once.
        let coprime = |step: u64| (step..).find(|step| gcd(*step, count) == 1).unwrap_or(1);
        Self { next: hash(0) % count, step: coprime(hash(1) % count + 1), count, left: count }
    }
}

impl Iterator for Order {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let slot = self.next;
        self.next = (slot + self.step) % self.count;
        usize::try_from(slot).ok()
    }
}

fn gcd(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { gcd(other, one % other) }
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

    fn addressed(weights: &[u16]) -> Vec<(IpAddr, u16)> {
        let address = |place: usize| IpAddr::from([10, 1, (place / 256) as u8, (place % 256) as u8]);
        weights.iter().enumerate().map(|(place, weight)| (address(place), *weight)).collect()
    }

    /// `count: slots of each`.
    fn dealt(weights: &[u16]) -> String {
        let slots = deal(&addressed(weights), &COUNTS);
        let each: Vec<String> =
            (0..weights.len()).map(|place| slots.iter().filter(|p| **p == place).count().to_string()).collect();
        format!("{}: {}", slots.len(), each.join(" "))
    }

    #[test]
    fn who_comes_or_goes_moves_few_slots_but_his_own() {
        let everybody = addressed(&[1; 50]);
        let named = |participants: &[(IpAddr, u16)]| -> Vec<IpAddr> {
            deal(participants, &COUNTS).into_iter().map(|place| participants[place].0).collect()
        };
        let before = named(&everybody);
        for leaving in 0..everybody.len() {
            let mut others = everybody.clone();
            others.remove(leaving);
            let moved = before.iter().zip(named(&others)).filter(|(one, other)| **one != *other).count();
            assert!(moved < 840 / 5, "{moved} of 840 slots, where a fiftieth would do");
        }
    }

    #[test]
    fn where_counts_are_fine_few_take_no_more_slots_than_they_are() {
        for count in [1usize, 2, 3, 4, 6] {
            assert_eq!(deal(&addressed(&vec![1; count]), &FINE_COUNTS).len(), count);
        }
        assert_eq!(deal(&addressed(&[1; 5]), &FINE_COUNTS).len(), 60);
        assert_eq!(deal(&addressed(&[2, 1]), &FINE_COUNTS).len(), 3);
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
            let slots = deal(&addressed(&vec![1; count]), &COUNTS);
            assert!((0..count).all(|place| slots.contains(&place)), "{count}");
        }
        assert_eq!(deal(&addressed(&vec![1; 900]), &COUNTS).len(), 840);
        assert!(dealt(&[1, u16::MAX]).starts_with("840: 1 "));
    }
}
