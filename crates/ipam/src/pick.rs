//! The order in which the addresses of a set are tried: in rotation, from the one after the last that was
//! assigned, so that a released address stays unused for as long as possible.

use std::net::IpAddr;

use crate::range::{Range, RangeSet, next};

/// An iterator over every address of a set, without gateways.
#[derive(Debug, Clone)]
pub struct Candidates<'a> {
    set: &'a RangeSet,
    /// The range, and its next address.
    next: Option<(usize, IpAddr)>,
    /// The first address, at which the iteration ends.
    first: (usize, IpAddr),
    started: bool,
}

impl<'a> Candidates<'a> {
    /// Starts behind `last`; at the first range when there is none, or when it is in no range any more.
    pub fn new(set: &'a RangeSet, last: Option<IpAddr>) -> Option<Self> {
        let ranges = set.ranges();
        let at_last = last.and_then(|ip| Some((ranges.iter().position(|range| range.contains(ip))?, ip)));
        let first = match at_last {
            Some((index, ip)) => following(ranges, index, ip),
            None => (0, ranges.first()?.start),
        };
        Some(Self { set, next: Some(first), first, started: false })
    }
}

impl<'a> Iterator for Candidates<'a> {
    type Item = (&'a Range, IpAddr);

    fn next(&mut self) -> Option<Self::Item> {
        let ranges = self.set.ranges();
        loop {
            let (index, ip) = self.next?;
            if self.started && (index, ip) == self.first {
                self.next = None;
                return None;
            }
            self.started = true;
            self.next = Some(following(ranges, index, ip));
            let range = ranges.get(index)?;
            if ip != range.gateway {
                return Some((range, ip));
            }
        }
    }
}

fn following(ranges: &[Range], index: usize, ip: IpAddr) -> (usize, IpAddr) {
    let range = &ranges[index];
    match next(ip) {
        Some(next) if ip != range.end => (index, next),
        _ => {
            let index = (index + 1) % ranges.len();
            (index, ranges[index].start)
        }
    }
}
