//! Tests that need kernel features this machine may lack, or that must not run on it: on another kernel in QEMU.

use std::time::{Duration, Instant};

use crate::{
    cluster::dump,
    lab::{Kind, Lab, Plan},
};

/// Runs the tests of ipvlans and of a wrong clock.
#[test]
fn ipvlans_and_a_wrong_clock() {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let tests = ["underlay::pods_are_ipvlans", "other_kernel::a_clock_that_is_wrong_changes_nothing"];
    let said = testkit::on_other_kernel("false", scratch.path(), &[(CLOCK, "own")], &tests);
    assert!(said.is_none_or(|said| said.contains("compared 4 ipvlans") && said.contains("2 clocks")));
}

/// Set if the test may change the clock.
const CLOCK: &str = "NETLOOM_CLOCK";

/// The clock jumps by years while daemons run, and is wrong when one starts: leases last, nothing expires, and pods start. All hosts
/// share one clock here; no node sends its time to another.
#[test]
fn a_clock_that_is_wrong_changes_nothing() {
    if std::env::var_os(CLOCK).is_none() || !testkit::has("etcd") {
        return;
    }
    let mut lab = Lab::of(Plan { hosts: 2, store: Kind::Etcd, ..Plan::default() });
    let mut pods = lab.pods();
    let before = dump(&lab, 0);
    let clocks = ["2046-01-01", "1999-01-01"];
    for (number, clock) in clocks.iter().enumerate() {
        lab.wire.sh(&format!("date --set {clock}"));
        // Longer than a lease of 10 s.
        let jumped = Instant::now();
        while jumped.elapsed() < Duration::from_secs(11) {
            for (index, other) in [(0, "host2"), (1, "host1")] {
                let status = lab.status(index);
                assert_eq!(status["ready"], true, "{clock}: {status}");
                assert_eq!(status["store"]["connected"], true, "{clock}: {status}");
                assert_eq!(status["peers"][0]["name"], other, "{clock}: {status}");
            }
        }
        assert_eq!(dump(&lab, 0), before, "{clock}");
        let name = format!("p{number}");
        let addresses = lab.pod(number % 2, &name);
        pods.push((number % 2, name, addresses));
        lab.all_reach_all(&pods);
        lab.kill(1);
        lab.start(1);
        lab.wait_for_peers(1, 1);
        assert_eq!(dump(&lab, 0), before, "{clock}");
    }
    println!("{} clocks", clocks.len());
}
