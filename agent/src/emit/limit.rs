//! How many requests a second become rows of the log.
//!
//! Metrics count each request; beyond a rate the log has a sample, so that a storm of requests costs a bounded amount here, on the network and in
//! the store. What is kept is told from what all views of a request share (its ports and sequence number), so a request is there with all its
//! views or not at all.

/// Shares are parts of this.
const WHOLE: u64 = 1 << 32;

#[derive(Debug)]
pub(super) struct Limit {
    /// 0: no bound.
    rows_max: u32,
    second: u64,
    /// Rows that came in this second, and that were kept.
    seen: u32,
    kept: u32,
    /// Of the rows of this second that are kept, as the last one was.
    share: u64,
    /// Rows that were left out since the start.
    pub(super) left_out: u64,
}

impl Limit {
    pub(super) fn new(rows_max: u32) -> Self {
        Self { rows_max, second: 0, seen: 0, kept: 0, share: WHOLE, left_out: 0 }
    }

    pub(super) fn set(&mut self, rows_max: u32) {
        self.rows_max = rows_max;
    }

    /// Whether a row is kept. `now` in microseconds; `key` is the same for all views of a request.
    pub(super) fn admits(&mut self, now: u64, key: u64) -> bool {
        if self.rows_max == 0 {
            return true;
        }
        let second = now / 1_000_000;
        if second != self.second {
            // After a pause nothing is known of the rate.
            let seen = if second == self.second + 1 { self.seen } else { 0 };
            self.share = WHOLE * u64::from(self.rows_max) / u64::from(seen.max(self.rows_max));
            (self.second, self.seen, self.kept) = (second, 0, 0);
        }
        self.seen = self.seen.saturating_add(1);
        // Multiplied by an odd number without pattern, the upper bits depend on all bits.
        let place = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let is_kept = self.kept < self.rows_max && place < self.share;
        self.kept += u32::from(is_kept);
        self.left_out += u64::from(!is_kept);
        is_kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows kept of each second, of so many that come.
    fn kept(limit: &mut Limit, seconds: &[(u64, u64)]) -> Vec<usize> {
        let each = |(second, rows): &(u64, u64)| {
            (0..*rows).filter(|row| limit.admits(second * 1_000_000 + row, *row)).count()
        };
        seconds.iter().map(each).collect()
    }

    #[test]
    fn below_the_bound_all_rows_are_kept() {
        assert_eq!(kept(&mut Limit::new(100), &[(1, 100), (2, 99), (9, 100)]), [100, 99, 100]);
        assert_eq!(kept(&mut Limit::new(0), &[(1, 5_000)]), [5_000]);
    }

    #[test]
    fn beyond_it_the_bound_holds_and_a_second_is_sampled_evenly_once_the_rate_is_known() {
        let mut limit = Limit::new(100);
        assert_eq!(kept(&mut limit, &[(1, 1_000)]), [100]);
        let places: Vec<u64> = (0..1_000).filter(|row| limit.admits(2_000_000, *row)).collect();
        assert!((60..=100).contains(&places.len()), "{}", places.len());
        assert!(places.iter().any(|row| *row > 700) && places.iter().any(|row| *row < 300));
        assert_eq!(limit.left_out, 900 + 1_000 - places.len() as u64);
        assert_eq!(kept(&mut limit, &[(3, 10), (4, 10)])[1], 10, "the storm is over");
    }

    #[test]
    fn views_of_a_request_are_kept_or_left_out_together() {
        let mut limit = Limit::new(1_000);
        kept(&mut limit, &[(1, 3_000)]);
        let first: Vec<bool> = (0..900).map(|key| limit.admits(2_000_000, key)).collect();
        let second: Vec<bool> = (0..900).map(|key| limit.admits(2_500_000, key)).collect();
        assert_eq!(first, second);
        assert!(first.contains(&true) && first.contains(&false));
    }
}
