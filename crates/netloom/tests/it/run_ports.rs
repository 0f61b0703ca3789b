//! `netloom run -p`: ports of the host that it chooses, ranges, and the host's own address.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use testkit::{Host, Transport};

use crate::{lab::text, run::netloom, run_signals::Running};

/// Without a port of the host a free one is chosen: not one on which a program listens, nor one that an attachment has published.
#[test]
fn free_ports_are_chosen() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("echo 40000 40003 >/proc/sys/net/ipv4/ip_local_port_range");
    let listen = |address: &str| host.serve(None, Transport::Tcp, address.parse::<SocketAddr>().unwrap());
    let _listeners = [listen("127.0.0.1:40000"), listen("[::1]:40001")];
    let other = Running::new(&host, &["-p", "127.0.0.1:40002:80"], "exec cat");
    let chosen = Running::new(&host, &["-p", "80"], "exec cat");
    let server = host.serve(Some(&chosen.netns()), Transport::Tcp, ([0, 0, 0, 0], 80).into());
    assert!(host.reaches(None, Transport::Tcp, ([127, 0, 0, 1], 40003).into()));
    drop(server);
    let full = text(&netloom(&host, &["run", "-p", "80", "--", "true"]));
    assert!(full.contains("ports 40000 to 40003 is free"), "{full}");
    // Another protocol and another address have ports of their own.
    let udp = text(&netloom(&host, &["run", "-p", "40003-40004:80/udp", "--", "true"]));
    assert!(udp.contains("netloom: published 0.0.0.0:40003 -> 80/udp\n"), "{udp}");
    let elsewhere = text(&netloom(&host, &["run", "-p", "127.0.0.2::80", "--", "true"]));
    assert!(elsewhere.contains("netloom: published 127.0.0.2:4000"), "{elsewhere}");
    let (code, stderr) = chosen.end();
    assert!(code == Some(0) && stderr.contains("netloom: published 0.0.0.0:40003 -> 80/tcp\n"), "{stderr}");
    assert_eq!(other.end().0, Some(0));
}

/// Ranges publish ports in order, and a port of the host is given once.
#[test]
fn ranges_of_ports() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let options = ["-p", "8000-8001:80-81", "-p", "8000-8002:90", "-p", "[::1]:7000-7001:70"];
    let run = Running::new(&host, &options, "exec cat");
    let ports = host.sh("nft list map ip netloom ports");
    for mapping in ["8000 comment", ". 80,", "8001 comment", ". 81,", "8002 comment", ". 90 }"] {
        assert!(ports.contains(mapping), "{mapping}: {ports}");
    }
    let (code, stderr) = run.end();
    assert_eq!(code, Some(0), "{stderr}");
    assert!(
        stderr.contains("published 0.0.0.0:8002 -> 90/tcp\nnetloom: published [::1]:7000 -> 70/tcp\n"),
        "{stderr}"
    );
    let twice = text(&netloom(&host, &["run", "-p", "8000:80", "-p", "8000:81", "--", "true"]));
    assert!(
        twice.contains("cannot publish both 0.0.0.0:8000 -> 80/tcp and 0.0.0.0:8000 -> 81/tcp"),
        "{twice}"
    );
    let wrong = text(&netloom(&host, &["run", "-p", "80x:80", "--", "true"]));
    assert!(wrong.contains("the port of the host `80x` is not a number from 1 to 65535"), "{wrong}");
}

/// A published port answers on `::1` as well, whichever family the server in the container has. It closes with the command.
#[test]
fn the_ipv6_loopback_is_published() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    let at = SocketAddr::from((Ipv6Addr::LOCALHOST, 8080));
    for publish in ["[::1]:8080:80", "8080:80", "[::]:8080:80"] {
        let run = Running::new(&host, &["-p", publish], "exec cat");
        for any in [SocketAddr::from((Ipv6Addr::UNSPECIFIED, 80)), (Ipv4Addr::UNSPECIFIED, 80).into()] {
            let server = host.serve(Some(&run.netns()), Transport::Tcp, any);
            for _ in 0..3 {
                assert!(host.reaches(None, Transport::Tcp, at), "{publish} with a server on {any}");
            }
            assert_eq!(server.callers().len(), 3);
        }
        let (code, stderr) = run.end();
        assert_eq!(code, Some(0), "{stderr}");
        assert!(!host.reaches(None, Transport::Tcp, at), "{publish} after the end");
    }
    // A program of the host keeps its port.
    let own = host.serve(None, Transport::Tcp, at);
    let refused = netloom(&host, &["run", "-p", "[::1]:8080:80", "--", "true"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(text(&refused).contains("cannot publish [::1]:8080 -> 80/tcp: a program"), "{}", text(&refused));
    let run = Running::new(&host, &["-p", "8080:80"], "exec cat");
    assert!(host.reaches(None, Transport::Tcp, at));
    let (code, stderr) = run.end();
    assert!(code == Some(0) && stderr.contains("[::1]:8080 is not published"), "{stderr}");
    assert_eq!(own.callers().len(), 1);
}

/// A program of the host does not lose its callers to a container: its port is refused, on all addresses and on its own.
#[test]
fn a_port_of_the_host_is_refused() {
    if !testkit::is_root() {
        return;
    }
    let host = Host::new();
    host.sh("ip addr add 192.0.2.1/32 dev lo");
    for (listens, transport, publish) in [
        ("127.0.0.1:8080", Transport::Tcp, "8080:80"),
        ("0.0.0.0:8080", Transport::Tcp, "192.0.2.1:8079-8081:79-81"),
        ("[::]:8080", Transport::Tcp, "8080:80"),
        ("127.0.0.1:8080", Transport::Udp, "127.0.0.1:8080:80/udp"),
    ] {
        let server = host.serve(None, transport, listens.parse().unwrap());
        let output = netloom(&host, &["run", "-p", publish, "--", "true"]);
        let shown = text(&output);
        assert_eq!(output.status.code(), Some(125), "{listens} and {publish}: {shown}");
        assert!(
            shown.contains(":8080 -> 80/") && shown.contains("sport = 8080"),
            "{listens} and {publish}: {shown}"
        );
        drop(server);
    }
    let server = host.serve(None, Transport::Tcp, "127.0.0.1:8080".parse().unwrap());
    for publish in ["8080:80/udp", "192.0.2.1:8080:80", "8081:80"] {
        let output = netloom(&host, &["run", "-p", publish, "--", "true"]);
        assert!(output.status.success(), "{publish}: {}", text(&output));
    }
    drop(server);
    // A port of another container is refused with the name of that one.
    let other = Running::new(&host, &["-p", "8080:80"], "exec cat");
    let refused = text(&netloom(&host, &["run", "-p", "8080:80", "--", "true"]));
    assert!(refused.contains(&format!("already published for container {}", other.netns())), "{refused}");
    assert_eq!(other.end().0, Some(0));
}
