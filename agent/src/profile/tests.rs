//! Folding, sums of a period, waits, and the odds of a wait to be told.

use super::*;

/// Names that show what was asked for.
struct Told;

impl Names for Told {
    fn user(&mut self, pid: u32, space: u64, address: u64, is_call: bool) -> Arc<str> {
        if address == 13 {
            return UNKNOWN.into();
        }
        format!("u{pid}.{space}.{address}{}", if is_call { "c" } else { "" }).into()
    }
    fn kernel(&mut self, address: u64, is_call: bool) -> Arc<str> {
        if address == 666 {
            return "[k] bpf_prog_6d86cd87_off_cpu".into();
        }
        format!("[k] {address}{}", if is_call { "c" } else { "" }).into()
    }
}

fn stack(doing: Doing, thread: u32, time: u64, user: &[u64]) -> Stack {
    Stack {
        time,
        doing,
        pid: 7,
        thread,
        thread_name: "main".to_owned(),
        space: 1,
        weight: 1.0,
        kernel: vec![],
        user: user.to_vec(),
    }
}

fn take(profile: &mut Profile, now: u64) -> Vec<(Doing, String, u64)> {
    let rows = profile.take(now, [0, 1], |_, thread| thread != 99, |_| "app".into());
    rows.into_iter().map(|row| (row.doing, row.folded.to_string(), row.value)).collect()
}

#[test]
fn ticks_of_a_stack_add_up_and_frames_stand_outermost_first() {
    let mut profile = Profile::new(100);
    for _ in 0..3 {
        // The innermost function is the agent's own.
        let kernel = vec![666, 5, 6];
        profile.stack(Stack { kernel, ..stack(Doing::Computing, 1, 0, &[10, 20]) }, &mut Told);
    }
    profile.stack(stack(Doing::Computing, 1, 0, &[10]), &mut Told);
    assert_eq!(
        take(&mut profile, 0),
        [
            (Doing::Computing, "[t] main;u7.1.10".to_owned(), 10_000),
            (Doing::Computing, "[t] main;u7.1.20c;u7.1.10;[k] 6c;[k] 5c".to_owned(), 30_000),
        ]
    );
    assert_eq!(take(&mut profile, 0), []);
}

#[test]
fn addresses_behind_one_where_nothing_is_mapped_are_no_callers() {
    let mut profile = Profile::new(100);
    profile.stack(stack(Doing::Computing, 1, 0, &[10, 13, 20]), &mut Told);
    profile.stack(stack(Doing::Computing, 1, 0, &[13, 20]), &mut Told);
    let folded: Vec<String> = take(&mut profile, 0).into_iter().map(|(_, folded, _)| folded).collect();
    assert_eq!(folded, ["[t] main;u7.1.10", "[t] main;u7.1.20c;[unknown]"]);
}

#[test]
fn a_wait_counts_for_as_long_as_it_lasts_over_all_periods() {
    let mut profile = Profile::new(99);
    profile.stack(stack(Doing::Waiting, 1, 1_000_000, &[10]), &mut Told);
    profile.stack(Stack { weight: 4.0, ..stack(Doing::Waiting, 2, 2_000_000, &[20]) }, &mut Told);
    // Its thread is gone, and nobody said so.
    profile.stack(stack(Doing::Waiting, 99, 1_000_000, &[30]), &mut Told);
    profile.wake(2, 3_000_000);
    profile.wake(3, 3_000_000);
    let waiting = |folded: &str, value| (Doing::Waiting, format!("[t] main;{folded}"), value);
    assert_eq!(take(&mut profile, 5_000_000), [waiting("u7.1.10", 4_000), waiting("u7.1.20", 4_000)]);
    assert_eq!(take(&mut profile, 6_000_000), [waiting("u7.1.10", 1_000)]);
    profile.wake(1, 8_000_000);
    assert_eq!(take(&mut profile, 9_000_000), [waiting("u7.1.10", 2_000)]);
    profile.stack(stack(Doing::Waiting, 1, 9_000_000, &[10]), &mut Told);
    profile.forget_waits();
    assert_eq!(take(&mut profile, 10_000_000), []);
}

#[test]
fn stacks_of_a_period_are_bounded_and_the_excess_is_counted() {
    let mut profile = Profile::new(99);
    for address in 0..STACKS_MAX as u64 + 5 {
        profile.stack(stack(Doing::Computing, 1, 0, &[address + 1]), &mut Told);
    }
    assert_eq!((take(&mut profile, 0).len(), profile.take_excess()), (STACKS_MAX, 5));
    profile.stack(stack(Doing::Computing, 1, 0, &[1]), &mut Told);
    assert_eq!(take(&mut profile, 0).len(), 1);
}

#[test]
fn of_a_long_stack_the_outermost_functions_are_left_out() {
    struct Long;
    impl Names for Long {
        fn user(&mut self, _: u32, _: u64, address: u64, _: bool) -> Arc<str> {
            format!("{address:0>500}").into()
        }
        fn kernel(&mut self, _: u64, _: bool) -> Arc<str> {
            "k".into()
        }
    }
    let mut profile = Profile::new(99);
    let user: Vec<u64> = (1..=127).collect();
    profile.stack(stack(Doing::Computing, 1, 0, &user), &mut Long);
    let rows = take(&mut profile, 0);
    let folded = &rows[0].1;
    assert!(folded.len() <= FOLDED_MAX && folded.starts_with("[t] main;[...];0"), "{}", folded.len());
    assert!(folded.ends_with(&format!("{:0>500};{:0>500}", 2, 1)));
}

#[test]
fn odds_follow_the_load_within_a_second_and_come_back() {
    let all = u32::MAX;
    assert_eq!(odds(all, 100, 1_000), all);
    let fewer = odds(all, 10_000, 1_000);
    assert_eq!(fewer, all / 10);
    assert_eq!(odds(fewer, 900, 1_000), fewer);
    assert_eq!(odds(fewer, 10, 1_000), fewer * 2);
    assert!(odds(1, u64::MAX, 1) > 0);
}
