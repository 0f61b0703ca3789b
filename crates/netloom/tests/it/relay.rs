//! `netloom relay`: the published ports of attachments on `::1`.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv6Addr, SocketAddr},
    process::{Child, Command, Stdio},
};

use serde_json::json;
use testkit::{Host, Transport};

use crate::{
    lab::{NETLOOM, dual_stack, netloom, text},
    run::netloom as netloom_with_plugins,
};

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A relay that systemd starts at the first connection finds the container that publishes the port now.
#[test]
fn the_ipv6_loopback_leads_to_the_container_that_publishes_the_port() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let plugins = [dual_stack(), json!({"type": "portmap", "capabilities": {"portMappings": true}})];
    let list = json!({"cniVersion": "1.1.0", "name": "lab", "plugins": plugins});
    host.sh(&format!("mkdir -p /etc/cni/net.d; echo '{list}' >/etc/cni/net.d/lab.conflist"));
    let publish = |container: &str, port: u16, host_ip: &str| {
        let path = host.container(container);
        let mapping = json!({"hostPort": port, "containerPort": 80, "protocol": "TCP", "hostIP": host_ip});
        let capability_args = json!({"portMappings": [mapping]}).to_string();
        let output = netloom_with_plugins(&host, &["add", "lab", &path, "--cap-args", &capability_args]);
        testkit::require_success(&output, "add");
    };
    publish("c1", 8080, "");
    publish("c2", 8081, "::1");
    let mut command = Command::new("systemd-socket-activate");
    command.args(["--listen=[::1]:8080", "--setenv=PATH", NETLOOM, "relay", "8081"]);
    let mut relay = Killed(host.spawn(command.stderr(Stdio::piped())));
    let mut line = String::new();
    BufReader::new(relay.0.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("Listening on [::1]:8080"), "{line}");

    let serve = |container: &str| host.serve(Some(container), Transport::Tcp, "[::]:80".parse().unwrap());
    let reaches =
        |port: u16| host.reaches(None, Transport::Tcp, SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
    let first = serve("c1");
    assert!(!reaches(8081), "nothing has started the relay");
    for _ in 0..3 {
        assert!(reaches(8080));
    }
    assert!(!reaches(8081), "no server listens in c2");
    let second = serve("c2");
    assert!(reaches(8081));
    assert_eq!((first.callers().len(), second.callers().len()), (3, 1));

    // Without the container the connection is reset, and the next container of the port gets the next connection.
    let gone = netloom_with_plugins(&host, &["del", "lab", "c1"]);
    testkit::require_success(&gone, "del");
    assert!(!reaches(8080));
    publish("c3", 8080, "::");
    let third = serve("c3");
    assert!(reaches(8080));
    assert_eq!(third.callers().len(), 1);

    let nothing = netloom(&host, &["relay"]);
    assert!(!nothing.status.success());
    assert!(text(&nothing).contains("name ports"), "{}", text(&nothing));
    let taken = text(&netloom(&host, &["relay", "8080"]));
    assert!(taken.contains("cannot listen on [::1]:8080"), "{taken}");
}
