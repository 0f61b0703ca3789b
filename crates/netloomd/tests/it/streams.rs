//! Established streams between pods lose nothing, whatever happens to daemons, the store and other hosts.

use std::{
    fs,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    cluster::dump,
    lab::{Kind, Lab, Plan, Wire},
};

/// A stream of 5 Mbit/s from one pod to another.
struct Stream {
    server: Child,
    client: Child,
    says: std::path::PathBuf,
}

impl Stream {
    fn new(lab: &Lab, (from, pod): (usize, &str), (to, other): (usize, &str), address: &str) -> Self {
        let mut server = lab.hosts[to].command("ip");
        server.args(["netns", "exec", other, "iperf3", "--server", "--one-off"]).stdout(Stdio::null());
        let server = server.spawn().unwrap();
        let started = Instant::now();
        while !lab.hosts[to].succeeds(&format!("ip netns exec {other} ss -ltn | grep -q 5201")) {
            assert!(started.elapsed() < Duration::from_secs(10), "no server");
        }
        let says = lab.hosts[from].path("/run").join(format!("stream-{pod}"));
        let mut client = lab.hosts[from].command("ip");
        client.args([
            "netns",
            "exec",
            pod,
            "iperf3",
            "--client",
            address,
            "--time",
            "180",
            "--bitrate",
            "5M",
        ]);
        client.args(["--interval", "1", "--json"]).stdout(fs::File::create(&says).unwrap());
        Self { server, client: client.spawn().unwrap(), says }
    }

    /// Ends the stream, and asserts that it lost nothing and paused for no second.
    fn end(mut self, what: &str) {
        testkit::ask_to_end(&self.client);
        drop(self.client.wait());
        let text = fs::read_to_string(&self.says).unwrap();
        let said: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{what}: {error}: {text}"));
        let intervals = said["intervals"].as_array().unwrap();
        assert!(intervals.len() > 10, "{what}: {said}");
        for (second, interval) in intervals.iter().enumerate() {
            let sum = &interval["sum"];
            let whole = sum["seconds"].as_f64().unwrap() > 0.9;
            assert!(!whole || sum["bytes"].as_u64().unwrap() > 0, "{what}: silent in second {second}: {sum}");
            assert_eq!(sum["retransmits"], 0, "{what}: lost in second {second}: {sum}");
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for child in [&mut self.client, &mut self.server] {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// A daemon is killed, then the store, then a host is cut off for longer than its lease (15 s; `NETLOOM_CUT` sets the seconds). Streams
/// between pods of other hosts continue, and after each fault the state is the same as before.
#[test]
fn streams_survive() {
    if !testkit::is_root() || !testkit::has("etcd") || !testkit::has("iperf3") {
        return;
    }
    let cut = std::env::var("NETLOOM_CUT").ok().and_then(|text| text.parse().ok()).unwrap_or(15);
    std::thread::scope(|scope| {
        for mode in ["overlay", "routing"] {
            scope.spawn(move || survive(mode, Duration::from_secs(cut)));
        }
    });
}

fn survive(mode: &'static str, cut: Duration) {
    let mut lab = Lab::of(Plan { mode, store: Kind::Etcd, wire: Wire::OneSegment, ..Plan::default() });
    let pods = lab.pods();
    lab.all_reach_all(&pods);
    let before = [0, 1, 2].map(|index| dump(&lab, index));
    let as_before = |lab: &Lab, what: &str| {
        for (index, before) in before.iter().enumerate() {
            let started = Instant::now();
            while dump(lab, index) != *before {
                let text = dump(lab, index);
                assert!(
                    started.elapsed() < Duration::from_secs(20),
                    "{mode}, {what}, host{}:\n{before}\n{text}",
                    index + 1
                );
            }
        }
    };
    let address = |pod: &str, family: usize| pods.iter().find(|it| it.1 == pod).unwrap().2[family].clone();
    let streams = [
        Stream::new(&lab, (0, "a1"), (1, "a2"), &address("a2", 0)),
        Stream::new(&lab, (1, "b2"), (0, "b1"), &address("b1", 1)),
    ];
    lab.kill(0);
    lab.start(0);
    lab.wait(0, "ready again", |status| status["ready"] == true);
    as_before(&lab, "a daemon killed");
    lab.stop_store();
    lab.wait(1, "without a store", |status| status["store"]["connected"] == false);
    lab.start_store();
    for index in 0..3 {
        lab.wait(index, "connected again", |status| status["store"]["connected"] == true);
    }
    as_before(&lab, "etcd killed");
    // A host that is cut off becomes silent for its peers, which keep its routes; it keeps its own objects.
    lab.wire.sh("bridge link set dev n3 state 0");
    let started = Instant::now();
    lab.wait(0, "aware that host3 is silent", |status| {
        let peers = status["peers"].as_array().unwrap();
        peers.iter().any(|it| it["name"] == "host3" && it["silentSeconds"].is_u64())
    });
    assert_eq!(dump(&lab, 0), before[0], "peers keep the routes of a silent host");
    while started.elapsed() < cut {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(dump(&lab, 2), before[2], "a host that is cut off keeps its objects");
    lab.wire.sh("bridge link set dev n3 state 3");
    as_before(&lab, "a host cut off");
    for (stream, what) in streams.into_iter().zip(["IPv4", "IPv6"]) {
        stream.end(&format!("{mode}, {what}"));
    }
    // Hosts resolve the address of the host that was cut off again, which takes a moment.
    lab.all_reach_all_again(&pods);
}
