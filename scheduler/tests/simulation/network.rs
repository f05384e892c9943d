//! The network: loses, delays, doubles and reorders messages, and is cut in one direction or both.

use std::collections::BTreeSet;

use crate::simulated_disk::Random;

/// How bad it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Weather {
    /// Lost, of a thousand.
    pub(crate) loss: usize,
    /// Doubled, of a thousand.
    pub(crate) double: usize,
    /// The shortest and the longest delay, microseconds.
    pub(crate) delay: (u64, u64),
}

impl Weather {
    pub(crate) const FAIR: Self = Self { loss: 0, double: 0, delay: (200, 2_000) };
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) weather: Weather,
    /// Pairs of places between which nothing passes, in this direction.
    cut: BTreeSet<(usize, usize)>,
}

impl Network {
    pub(crate) fn new(weather: Weather) -> Self {
        Self { weather, cut: BTreeSet::new() }
    }

    /// After which delays a message arrives: never, once or twice.
    pub(crate) fn arrivals(&self, from: usize, to: usize, random: &mut Random) -> Vec<u64> {
        if self.cut.contains(&(from, to)) || random.below(1000) < self.weather.loss {
            return Vec::new();
        }
        let copies = if random.below(1000) < self.weather.double { 2 } else { 1 };
        let (least, most) = self.weather.delay;
        (0..copies).map(|_| least + random.below((most - least) as usize + 1) as u64).collect()
    }

    /// Whether anything passes at all.
    pub(crate) fn passes(&self, from: usize, to: usize) -> bool {
        !self.cut.contains(&(from, to)) && !self.cut.contains(&(to, from))
    }

    /// Cuts some from the others: in both directions, or so that they can only speak or only hear.
    pub(crate) fn cut_off(&mut self, some: &BTreeSet<usize>, all: usize, random: &mut Random) {
        let kind = random.below(3);
        for inside in some {
            for outside in (0..all).filter(|place| !some.contains(place)) {
                if kind != 1 {
                    self.cut.insert((*inside, outside));
                }
                if kind != 2 {
                    self.cut.insert((outside, *inside));
                }
            }
        }
    }

    /// One who can speak and not hear.
    pub(crate) fn deafen(&mut self, place: usize, all: usize) {
        (0..all).filter(|other| *other != place).for_each(|other| {
            self.cut.insert((other, place));
        });
    }

    pub(crate) fn heal(&mut self) {
        self.cut.clear();
    }
}
